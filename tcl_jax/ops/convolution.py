"""3x3 convolutions, and those of maps upsampled by two, in fewer multiplications.

Upsampling copies pixels, so the 3x3 convolution of the upsampled map is four 2x2 convolutions of
the small one, whose kernels are sums of the 3x3 kernel's rows and columns: 4/9 of the
multiplications. GPUs and TPUs get that as one transposed convolution, and other 3x3 convolutions as
they are. XLA's convolution for CPUs is slower than its matrix product; there both are bilinear
algorithms, products [tiles, c] x [c, d] between transforms of few additions: 25/144 of the
multiplications where the map is upsampled, and 1/4 where it is not. All of it is a function of the
3x3 kernel, which remains the parameter.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Convolution = Callable[[jax.Array, jax.Array], jax.Array]

TILE = 4
"""Rows and columns of the result that one tile of the bilinear algorithms makes."""
STRIP_TILES = 256
"""Tiles transformed at a time: this many, or as many as channels, where they take as much memory as
the transformed kernel does. Matrix products of fewer rows are slower."""


class Bilinear(NamedTuple):
    """An algorithm for 4 successive results of a convolution with 3 taps, in one dimension.

    `outputs @ ((kernels @ kernel) * (inputs @ samples))`; of two dimensions it is applied to rows
    and columns in turn.

    Attributes:
        inputs: [p, s + 2] weights of a tile's samples in each of its p products.
        kernels: [p, 3] weights of the taps.
        outputs: [4, p] weights of the products in the results.
        step: s, samples from a tile to the next.
    """

    inputs: np.ndarray
    kernels: np.ndarray
    outputs: np.ndarray
    step: int


def toom_cook(points: Sequence[float]) -> Bilinear:
    """Lavin and Gray's F(4, 3) for 5 distinct points of interpolation, infinity being the sixth.

    Fast Algorithms for Convolutional Neural Networks, arXiv 1509.09308, section 4.
    """
    count = TILE + 2
    others = [[q for q in points if q != p] for p in points] + [list(points)]
    scale = [math.prod(p - q for q in rest) for p, rest in zip(points, others, strict=False)]
    inputs = np.zeros((count, count))
    for row, rest in zip(inputs, others, strict=True):
        row[: len(rest) + 1] = np.poly(rest)[::-1]
    kernels = np.zeros((count, 3))
    kernels[:-1] = np.vander(points, 3, increasing=True) / np.array(scale)[:, None]
    outputs = np.zeros((TILE, count))
    outputs[:, :-1] = np.vander(points, TILE, increasing=True).T
    kernels[-1, -1] = outputs[-1, -1] = 1
    return Bilinear(inputs, kernels, outputs, TILE)


ORDINARY = toom_cook((0.0, 1.0, -1.0, 0.5, -2.0))
"""36 products for 16 results. Of 768 channels, float32's largest error is less than half of what it
is with the usual points 0, 1, -1, 2, -2."""

UPSAMPLED = Bilinear(
    inputs=np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]]),
    kernels=np.array([[2, 0, 0], [1, 1, 1], [1, -1, -1], [-1, -1, 1], [0, 0, 2]]) / 2,
    outputs=np.array([[1, 1, 1, 0, 0], [0, 1, 0, 1, 0], [0, 1, -1, 0, 0], [0, 1, 0, -1, 1]]),
    step=2,
)
"""25 products for 16 results, of a map upsampled by two: its samples 2i - 1 and 2i are equal.

