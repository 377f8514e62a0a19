"""TCL: a frozen CLIP, the grounder, and the similarity-to-mask mapping."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Key

from tcl_jax.models import flops
from tcl_jax.models.clip import CLIP, INITIAL_LOGIT_SCALE, CLIPConfig, encode_image
from tcl_jax.models.clip_method import CLIPMethod
from tcl_jax.models.decoder import init_decoder
from tcl_jax.models.dense import MaskCLIP
from tcl_jax.models.grounder import embed_tokens
from tcl_jax.models.layers import matmul_precision
from tcl_jax.models.method import MaskOptions, refine_masks
from tcl_jax.models.vit import Features
from tcl_jax.ops.masking import mask_logits, pixel_text_similarity
from tcl_jax.ops.resize import resize


@struct.dataclass
class Grounding:
    """Results for a batch of images and a set of texts.

    Attributes:
        features: of the frozen CLIP, every block's.
        pixel_embeddings: [b, h, w, d] float32, not normalised; of the masks' pixels, of which there
            are four times as many rows and columns as of patches.
        mask_logits: [b, n, h, w] float32, `w * similarity + b` of every image with every text;
            their sigmoid is the soft mask.
    """

    features: Features
    pixel_embeddings: jax.Array
    mask_logits: jax.Array


@dataclasses.dataclass(frozen=True)
class TCL(CLIPMethod):
    """Text-grounded Contrastive Learning (Cha et al., CVPR 2023).

    Parameters: `clip` (frozen), `grounder`, `sim2mask` (w and b), and the logarithms of the two
    learned inverse temperatures of the losses, `tclf_logit_scale` and `tcli_logit_scale`.

    Attributes:
        config: sizes of the CLIP it builds on.
        feature_layer: block of CLIP, counted from 1, whose output feeds the grounder (`ie_freeze`
            in the original): 11 of 12 for ViT-B/16. 0: the one before the last.
        dtype: compute dtype; parameters, norms, softmax and similarities are float32.
        remat: a key of `layers.REMAT`, what the blocks keep for the gradient.

    Raises:
        ValueError: if the feature layer leaves no block to copy.
    """

    config: CLIPConfig
    feature_layer: int = 0
    dtype: Any = jnp.float32
    remat: str = "none"

    name = "tcl"
    title = "TCL"
    parameters = ("clip", "grounder", "sim2mask")
    mixes_clip = True

    def __post_init__(self) -> None:
        layer, blocks = self.config.feature_layer_of(self.feature_layer), self.config.vision_layers
        if not 0 < layer < blocks:
            raise ValueError(
                f"feature_layer={layer} leaves the grounder no block to copy; choose 1 to "
                f"{blocks - 1} for this CLIP of {blocks} blocks"
            )
        object.__setattr__(self, "feature_layer", layer)

    @property
    def clip_model(self) -> CLIP:
        return CLIP(self.config, self.dtype, self.remat)

    @property
    def copied_blocks(self) -> int:
        """Number of CLIP's blocks that the grounder has a copy of."""
        return self.config.vision_layers - self.feature_layer

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        clip, learned = jax.random.split(key)
        params = self.clip_model.init(clip)
        return {**self.init_learned(learned, params), "clip": params}

    def init_learned(self, key: Key[Array, ""], clip: Any) -> dict[str, Any]:
        """What is learned, at the start: copies of CLIP's blocks, and a fresh decoder.

        Args:
            key: of the decoder.
            clip: parameters of the frozen CLIP.
        """
        visual, first = clip["visual"], self.feature_layer
        copies = {f"blocks_{i}": visual[f"blocks_{first + i}"] for i in range(self.copied_blocks)}
        decoder = init_decoder(key, self.config.vision_width)
        scale = jnp.asarray(INITIAL_LOGIT_SCALE, jnp.float32)
        return {
            "grounder": {
                **copies,
                "decoder": decoder,
                "ln_post": visual["ln_post"],
                "proj": visual["proj"],
            },
            "sim2mask": {"w": jnp.float32(10.0), "b": jnp.float32(-2.5)},
            "tclf_logit_scale": scale,
            "tcli_logit_scale": scale,
        }

    def masks(
        self,
        params: Any,
        image: Float[Array, "b H W 3"],
        text_embeddings: Float[Array, "n d"],
        options: MaskOptions,
    ) -> Float[Array, "b h w n"]:
        """Soft masks on four times the patch grid, MaskCLIP's mixed in by `kp_weight`."""
        grounding = ground(self, params, image, text_embeddings)
        masks = jnp.moveaxis(jax.nn.sigmoid(grounding.mask_logits), 1, -1)
        if options.pamr:
            masks = refine_masks(image, masks, masks.shape[1:3])
        if options.kp_weight:
            maskclip = MaskCLIP(self.config, self.dtype)
            dense = maskclip.soft_masks(params["clip"], grounding.features, text_embeddings)
            dense = resize(dense, masks.shape[1:3])
            masks = options.kp_weight * dense + (1 - options.kp_weight) * masks
        return masks

    def flops(self, side: int, texts: int, options: MaskOptions) -> flops.Parts:
        return flops.tcl_masks(
            self.config, self.copied_blocks, side, texts, mixes_clip=options.kp_weight > 0
        )

    @property
    def summary(self) -> str:
        return f"TCL, feature layer {self.feature_layer} of {self.config.title}"

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "feature_layer": self.feature_layer}

    @classmethod
    def from_description(cls, fields: Mapping[str, Any]) -> TCL:
        return cls(CLIPConfig(**fields["clip"]), fields["feature_layer"])


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
        features, pixels = _embed(model, params, image)
        similarity = pixel_text_similarity(pixels, text_embeddings)
        sim2mask = params["sim2mask"]
        logits = mask_logits(similarity, sim2mask["w"], sim2mask["b"])
        return Grounding(features, pixels, logits)


def embed_pixels(
    model: TCL, params: Any, image: Float[Array, "b H W 3"]
) -> Float[Array, "b h w d"]:
    """Pixel embeddings of images, as in `Grounding`, without any mask.

    Args:
        model, params, image: as in `ground`.
    """
    with matmul_precision(model.dtype):
        return _embed(model, params, image)[1]


def _embed(
    model: TCL, params: Any, image: Float[Array, "b H W 3"]
) -> tuple[Features, Float[Array, "b h w d"]]:
    features = encode_image(model.clip_model, params["clip"], image).features
    tokens = features.after(model.feature_layer)
    return features, embed_tokens(
        model.clip_model.vision, params["grounder"], tokens, features.grid
    )
