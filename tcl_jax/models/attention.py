"""Attention variants: from which tokens, and in which shares, a token takes its values.

Each is a function of the queries and keys of all heads, [b, l, heads, d], that returns the weights
[b, heads, l, l] in float32 whatever the compute dtype, or None for the identity.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Attention = Callable[[jax.Array, jax.Array], jax.Array | None]

NEIGHBOURHOOD_SIGMA = 5.0
"""NACLIP's standard deviation of the Gaussian around a patch, in patches."""


def softmax_weights(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    bias: Float[Array, "#b #h #q k"] | Float[Array, "q k"] | None = None,
) -> Float[Array, "b h q k"]:
    """`softmax(query key^T / sqrt(d) + bias)`."""
    query, key = _heads_first(query * query.shape[-1] ** -0.5), _heads_first(key)
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
    return jax.nn.softmax(scores if bias is None else scores + bias, axis=-1)


def weighted_values(
    weights: Float[Array, "b h q k"] | None, value: Float[Array, "b k h d"]
) -> Float[Array, "b q h d"]:
    """What attention returns for its weights."""
    if weights is None:
        return value
    mixed = jnp.einsum("bhqk,bhkd->bhqd", weights.astype(value.dtype), _heads_first(value))
    return jnp.moveaxis(mixed, 1, 2)


def _heads_first(x: Float[Array, "b l h d"]) -> Float[Array, "b h l d"]:
    # Left to einsum, XLA on CPUs transposes the much larger weights instead.
    return jnp.moveaxis(x, 2, 1)


def full_attention(
    query: Float[Array, "b l h d"], key: Float[Array, "b l h d"]
) -> Float[Array, "b h l l"]:
    """Every token attends to every token (vision transformers)."""
    return softmax_weights(query, key)


def causal_attention(
    query: Float[Array, "b l h d"], key: Float[Array, "b l h d"]
) -> Float[Array, "b h l l"]:
    """Every token attends to itself and to earlier tokens (CLIP's text tower)."""
    length = query.shape[1]
    return softmax_weights(query, key, jnp.triu(jnp.full((length, length), -jnp.inf), k=1))


def masked_attention(hidden: Bool[Array, "b l"]) -> Attention:
    """Every token attends to every token that is not hidden (padded texts).

    Args:
        hidden: tokens that nobody attends to; where all are, each takes the mean of them all.
    """
    lowest = jnp.finfo(jnp.float32).min  # finite, so that the softmax of these alone is finite
    bias = jnp.where(hidden, lowest, 0.0)[:, None, None]

    def attention(
        query: Float[Array, "b l h d"], key: Float[Array, "b l h d"]
    ) -> Float[Array, "b h l l"]:
        return softmax_weights(query, key, bias)

    return attention


def self_only_attention(query: Float[Array, "b l h d"], key: Float[Array, "b l h d"]) -> None:
    """Every token attends to itself alone, so attention returns its value.

    The MaskCLIP change to the last block (Zhou et al., ECCV 2022), which TCL builds on.
    """
    del query, key


def correlative_self_attention(
    query: Float[Array, "b l h d"], key: Float[Array, "b l h d"]
) -> Float[Array, "b h l l"]:
    """`softmax(q q^T / sqrt(d)) + softmax(k k^T / sqrt(d))`: the weights of a token sum to 2.

    The SCLIP change to the last block (Wang et al., ECCV 2024).
    """
    return softmax_weights(query, query) + softmax_weights(key, key)


def query_attention(
    query: Float[Array, "b l h d"], key: Float[Array, "b l h d"]
) -> Float[Array, "b h l l"]:
    """`softmax(q q^T / sqrt(d))`.

    The ClearCLIP change to the last block (Lan et al., ECCV 2024).
    """
    del key
    return softmax_weights(query, query)


def neighbourhood_attention(grid: tuple[int, int]) -> Attention:
    """`softmax(k k^T / sqrt(d) + omega)`, omega larger for patches that are near each other.

    The NACLIP change to the last block (Hajimiri et al., WACV 2025).

    Args:
        grid: rows and columns of patches; the tokens are the class token and then these, row by
            row.
    """

    def attention(
        query: Float[Array, "b l h d"], key: Float[Array, "b l h d"]
    ) -> Float[Array, "b h l l"]:
        del query
        return softmax_weights(key, key, neighbourhood_bias(grid, NEIGHBOURHOOD_SIGMA))

    return attention


def neighbourhood_bias(grid: tuple[int, int], sigma: int | float) -> Float[Array, "l l"]:
    """omega: `exp(-|p - r|^2 / (2 sigma^2))` of any two patches at p and r.

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