This is interpolation at the roots of z (z - 1) (z + 1) (z^2 + 1) and at infinity. At z = -1 the
polynomial of such a map is zero, so that product is not needed. Modulo z^2 + 1 it is a multiple of
one number, so that one costs two products instead of three. Weights are 0 and powers of two.
"""


def conv3x3(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "b h w d"]:
    """The 3x3 convolution (cross-correlation) with zero padding, in x's dtype.

    The kernel is in float32 even where x is not. Gradients are of reverse mode alone.
    """
    return _by_platform(ORDINARY, _plain)(x, kernel)


def upsampled_conv3x3(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]
) -> Float[Array, "b H W d"]:
    """`conv3x3` of x with every pixel repeated, [b, 2h, 2w, d], without making that."""
    return _by_platform(UPSAMPLED, _sub_pixel)(x, kernel)


def _by_platform(form: Bilinear, direct: Convolution) -> Convolution:
    """On a CPU `form`, elsewhere `direct`; so are the gradients, which keep x and kernel alone."""
    bilinear = functools.partial(_bilinear, form)

    @jax.custom_vjp
    def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.platform_dependent(x, kernel, cpu=bilinear, default=direct)

    def forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        return convolution(x, kernel), (x, kernel)

    def backward(given: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.lax.platform_dependent(
            *given,
            dy,
            cpu=lambda x, kernel, dy: jax.vjp(bilinear, x, kernel)[1](dy),
            default=lambda x, kernel, dy: jax.vjp(direct, x, kernel)[1](dy),
        )

    convolution.defvjp(forward, backward)
    return convolution


def _plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel.astype(x.dtype), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _sub_pixel(x: jax.Array, kernel: jax.Array) -> jax.Array:
    # Upsampling puts zeros between the samples and sums windows of 2x2; the sums move to the
    # kernel. What is left is a transposed convolution, four of whose 4x4 taps meet a sample.
    kernel = jnp.pad(kernel, ((1, 1), (1, 1), (0, 0), (0, 0)))
    kernel = kernel[:-1] + kernel[1:]
    kernel = kernel[:, :-1] + kernel[:, 1:]
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (1, 1),
        ((2, 2), (2, 2)),
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _bilinear(form: Bilinear, x: jax.Array, kernel: jax.Array) -> jax.Array:
    images, height, width, _ = x.shape
    step, inputs, outputs = form.step, form.inputs, form.outputs
    taps = np.kron(form.kernels, form.kernels).astype(np.float32)
    matrices = jnp.matmul(taps, kernel.astype(jnp.float32).reshape(9, -1))
    matrices = matrices.reshape(len(inputs), len(inputs), *kernel.shape[2:])

    columns = -(-width // step)  # of tiles
    strips, rows = _strips(form, x, max(STRIP_TILES, *kernel.shape[2:]))
    # Zeros before the first sample, and after the last as many as complete the tiles and one more.
    below, right = step * (strips * rows + 1) - 1 - height, step * (columns + 1) - 1 - width
    padded = jnp.pad(x.astype(jnp.float32), ((0, 0), (1, below), (1, right), (0, 0)))
    starts = [step * rows * i for i in range(strips)]
    pieces = jnp.stack([padded[:, start : start + step * (rows + 1)] for start in starts])

    # For the gradient a strip's tiles are made again rather than kept.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def strip(piece: jax.Array) -> jax.Array:
        tiles = jnp.stack(_combine(inputs, _samples(piece, step, axis=1)))
        tiles = jnp.stack(_combine(inputs, _samples(tiles, step, axis=3)), axis=1)
        products = jnp.einsum("pqbrsc,pqcd->pqbrsd", tiles, matrices)
        y = jnp.stack(_combine(outputs, _unstack(products, axis=1)), axis=4)
        y = jnp.stack(_combine(outputs, _unstack(y, axis=0)), axis=2)
        return y.reshape(images, TILE * rows, TILE * columns, kernel.shape[3]).astype(x.dtype)

    y = jnp.moveaxis(jax.lax.map(strip, pieces), 0, 1)
    y = y.reshape(images, strips * TILE * rows, TILE * columns, kernel.shape[3])
    scale = TILE // step
    return y[:, : scale * height, : scale * width]


def _strips(form: Bilinear, x: jax.Array, most: int) -> tuple[int, int]:
    """Strips of a map and their rows of tiles: about `most` tiles a strip, of all images."""
    images, height, width, _ = x.shape
    if not isinstance(images, int):  # a symbolic size, of an export
        images = 1
    rows, columns = -(-height // form.step), -(-width // form.step)
    strips = min(rows, -(-images * rows * columns // most))
    # Strips of equal size may hold rows that are not there; no more than an eighth.
    while 8 * (-(-rows // strips) * strips - rows) > rows:
        strips += 1
    return strips, -(-rows // strips)


def _samples(x: jax.Array, step: int, axis: int) -> list[jax.Array]:
    """For each of a tile's samples, those of all tiles; the last two are the next tile's first."""
    tiles = x.shape[axis] // step - 1
    x = x.reshape(*x.shape[:axis], tiles + 1, step, *x.shape[axis + 1 :])
    own, following = (jax.lax.slice_in_dim(x, i, i + tiles, axis=axis) for i in (0, 1))
    following = jax.lax.slice_in_dim(following, 0, 2, axis=axis + 1)
    return _unstack(own, axis + 1) + _unstack(following, axis + 1)


def _unstack(x: jax.Array, axis: int) -> list[jax.Array]:
    # The transpose of a split is one concatenation, that of indexing a sum of padded arrays.
    return [part.squeeze(axis) for part in jax.lax.split(x, (1,) * x.shape[axis], axis)]


def _combine(weights: np.ndarray, parts: Sequence[jax.Array]) -> list[jax.Array]:
    """Sums of the parts, a row of weights each; written out, since most weights are 0 or 1."""
    sums = []
    for row in weights:
        terms = [
            part if weight == 1 else float(weight) * part
            for weight, part in zip(row, parts, strict=True)
            if weight
        ]
        sums.append(functools.reduce(jnp.add, terms))
    return sums
