"""Talk2DINO (Barsellotti et al., ICCV 2025, arXiv 2411.19331): CLIP's texts among DINO's patches.

Both towers are frozen, and a small projection of a text's embedding is all that is learned. Images
are patches on a grid [h, w], and the class token looks at another part of them through each of the
`m` heads of the vision tower's last attention. `n` texts have `t` channels, and projected `c`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key

from tcl_jax.models.layers import dense, matmul_precision
from tcl_jax.models.vit import ViT, encode, project
from tcl_jax.ops.masking import l2_normalize, pixel_text_similarity

QUERY_SCALE = 64**-0.5
"""What the class token's query is multiplied by, whatever the size of a head (the original's)."""
CLEANING = 0.2
"""Weight of background cleaning (the original's lambda)."""


# -------------------------------------------------------------------------------- the text's side


def init_projection(key: Key[Array, ""], text_width: int, width: int) -> dict[str, Any]:
    """A projection to learn, from texts of a width to patches of another.

    All is uniform within one over the root of a layer's inputs, as PyTorch's `Linear` begins, which
    the original's two layers are.

    Returns:
        {hidden: {kernel [text_width, width], bias [width]}, out: {kernel [width, width], bias}}.
    """

    def linear(key: Key[Array, ""], inputs: int) -> dict[str, jax.Array]:
        kernel, bias = jax.random.split(key)
        return {
            "kernel": jax.random.uniform(kernel, (inputs, width), minval=-1) * inputs**-0.5,
            "bias": jax.random.uniform(bias, (width,), minval=-1) * inputs**-0.5,
        }

    first, second = jax.random.split(key)
    return {"hidden": linear(first, text_width), "out": linear(second, width)}


def project_text(projection: Any, features: Float[Array, "... t"]) -> Float[Array, "... c"]:
    """`W2 tanh(W1 t + b1) + b2` of CLIP's text features, float32; neither is normalised."""
    with matmul_precision(jnp.float32):
        hidden = jnp.tanh(dense(features, projection["hidden"], jnp.float32))
        return dense(hidden, projection["out"], jnp.float32)


def embed_templates(
    projection: Any, features: Float[Array, "classes templates t"]
) -> Float[Array, "classes c"]:
    """Embedding of a class: the mean of its templates' features, projected, then normalised."""
    return l2_normalize(project_text(projection, features.mean(axis=1)))


# ------------------------------------------------------------------------------- the image's side


@struct.dataclass
class HeadFeatures:
    """What Talk2DINO takes of images; float32. `jit` drops what the caller leaves unread.

    Attributes:
        patches: [b, h, w, c] after the tower's final norm (DINOv2's `x_norm_patchtokens`).
        logits: [b, m, h, w] how much the class token's query is like each patch's key in the last
            block, before RoPE and softmax.
    """

    patches: jax.Array
    logits: jax.Array

    @property
    def disentangled(self) -> Float[Array, "b m c"]:
        """The part of the image that each head looks at: its mean patch, over their number."""
        return attended_mean(self.patches, self.logits)

    @property
    def average(self) -> Float[Array, "b c"]:
        """The same for the mean over the heads' logits (the original's `avg_self_attn_out`)."""
        return attended_mean(self.patches, self.logits.mean(axis=1, keepdims=True))[:, 0]


def head_features(vit: ViT, params: Any, image: Float[Array, "b H W 3"]) -> HeadFeatures:
    """Features of images as `vit.encode` takes them, by a tower with a class token."""
    with matmul_precision(vit.dtype):
        features = encode(vit, params, image)
        (rows, columns), last = features.grid, features.blocks[-1]
        patches = features.patches(project(vit, params, last.output)).astype(jnp.float32)
        query, keys = QUERY_SCALE * last.query[:, 0], last.key[:, -rows * columns :]
        logits = jnp.einsum("bmd,bpmd->bmp", query, keys, preferred_element_type=jnp.float32)
        return HeadFeatures(patches, logits.reshape(*logits.shape[:2], rows, columns))


def attended_mean(
    patches: Float[Array, "b h w c"], logits: Float[Array, "b m h w"]
) -> Float[Array, "b m c"]:
    """Mean of the patches by the softmax of logits, divided by their number as in the original."""
    attention = jax.nn.softmax(logits, axis=(-2, -1))
    found = jnp.einsum("bmhw,bhwc->bmc", attention, patches, precision="highest")
    return found / (logits.shape[-2] * logits.shape[-1])


def choose_heads(
    texts: Float[Array, "b c"], heads: Float[Array, "b m c"]
) -> tuple[Float[Array, "b c"], Int[Array, " b"]]:
    """Of each image the head that is most like its own text, and its number; cosines are compared.

    Texts are projected, and heads `HeadFeatures.disentangled`.
    """
    cosines = jnp.einsum(
        "bc,bmc->bm", l2_normalize(texts), l2_normalize(heads), precision="highest"
    )
    best = jnp.argmax(cosines, axis=1)
    return jnp.take_along_axis(heads, best[:, None, None], axis=1)[:, 0], best


# --------------------------------------------------------------------------------------- the masks


def patch_masks(
    features: HeadFeatures, texts: Float[Array, "n c"], *, cleaning: bool = False
) -> Float[Array, "b h w n"]:
    """Masks on the grid of patches: the sigmoid of the cosine, without scale or offset.

    Texts are projected, normalised or not. With `cleaning` see `clean_background`.
    """
    similarity = pixel_text_similarity(features.patches, texts)
    masks = jax.nn.sigmoid(jnp.moveaxis(similarity, 1, -1))
    return clean_background(masks, features, texts) if cleaning else masks


def clean_background(
    masks: Float[Array, "b h w n"], features: HeadFeatures, texts: Float[Array, "n c"]
) -> Float[Array, "b h w n"]:
    """Mixes into masks where the heads that fit each text look: background cleaning.

    Heads weigh as the softmax over them of the cosine of the text with what they look at. The
    softmax over patches of their logits' mean becomes `(c - low) / high`, by its extremes over all
    texts and patches of the image, and is spread over the masks' range. Divided is by `high`, not
    by `high - low`: the authors' weights are used and judged so. A row of zeros is no text, and
    moves no mask of the others.
    """
    patches, logits = features.patches, features.logits
    # Not softmaxed; and the original divides by the norm itself.
    heads = jnp.einsum("bmhw,bhwc->bmc", logits, patches, precision="highest")
    heads = heads / jnp.linalg.norm(heads, axis=-1, keepdims=True)
    shares = jnp.einsum("nc,bmc->bnm", l2_normalize(texts), heads, precision="highest")
    shares = jax.nn.softmax(shares, axis=-1)
    looked = jnp.einsum("bnm,bmhw->bhwn", shares, logits, precision="highest")
    looked = jax.nn.softmax(looked, axis=(1, 2))

    there, axes = jnp.any(texts != 0, axis=-1), (1, 2, 3)

    def extremes(x: Float[Array, "b h w n"]) -> tuple[jax.Array, jax.Array]:
        low = jnp.min(x, axes, keepdims=True, where=there, initial=jnp.inf)
        return low, jnp.max(x, axes, keepdims=True, where=there, initial=-jnp.inf)

    (low, high), (lowest, highest) = extremes(looked), extremes(masks)
    looked = (looked - low) / high * (highest - lowest) + lowest
    return (masks + CLEANING * looked) / (1 + CLEANING)
