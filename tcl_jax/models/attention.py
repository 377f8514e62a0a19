"""What a token may look at: one small function per kind of attention.

Each takes queries, keys and values of all heads and returns the mixed values. Softmax runs in
float32 whatever the compute dtype.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

AttentionFn = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(query, key, value), each [b, l, heads, d] -> [b, l, heads, d]."""

NEIGHBOURHOOD_SIGMA = 5.0
"""NACLIP's standard deviation of the Gaussian around a patch, in patches."""


def _weights(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    bias: Float[Array, "q k"] | None = None,
) -> Float[Array, "b h q k"]:
    query, key = _heads_first(query * query.shape[-1] ** -0.5), _heads_first(key)
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
    return jax.nn.softmax(scores if bias is None else scores + bias, axis=-1)


def _mix(
    weights: Float[Array, "b h q k"], value: Float[Array, "b k h d"]
) -> Float[Array, "b q h d"]:
    mixed = jnp.einsum("bhqk,bhkd->bhqd", weights.astype(value.dtype), _heads_first(value))
    return jnp.moveaxis(mixed, 1, 2)


def _heads_first(x: Float[Array, "b l h d"]) -> Float[Array, "b h l d"]:
    # Left to einsum, XLA on CPUs transposes the much larger weights instead.
    return jnp.moveaxis(x, 2, 1)


def full_attention(
    query: Float[Array, "b l h d"], key: Float[Array, "b l h d"], value: Float[Array, "b l h d"]
) -> Float[Array, "b l h d"]:
    """Every token attends to every token (CLIP's vision tower)."""
    return _mix(_weights(query, key), value)


def causal_attention(
    query: Float[Array, "b l h d"], key: Float[Array, "b l h d"], value: Float[Array, "b l h d"]
) -> Float[Array, "b l h d"]:
    """Every token attends to itself and to earlier tokens (CLIP's text tower)."""
    length = query.shape[1]
    later = jnp.triu(jnp.full((length, length), -jnp.inf), k=1)
    return _mix(_weights(query, key, later), value)


def self_only_attention(
    query: Float[Array, "b l h d"], key: Float[Array, "b l h d"], value: Float[Array, "b l h d"]
) -> Float[Array, "b l h d"]:
    """Every token attends to itself alone, so attention returns its value.

    The MaskCLIP change to the last block (Zhou et al., ECCV 2022), which TCL builds on.
    """
    del query, key
    return value


def correlative_self_attention(
    query: Float[Array, "b l h d"], key: Float[Array, "b l h d"], value: Float[Array, "b l h d"]
) -> Float[Array, "b l h d"]:
    """Tokens attend to those of similar queries, and again to those of similar keys.

    `softmax(q q^T / sqrt(d)) + softmax(k k^T / sqrt(d))`: the weights of a token sum to 2. The
    SCLIP change to the last block (Wang et al., ECCV 2024).
    """
    return _mix(_weights(query, query) + _weights(key, key), value)


def neighbourhood_attention(grid: tuple[int, int]) -> AttentionFn:
    """Tokens attend to those of similar keys, and patches rather to patches nearby.

    `softmax(k k^T / sqrt(d) + omega)` with `omega` of `neighbourhood_bias`. The NACLIP change to
    the last block (Hajimiri et al., WACV 2025).

    Args:
        grid: rows and columns of patches; the tokens are the class token and then these, row by
            row.
    """

    def attention(
        query: Float[Array, "b l h d"], key: Float[Array, "b l h d"], value: Float[Array, "b l h d"]
    ) -> Float[Array, "b l h d"]:
        del query
        return _mix(_weights(key, key, neighbourhood_bias(grid, NEIGHBOURHOOD_SIGMA)), value)

    return attention


def neighbourhood_bias(grid: tuple[int, int], sigma: int | float) -> Float[Array, "l l"]:
    """`exp(-|p - r|^2 / (2 sigma^2))` between the places p, r of any two patches.

    Args:
        grid: rows and columns of patches.
        sigma: standard deviation, in patches.

    Returns:
        [1 + h*w, 1 + h*w] float32 in [0, 1]; zero in the class token's row and column.
    """

    def along(size: int) -> Float[Array, "n n"]:
        place = jnp.arange(size, dtype=jnp.float32)
        return jnp.exp(-((place[:, None] - place) ** 2) / (2 * sigma**2))

    # The Gaussian of a distance in the plane is the product of those along its two axes.
    return jnp.pad(jnp.kron(along(grid[0]), along(grid[1])), ((1, 0), (1, 0)))
