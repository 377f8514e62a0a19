"""From pixel and text embeddings to masks, and from masks to region embeddings (TCL, section 3.2).

`n` texts and `b` images; pixels lie on the grid of the masks, four times that of the patches.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

NORM_EPS = 1e-6
"""Smallest norm that `l2_normalize` divides by."""
AREA_EPS = 1e-6
"""Added to the area of a mask that `masked_pool` divides by."""


def l2_normalize(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """`x / max(|x|, NORM_EPS)` over the last axis, in float32; a zero vector has zero gradient."""
    x = x.astype(jnp.float32)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    safe = jnp.where(square > NORM_EPS**2, square, 1.0)
    return jnp.where(square > NORM_EPS**2, x / jnp.sqrt(safe), x / NORM_EPS)


def pixel_text_cosines(
    pixels: Float[Array, "b h w d"], texts: Float[Array, "n d"]
) -> Float[Array, "b h w n"]:
    """Cosine similarity of every pixel with every text, float32 in [-1, 1].

    A large product, of the precision of `jax.default_matmul_precision`.
    """
    return jnp.einsum("bhwd,nd->bhwn", l2_normalize(pixels), l2_normalize(texts))


def pixel_text_similarity(
    pixels: Float[Array, "b h w d"], texts: Float[Array, "n d"]
) -> Float[Array, "b n h w"]:
    """`pixel_text_cosines` with the texts before the grid."""
    return jnp.moveaxis(pixel_text_cosines(pixels, texts), -1, 1)


def positive_similarity(
    pixels: Float[Array, "b h w d"], texts: Float[Array, "b d"]
) -> Float[Array, "b h w"]:
    """Cosine similarity of every pixel with the text of its own image, float32 in [-1, 1]."""
    # Not as a product of matrices: to read the pixels takes longer than to multiply them.
    return jnp.sum(l2_normalize(pixels) * l2_normalize(texts)[:, None, None], axis=-1)


def mask_logits(
    similarity: Float[Array, "..."], w: Float[Array, ""], b: Float[Array, ""]
) -> Float[Array, "..."]:
    """`w * similarity + b`, whose sigmoid is the soft mask (the original's `Sim2Mask`)."""
    return w * similarity + b


def straight_through_mask(
    logits: Float[Array, "..."], uniform: Float[Array, "..."], temperature: float = 1.0
) -> Float[Array, "..."]:
    """Hard mask (the original's `gumbel_sigmoid`): 0 or 1, with the gradient of its sigmoid.

    Args:
        logits: of `mask_logits`.
        uniform: noise in (0, 1), turned into logistic noise `log(u / (1 - u))`.
        temperature: of the sigmoid (1 in the paper).
    """
    noise = jnp.log(uniform) - jnp.log1p(-uniform)
    soft = jax.nn.sigmoid((logits + noise) / temperature)
    hard = (soft > 0.5).astype(soft.dtype)
    return hard + soft - jax.lax.stop_gradient(soft)


def masked_pool(
    pixels: Float[Array, "b h w d"], masks: Float[Array, "b n h w"]
) -> Float[Array, "b n d"]:
    """Text-grounded features `v_ij = sum_hw m_ij e_i / (sum_hw m_ij + AREA_EPS)` (TCL eq. 3)."""
    area = jnp.sum(masks, axis=(2, 3))[..., None]
    return jnp.einsum("bnhw,bhwd->bnd", masks, pixels) / (area + AREA_EPS)
