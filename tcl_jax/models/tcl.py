"""TCL: a frozen CLIP, the grounder, and the similarity-to-mask mapping."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from tcl_jax.models.clip import CLIP, INITIAL_LOGIT_SCALE, CLIPConfig
from tcl_jax.models.grounder import Grounder
from tcl_jax.models.layers import matmul_precision
from tcl_jax.models.vision import VisionOutput, patch_grid
from tcl_jax.ops.masking import mask_logits, pixel_text_similarity


@struct.dataclass
class Grounding:
    """What TCL says of a batch of images and a set of texts.

    Attributes:
        vision: every feature of the frozen CLIP.
        pixel_embeddings: [b, h, w, d] float32, not normalised; h, w are four times the patches.
        mask_logits: [b, n, h, w] float32, `w * similarity + b` of every image with every text;
            their sigmoid is the soft mask.
    """

    vision: VisionOutput
    pixel_embeddings: jax.Array
    mask_logits: jax.Array


class Sim2Mask(nn.Module):
    """Learned affine map from cosine similarity to mask logits (TCL section 3.2)."""

    @nn.compact
    def __call__(self, similarity: Float[Array, "b n h w"]) -> Float[Array, "b n h w"]:
        w = self.param("w", nn.initializers.constant(10.0), ())
        b = self.param("b", nn.initializers.constant(-2.5), ())
        return mask_logits(similarity, w, b)


class TCL(nn.Module):
    """Text-grounded Contrastive Learning (Cha et al., CVPR 2023).

    Parameters: `clip` (frozen), `grounder`, `sim2mask`, and the two learned log temperatures of
    the losses, `tclf_logit_scale` and `tcli_logit_scale`.

    Attributes:
        config: sizes of the CLIP it builds on.
        tap_layer: CLIP block (counted from 1) whose output feeds the grounder, `ie_freeze` in the
            original code: 11 of 12 for ViT-B/16. The one before the last if None.
        dtype: compute dtype; parameters, norms, softmax and similarities are float32.
        remat: a key of `layers.REMAT`, what the blocks keep for the gradient.
    """

    config: CLIPConfig
    tap_layer: int | None = None
    dtype: Any = jnp.float32
    remat: str = "none"

    def setup(self) -> None:
        c = self.config
        tap = c.tap_of(self.tap_layer)
        if not 0 < tap < c.vision_layers:
            raise ValueError(
                f"tap_layer={tap} leaves the grounder no block to copy; choose 1 to "
                f"{c.vision_layers - 1} for this CLIP of {c.vision_layers} blocks"
            )
        self.clip = CLIP(c, tap, self.dtype, remat=self.remat)
        self.grounder = Grounder(
            width=c.vision_width,
            heads=c.vision_heads,
            blocks_after_tap=c.vision_layers - tap,
            embed_dim=c.embed_dim,
            activation=c.activation,
            dtype=self.dtype,
            remat=self.remat,
        )
        self.sim2mask = Sim2Mask()
        temperature = nn.initializers.constant(INITIAL_LOGIT_SCALE)
        self.tclf_logit_scale = self.param("tclf_logit_scale", temperature, ())
        self.tcli_logit_scale = self.param("tcli_logit_scale", temperature, ())

    def __call__(
        self, image: Float[Array, "b H W 3"], text_embeddings: Float[Array, "n d"]
    ) -> Grounding:
        """Grounds texts in normalised images; see `Grounding`."""
        vision, pixels = self.embed_pixels(image)
        similarity = pixel_text_similarity(pixels, text_embeddings)
        return Grounding(
            vision=vision, pixel_embeddings=pixels, mask_logits=self.sim2mask(similarity)
        )

    def embed_pixels(
        self, image: Float[Array, "b H W 3"]
    ) -> tuple[VisionOutput, Float[Array, "b h w d"]]:
        """The part of `__call__` that needs no text: features of CLIP and pixel embeddings."""
        vision = self.clip.encode_image(image)
        grid = patch_grid(image.shape, self.config.patch_size)
        return vision, self.grounder(vision.tap, grid)

    def initialize(self, image: Float[Array, "b H W 3"], tokens: Int[Array, "n l"]) -> Grounding:
        # Touches every parameter, the text tower's too; for `init` alone.
        _, text, _ = self.clip(image, tokens)
        return self(image, text)

    @property
    def clip_model(self) -> CLIP:
        """The CLIP inside as a module of its own, for the parameters under `clip`."""
        return CLIP(self.config, self.tap_layer, self.dtype, remat=self.remat, parent=None)


def ground(
    model: TCL, params: Any, image: Float[Array, "b H W 3"], text_embeddings: Float[Array, "n d"]
) -> Grounding:
    """Grounds texts in images.

    Args:
        model, params: TCL and all its parameters, `clip` included.
        image: [b, H, W, 3] normalised; H and W multiples of the patch size.
        text_embeddings: [n, d], normalised or not.
    """
    with matmul_precision(model.dtype):
        output = model.apply({"params": params}, image, text_embeddings)
    assert isinstance(output, Grounding)
    return output


def embed_pixels(
    model: TCL, params: Any, image: Float[Array, "b H W 3"]
) -> Float[Array, "b h w d"]:
    """Pixel embeddings of images, as in `Grounding`, without any mask.

    Args:
        model, params, image: as in `ground`.
    """
    with matmul_precision(model.dtype):
        _, pixels = model.apply({"params": params}, image, method=TCL.embed_pixels)
    assert isinstance(pixels, jax.Array)
    return pixels
