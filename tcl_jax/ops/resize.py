"""Image resizing as PyTorch's `interpolate` does it: on accelerators as products with two small
dense matrices, on CPUs as weighted sums of the few samples that each result depends on.

`jax.image.resize` differs: its bicubic kernel has a = -0.5 and it antialiases when shrinking.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

CUBIC_A = -0.75
"""Free parameter of the cubic kernel in PyTorch and OpenCV."""


def resize_matrix(
    in_size: int, out_size: int, *, method: str, align_corners: bool, offset: float = 0.0
) -> np.ndarray:
    """Weights of every input sample in every output sample, [out_size, in_size] float32.

    Args:
        in_size, out_size: samples before and after.
        method: "bilinear" or "bicubic".
        align_corners: whether the outermost samples coincide, rather than the outer edges.
        offset: added to `out_size` in the distance of two samples, `in_size / out_size`.
    """
    sources, weights = _taps(in_size, out_size, method, align_corners, offset)
    matrix = np.zeros((out_size, in_size), np.float64)
    np.add.at(matrix, (np.arange(out_size)[:, None], sources), weights)
    return matrix.astype(np.float32)


def _taps(
    in_size: int, out_size: int, method: str, align_corners: bool, offset: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Input samples that make up every output sample and their weights, both [out_size, taps]."""
    if method not in (taps := {"bilinear": 2, "bicubic": 4}):
        raise ValueError(f"resize method {method!r} is unknown; choose bilinear or bicubic")
    number = taps[method]
    out = np.arange(out_size, dtype=np.float64)
    if align_corners:
        position = out * ((in_size - 1) / max(out_size - 1, 1))
    else:
        position = (out + 0.5) * (in_size / (out_size + offset)) - 0.5
        if method == "bilinear":
            position = np.maximum(position, 0.0)
    first = np.floor(position).astype(np.int64) - (number // 2 - 1)
    sources = first[:, None] + np.arange(number)
    distance = np.abs(position[:, None] - sources)
    weights = np.maximum(1 - distance, 0) if method == "bilinear" else _cubic(distance)
    return np.clip(sources, 0, in_size - 1), weights


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
    """Resizes to rows and columns, in float32, as `resize_matrix` says; nothing is antialiased."""
    if x.shape[-3:-1] == tuple(shape):
        return x.astype(jnp.float32)
    size = (shape[0], shape[1])
    # Accelerators are made for products; on a CPU those of 150 masks take five times as long as
    # the gathers, and as much memory again as the result.
    resized = jax.lax.platform_dependent(
        x.astype(jnp.float32),
        cpu=lambda x: gather(x, size, method, align_corners),
        default=lambda x: multiply(x, size, method, align_corners),
    )
    assert isinstance(resized, jax.Array)
    return resized


def multiply(
    x: Float[Array, "*batch h w c"], shape: tuple[int, int], method: str, align_corners: bool
) -> Float[Array, "*batch H W c"]:
    """`resize` of float32 as products with two dense matrices."""
    rows, columns = (
        resize_matrix(i, o, method=method, align_corners=align_corners)
        for i, o in zip(x.shape[-3:-1], shape, strict=True)
    )
    highest = jax.lax.Precision.HIGHEST
    x = jnp.einsum("Hh,...hwc->...Hwc", rows, x, precision=highest)
    return jnp.einsum("Ww,...hwc->...hWc", columns, x, precision=highest)


def gather(
    x: Float[Array, "*batch h w c"], shape: tuple[int, int], method: str, align_corners: bool
) -> Float[Array, "*batch H W c"]:
    """`resize` of float32 as weighted sums of gathered samples: one loop that stores nothing."""
    for axis, size in zip((-3, -2), shape, strict=True):
        sources, weights = _taps(x.shape[axis], size, method, align_corners)
        columns = jnp.asarray(weights.T, jnp.float32).reshape(-1, size, *(1,) * (-1 - axis))
        taps = (
            weight * jnp.take(x, source, axis=axis, mode="clip")
            for weight, source in zip(columns, sources.T, strict=True)
        )
        x = sum(taps, start=jnp.zeros((), jnp.float32))
    return x


def resize_nearest(
    x: Float[Array, "*batch h w c"], shape: Sequence[int]
) -> Float[Array, "*batch H W c"]:
    """Row i of H is row floor(i h / H), as PyTorch's `interpolate(mode="nearest")` has it."""
    for axis, size in zip((-3, -2), shape, strict=True):
        factor, rest = divmod(size, x.shape[axis])
        if rest:
            x = jnp.take(x, np.arange(size) * x.shape[axis] // size, axis=axis, mode="clip")
        else:
            x = jnp.repeat(x, factor, axis=axis)
    return x
