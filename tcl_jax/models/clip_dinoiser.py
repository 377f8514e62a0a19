"""CLIP-DINOiser (Wysoczanska et al., ECCV 2024, arXiv 2312.12359): MaskCLIP's patches, pooled.

Of the features of a middle block of CLIP, a convolution predicts which patches DINO would find
alike, and another one which show an object at all. What is learned is this head alone:

    projection      {kernel [3, 3, c, m], bias [m]}, of whose results cosines are taken
    background      {kernel [1, 1, c, 1], bias [1]}, positive where there is an object

for patches of c channels, the blocks' width.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.nn.initializers import lecun_normal
from jaxtyping import Array, Bool, Float, Key

from tcl_jax.models import flops
from tcl_jax.models.clip import encode_image
from tcl_jax.models.clip_method import CLIPMethod
from tcl_jax.models.decoder import UPSAMPLING
from tcl_jax.models.dense import MaskCLIP
from tcl_jax.models.layers import layer_norm
from tcl_jax.models.method import Dense, Image, MaskOptions, Masks, Texts, refine_masks
from tcl_jax.ops.convolution import conv3x3
from tcl_jax.ops.images import pad_black
from tcl_jax.ops.masking import l2_normalize, pixel_text_cosines

GAMMA = 0.2
"""Cosine below which two patches have nothing to do with each other (the paper's gamma)."""
DELTA = 0.99
"""Probability from which a patch is no background, whatever the head says (the paper's delta)."""
LOGIT_SCALE = 100.0
"""What cosines of patches and texts are multiplied by before their softmax."""
LAYER = 3
"""The middle features are of the block that is this one from the end."""
SUM_EPS = 1e-6
"""Added to the sum of the weights that a pooled patch is divided by."""


@struct.dataclass
class Pooled:
    """Results for images, float32; `jit` drops what the caller leaves unread.

    Attributes:
        correlations: [b, h w, h w] cosines of the patches, as the head predicts DINO's.
        features: [b, h, w, d] MaskCLIP's, each the mean of those of patches that are alike; not
            normalised.
        objectness: [b, h, w] logit of whether a patch shows an object, not background.
    """

    correlations: jax.Array
    features: jax.Array
    objectness: jax.Array


def init_head(key: Key[Array, ""], width: int, channels: int) -> dict[str, Any]:
    """A head to learn, for blocks of a width; kernels drawn by LeCun's rule."""
    projection, background = jax.random.split(key)
    return {
        "projection": {
            "kernel": lecun_normal((0, 1, 2))(projection, (3, 3, width, channels)),
            "bias": jnp.zeros(channels),
        },
        "background": {
            "kernel": lecun_normal((0, 1, 2))(background, (1, 1, width, 1)),
            "bias": jnp.zeros(1),
        },
    }


def pool(head: Any, middle: Float[Array, "b h w c"], embedded: Float[Array, "b h w d"]) -> Pooled:
    """What the head makes of images, each by itself (the paper's method, after training).

    Of their patches it takes those of the middle block, as its MLP does, and those in the texts'
    space.
    """
    batch, rows, columns, _ = middle.shape
    # The border is repeated: convolved is one patch more on each side, whose own result is left.
    wide = jnp.pad(middle, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    projected = conv3x3(wide, head["projection"]["kernel"])[:, 1:-1, 1:-1]
    projected = l2_normalize(projected + head["projection"]["bias"])
    flat = projected.reshape(batch, rows * columns, projected.shape[-1])
    correlations = jnp.einsum("bic,bjc->bij", flat, flat)
    weights = jnp.where(correlations < GAMMA, 0.0, correlations)
    values = embedded.reshape(batch, rows * columns, embedded.shape[-1])
    total = weights.sum(axis=-1, keepdims=True) + SUM_EPS
    pooled = jnp.einsum("bij,bjd->bid", weights, values) / total
    background = head["background"]
    objectness = (l2_normalize(middle) @ background["kernel"][0, 0] + background["bias"])[..., 0]
    return Pooled(correlations, pooled.reshape(embedded.shape), objectness)


@dataclasses.dataclass(frozen=True)
class CLIPDINOiser(CLIPMethod):
    """CLIP-DINOiser, of the parameters `clip` and `head`, on images of any size.

    An image is padded below and at the right with black to whole patches, and its masks are those
    of all patches, stretched over the image, as the authors' are.

    Attributes:
        config: sizes of the CLIP; the released head is for LAION-2B's ViT-B/16.
        channels: of the head's projection.

    Raises:
        ValueError: if the CLIP has too few blocks.
    """

    channels: int = 256
    dtype: Any = jnp.float32

    name = "clip_dinoiser"
    title = "CLIP-DINOiser"
    parameters = ("clip", "head")
    cleans = finds_background = True
    protocol = "clip_dinoiser"
    own_pixels = "clip"
    described = ("config", "channels")
    patch_size = 1

    def __post_init__(self) -> None:
        if (blocks := self.config.vision_layers) < LAYER:
            raise ValueError(
                f"this CLIP has {blocks} blocks, and CLIP-DINOiser reads the last but two; choose "
                f"a CLIP of at least {LAYER}"
            )

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        clip, head = jax.random.split(key)
        params = init_head(head, self.config.vision_width, self.channels)
        return {"clip": self.clip_model.init(clip), "head": params}

    def seen_size(self, size: tuple[int, int]) -> tuple[int, int]:
        height, width = (side + -side % self.config.patch_size for side in size)
        return height, width

    def pooled(self, params: Any, image: Float[Array, "b H W 3"]) -> Pooled:
        """What the head makes of normalised images of any size."""
        padded = pad_black(image, self.config.patch_size, self.pixel_statistics)
        features = encode_image(self.clip_model, params["clip"], padded).features
        embedded = MaskCLIP(self.config, self.dtype).embed_patches(params["clip"], features)
        before = self.config.vision_layers - LAYER
        tokens = features.after(before) + features.blocks[before].attended
        norm = params["clip"]["visual"][f"blocks_{before}"]["ln_2"]
        middle = features.patches(layer_norm(tokens, norm, self.clip_model.vision.eps))
        return pool(params["head"], middle, embedded)

    def dense_features(self, params: Any, image: Image) -> Dense:
        """MaskCLIP's patches, each the mean of those that the head finds alike."""
        return self.pooled(params, image).features

    def probabilities(
        self, params: Any, image: Image, text_embeddings: Texts, options: MaskOptions
    ) -> Masks:
        """Softmax over the texts; with cleaning the first of them stands for the background.

        It is certain where the head sees no object, while the others' probabilities stay.
        """
        found, nothing = self._classify(params, image, text_embeddings, options.logit_scale)
        if not options.cleaning:
            return found
        return found.at[..., 0].set(jnp.where(nothing, 1.0, found[..., 0]))

    def masks(
        self, params: Any, image: Image, text_embeddings: Texts, options: MaskOptions
    ) -> Masks:
        """The probabilities at the authors' scale, refined where the options say so.

        None of the texts is the background's: with cleaning there is no mask of any where the head
        sees no object.
        """
        masks, nothing = self._classify(params, image, text_embeddings, LOGIT_SCALE)
        if options.cleaning:
            masks = jnp.where(nothing[..., None], 0.0, masks)
        if options.refine == "pamr":
            padded = pad_black(image, self.config.patch_size, self.pixel_statistics)
            masks = refine_masks(padded, masks, [UPSAMPLING * side for side in masks.shape[1:3]])
        return masks

    def _classify(
        self,
        params: Any,
        image: Float[Array, "b H W 3"],
        text_embeddings: Float[Array, "n d"],
        logit_scale: float,
    ) -> tuple[Float[Array, "b h w n"], Bool[Array, "b h w"]]:
        """Softmax over the texts, and where there is no object nor a text that is nearly sure."""
        pooled, real = self.pooled(params, image), jnp.any(text_embeddings != 0, axis=-1)
        cosines = pixel_text_cosines(pooled.features, text_embeddings)
        found = jax.nn.softmax(logit_scale * cosines, axis=-1, where=real)
        # Of a single text the softmax says nothing.
        sure = (found.max(axis=-1) >= DELTA) & (real.sum() > 1)
        return found, ~sure & (pooled.objectness <= 0)

    def flops(self, side: int, texts: int, options: MaskOptions) -> flops.Parts:
        del options
        c, padded = self.config, -(-side // self.config.patch_size) * self.config.patch_size
        patches, width = (padded // c.patch_size) ** 2, c.vision_width
        projection = 2 * 9 * width * self.channels
        return {
            **flops.dense_masks(c.tower, padded, texts),
            "head": patches * (projection + 2 * width + 2 * patches * self.channels),
            "pooling": 2 * patches**2 * c.embed_dim,
        }

    @property
    def summary(self) -> str:
        return f"CLIP-DINOiser, a head of {self.channels} channels on {self.config.title}"
