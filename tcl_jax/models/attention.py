"""Attention variants: from which tokens, and in which shares, a token takes its values.

Each is a function of the queries, keys and values of all heads, [b, l, heads, d], that returns what
every token takes, of the shape and dtype of the values. Weights are float32 whatever the compute
dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Attention = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

Heads: TypeAlias = Float[Array, "b l h d"]
Values: TypeAlias = Float[Array, "b l h e"]

NEIGHBOURHOOD_SIGMA = 5.0
"""NACLIP's standard deviation of the Gaussian around a patch, in patches."""
MOST_BYTES = 2**27
"""Of an image's weights; where they take more, not all are in memory at a time. Those of the 1,029
tokens of DINOv2's ViT-g at 448 pixels take 102 MB, of the 3,137 of DINO's ViT-S/8 236 MB."""
ROWS = 256
"""Queries whose weights are in memory at a time where all take too many bytes. On CPUs that is
faster than all at once, too, as the weights are read while they are in the cache."""


def softmax_attention(
    query: Heads,
    key: Heads,
    value: Values,
    bias: Float[Array, "#b #h #l l"] | Float[Array, "l l"] | None = None,
) -> Values:
    """`softmax(q k^T / sqrt(d) + bias) v`: every token attends to every token."""
    # Heads first: left to einsum, XLA on CPUs transposes the much larger weights instead.
    query, key, value = (
        jnp.moveaxis(x, 2, 1) for x in (query * query.shape[-1] ** -0.5, key, value)
    )

    _, heads, number, _ = query.shape
    if 4 * heads * number * key.shape[2] <= MOST_BYTES:
        return jnp.moveaxis(_attend(query, key, value, bias), 2, 1)
    if bias is not None:
        bias = jnp.broadcast_to(bias, (*bias.shape[:-2], number, bias.shape[-1]))
        bias = jnp.moveaxis(bias, -2, 0)
    rows = (jnp.moveaxis(query, 2, 0), bias)
    mixed = jax.lax.map(lambda row: _attend(row[0], key, value, row[1]), rows, batch_size=ROWS)
    return jnp.moveaxis(mixed, 0, 1)


def _attend(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None
) -> jax.Array:
    """Of all rows, or of one."""
    scores = jnp.einsum("bh...d,bhkd->bh...k", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores if bias is None else scores + bias, axis=-1)
    return jnp.einsum("bh...k,bhke->bh...e", weights.astype(value.dtype), value)


def causal_attention(query: Heads, key: Heads, value: Values) -> Values:
    """Every token attends to itself and to earlier tokens (CLIP's text tower)."""
    length = query.shape[1]
    later = jnp.triu(jnp.full((length, length), -jnp.inf), k=1)
    return softmax_attention(query, key, value, later)


def masked_attention(hidden: Bool[Array, "b l"]) -> Attention:
    """Every token attends to those that are not hidden (padding); where all are, to them all."""
    lowest = jnp.finfo(jnp.float32).min  # finite, so that the softmax of these alone is finite
    return partial(softmax_attention, bias=jnp.where(hidden, lowest, 0.0)[:, None, None])


def self_only_attention(query: Heads, key: Heads, value: Values) -> Values:
    """Every token attends to itself alone, so attention returns its value.

    The MaskCLIP change to the last block (Zhou et al., ECCV 2022), which TCL builds on.
    """
    del query, key
    return value


def correlative_self_attention(query: Heads, key: Heads, value: Values) -> Values:
    """`(softmax(q q^T / sqrt(d)) + softmax(k k^T / sqrt(d))) v`: a token's weights sum to 2.

    The SCLIP change to the last block (Wang et al., ECCV 2024).
    """
    return softmax_attention(query, query, value) + softmax_attention(key, key, value)


def query_attention(query: Heads, key: Heads, value: Values) -> Values:
    """`softmax(q q^T / sqrt(d)) v`.

    The ClearCLIP change to the last block (Lan et al., ECCV 2024).
    """
    del key
    return softmax_attention(query, query, value)


def neighbourhood_attention(grid: tuple[int, int]) -> Attention:
    """`softmax(k k^T / sqrt(d) + omega) v`, omega larger for patches that are near each other.

    The NACLIP change to the last block (Hajimiri et al., WACV 2025). The tokens are the class token
    and then the patches of a grid, row by row.
    """

    def attention(query: Heads, key: Heads, value: Values) -> Values:
        del query
        return softmax_attention(key, key, value, neighbourhood_bias(grid, NEIGHBOURHOOD_SIGMA))

    return attention


def neighbourhood_bias(grid: tuple[int, int], sigma: int | float) -> Float[Array, "l l"]:
    """omega: `exp(-|p - r|^2 / (2 sigma^2))` of any two patches of a grid at p and r.

    [1 + h*w, 1 + h*w] float32 in [0, 1]; zero in the class token's row and column.
    """

    def along(size: int) -> Float[Array, "n n"]:
        place = jnp.arange(size, dtype=jnp.float32)
        return jnp.exp(-((place[:, None] - place) ** 2) / (2 * sigma**2))

    # The Gaussian of a distance in the plane is the product of those along its two axes.
    return jnp.pad(jnp.kron(along(grid[0]), along(grid[1])), ((1, 0), (1, 0)))
