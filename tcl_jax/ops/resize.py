"""Image resizing as PyTorch's `interpolate` does it, written as two small dense matrices.

`jax.image.resize` differs: its bicubic kernel has a = -0.5 and it antialiases when shrinking.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

CUBIC_A = -0.75
"""Free parameter of the cubic kernel in PyTorch and OpenCV."""


@functools.cache
def resize_matrix(in_size: int, out_size: int, *, method: str, align_corners: bool) -> np.ndarray:
    """Weights of every input sample in every output sample, [out_size, in_size] float32.

    Args:
        in_size, out_size: samples before and after.
        method: "bilinear" or "bicubic".
        align_corners: whether the outermost samples coincide, rather than the outer edges.
    """
    taps = {"bilinear": 2, "bicubic": 4}
    if method not in taps:
        raise ValueError(f"resize method {method!r} is unknown; choose bilinear or bicubic")
    out = np.arange(out_size, dtype=np.float64)
    if align_corners:
        position = out * ((in_size - 1) / max(out_size - 1, 1))
    else:
        position = (out + 0.5) * (in_size / out_size) - 0.5
        if method == "bilinear":
            position = np.maximum(position, 0.0)
    first = np.floor(position).astype(np.int64)
    matrix = np.zeros((out_size, in_size), np.float64)
    rows = np.arange(out_size)
    for tap in range(taps[method]):
        source = first + tap - (taps[method] // 2 - 1)
        distance = np.abs(position - source)
        weight = np.maximum(1 - distance, 0) if method == "bilinear" else _cubic(distance)
        np.add.at(matrix, (rows, np.clip(source, 0, in_size - 1)), weight)
    return matrix.astype(np.float32)


def _cubic(x: np.ndarray) -> np.ndarray:
    a = CUBIC_A
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def resize(
    x: Float[Array, "*batch h w c"],
    shape: Sequence[int],
    *,
    method: str = "bilinear",
    align_corners: bool = False,
) -> Float[Array, "*batch H W c"]:
    """Resizes the last but two and last but one axes, in float32; nothing is antialiased.

    Args:
        x: [..., h, w, c].
        shape: rows and columns of the result.
        method, align_corners: see `resize_matrix`.
    """
    if x.shape[-3:-1] == tuple(shape):
        return x.astype(jnp.float32)
    rows, columns = (
        resize_matrix(i, o, method=method, align_corners=align_corners)
        for i, o in zip(x.shape[-3:-1], shape, strict=True)
    )
    highest = jax.lax.Precision.HIGHEST
    x = jnp.einsum("Hh,...hwc->...Hwc", rows, x.astype(jnp.float32), precision=highest)
    return jnp.einsum("Ww,...hwc->...hWc", columns, x, precision=highest)


def upsample_nearest(x: Float[Array, "*batch h w c"], factor: int) -> Float[Array, "*batch H W c"]:
    """Repeats every row and column `factor` times."""
    return jnp.repeat(jnp.repeat(x, factor, axis=-3), factor, axis=-2)
