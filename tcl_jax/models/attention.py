"""What a token may look at: one small function per kind of attention.

Each takes queries, keys and values of all heads and returns the mixed values. Softmax runs in
float32 whatever the compute dtype.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

AttentionFn = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(query, key, value), each [b, l, heads, d] -> [b, l, heads, d]."""


def _attend(
    query: Float[Array, "b l h d"],
    key: Float[Array, "b l h d"],
    value: Float[Array, "b l h d"],
    visible: Bool[Array, "l l"] | None = None,
) -> Float[Array, "b l h d"]:
    scale = query.shape[-1] ** -0.5
    scores = jnp.einsum("bqhd,bkhd->bhqk", query * scale, key, preferred_element_type=jnp.float32)
    if visible is not None:
        scores = jnp.where(visible, scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


def full_attention(
    query: Float[Array, "b l h d"], key: Float[Array, "b l h d"], value: Float[Array, "b l h d"]
) -> Float[Array, "b l h d"]:
    """Every token attends to every token (CLIP's vision tower)."""
    return _attend(query, key, value)


def causal_attention(
    query: Float[Array, "b l h d"], key: Float[Array, "b l h d"], value: Float[Array, "b l h d"]
) -> Float[Array, "b l h d"]:
    """Every token attends to itself and to earlier tokens (CLIP's text tower)."""
    length = query.shape[1]
    return _attend(query, key, value, jnp.tril(jnp.ones((length, length), bool)))


def self_only_attention(
    query: Float[Array, "b l h d"], key: Float[Array, "b l h d"], value: Float[Array, "b l h d"]
) -> Float[Array, "b l h d"]:
    """Every token attends to itself alone, so attention returns its value.

    The MaskCLIP change to the last block (Zhou et al., ECCV 2022), which TCL builds on.
    """
    del query, key
    return value
