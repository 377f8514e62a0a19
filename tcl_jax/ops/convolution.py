"""3x3 convolutions, and those of maps upsampled by two, in fewer multiplications.

Upsampling copies pixels, so the 3x3 convolution of the upsampled map is four 2x2 convolutions of
the small one, whose kernels are sums of the 3x3 kernel's rows and columns: 4/9 of the
multiplications. GPUs and TPUs get that as one transposed convolution, and other 3x3 convolutions as
they are. XLA's convolution for CPUs is slower than its matrix product; there both are bilinear
algorithms, products [tiles, c] x [c, d] between transforms of few additions: 25/144 of the
multiplications where the map is upsampled, and 1/4 where it is not. Gradients take the same forms,
and all of it is a function of the 3x3 kernel, which remains the parameter.

What the CPU's compiler counts, and what is predicted, in GFLOP of the result (the two gradients
take twice that), and the temporary memory in MiB; float32, 768 channels, jax 0.10.2. Each pair is
the plain convolution and this one.

    ============  =========  ===============  ===============  ===============  ================
    result        map        predicted        counted          memory, result   memory, gradient
    ============  =========  ===============  ===============  ===============  ================
    1x56x56       upsampled    33.3     5.8     32.5     6.1      9    85         39    85
    1x56x56       ordinary     33.3     8.3     32.5     8.8      0   122         39   143
    1x112x112     upsampled   133.2    23.1    131.6    23.5     37   124         94   229
    1x112x112     ordinary    133.2    33.3    131.6    34.0      0   202         94   329
    64x28x28      upsampled   532.7    92.5    507.6    93.0    147   170        314   330
    64x28x28      ordinary    532.7   133.2    507.6   134.9      0   344        314   641
    64x56x56      upsampled  2130.8   369.9   2080.4   371.3    588   356       1196   638
    64x56x56      ordinary   2130.8   532.7   2080.4   538.5      0   901       1196  1694
    ============  =========  ===============  ===============  ===============  ================

Of this memory the transformed kernel is 56 and 81 MiB. FLOPs were counted with all tiles at once,
as XLA counts the body of a loop once; memory is that of `STRIP_TILES`.

The decoder's first half-stage (norm, GELU, this convolution, residual) in bfloat16 as the TPU's
compiler counts it (v5e, libtpu 0.0.52), 64 images a chip, plain and sub-pixel:

    ============  =========  ===============  ===============  ================
    result        of         GFLOP            GB accessed      temporary, MiB
    ============  =========  ===============  ===============  ================
    64x28x28      result      508.7   221.2   0.664   0.394      74     0
    64x28x28      gradient   1017.0   442.6   1.614   1.086      93    37
    64x56x56      result     2084.5   917.6   2.941   1.862     809   441
    64x56x56      gradient   4166.8  1835.4   6.545   4.201     884   555
    ============  =========  ===============  ===============  ================

The same as 2x2 convolutions with 4d channels or as four of them, whose results are then woven
together, accesses 1.705 and 1.327 GB instead of the first line's 0.394.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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
    """Lavin and Gray's F(4, 3) for 5 points of interpolation, infinity being the sixth.

    Fast Algorithms for Convolutional Neural Networks, arXiv 1509.09308, section 4.

    Args:
        points: distinct.
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

    Its gradients are of reverse mode alone.

    Args:
        x: [b, h, w, c].
        kernel: [3, 3, c, d], in float32 even where x is not.
    """
    return _conv3x3(x, kernel)


def upsampled_conv3x3(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]
) -> Float[Array, "b H W d"]:
    """`conv3x3` of `upsample_nearest(x, 2)`, [b, 2h, 2w, d], without making the latter.

    Args:
        x, kernel: see `conv3x3`.
    """
    return _upsampled_conv3x3(x, kernel)


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


class _Tiling(NamedTuple):
    # Tiles of a map: `strips` of `rows` times `columns`.
    strips: int
    rows: int
    columns: int


def _tiling(form: Bilinear, x: jax.Array, most: int) -> _Tiling:
    images, height, width, _ = x.shape
    if not isinstance(images, int):  # a symbolic size, of an export
        images = 1
    rows, columns = -(-height // form.step), -(-width // form.step)
    strips = min(rows, -(-images * rows * columns // most))
    # Strips of equal size may hold rows that are not there; no more than an eighth.
    while 8 * (-(-rows // strips) * strips - rows) > rows:
        strips += 1
    return _Tiling(strips, -(-rows // strips), columns)


def _strip_tiles(kernel: jax.Array) -> int:
    return max(STRIP_TILES, *kernel.shape[2:])


def _bilinear(form: Bilinear, x: jax.Array, kernel: jax.Array) -> jax.Array:
    images, height, width, _ = x.shape
    tiling = _tiling(form, x, _strip_tiles(kernel))
    padded, matrices = _pad(form, x, tiling), _transform_kernel(form, kernel)
    shape = (images, TILE * tiling.strips * tiling.rows, TILE * tiling.columns, kernel.shape[3])

    def strip(y: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        tiles = _transform(form, _strip(padded, index, form.step * tiling.rows, 2), tiling)
        results = _results(form, jnp.einsum("pqbrsc,pqcd->pqbrsd", tiles, matrices))
        results = results.astype(y.dtype)
        start = index * TILE * tiling.rows
        return jax.lax.dynamic_update_slice_in_dim(y, results, start, axis=1), None

    y, _ = jax.lax.scan(strip, jnp.zeros(shape, x.dtype), jnp.arange(tiling.strips))
    scale = TILE // form.step
    return y[:, : scale * height, : scale * width]


def _bilinear_gradients(
    form: Bilinear, x: jax.Array, kernel: jax.Array, dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # The transpose of every step of `_bilinear`; as many products for each of the two gradients.
    _, height, width, _ = x.shape
    # A strip's part of the kernel's gradient takes memory too; so have fewer of them.
    tiling = _tiling(form, x, 2 * _strip_tiles(kernel))
    padded, matrices = _pad(form, x, tiling), _transform_kernel(form, kernel)
    rows, columns = TILE * tiling.strips * tiling.rows, TILE * tiling.columns
    dy = dy.astype(jnp.float32)
    dy = jnp.pad(dy, ((0, 0), (0, rows - dy.shape[1]), (0, columns - dy.shape[2]), (0, 0)))

    def strip(sums: tuple[jax.Array, jax.Array], index: jax.Array) -> tuple[Any, None]:
        dx, dmatrices = sums
        tiles = _transform(form, _strip(padded, index, form.step * tiling.rows, 2), tiling)
        dproducts = _results_transposed(form, _strip(dy, index, TILE * tiling.rows, 0), tiling)
        dmatrices += jnp.einsum("pqbrsc,pqbrsd->pqcd", tiles, dproducts)
        dtiles = jnp.einsum("pqbrsd,pqcd->pqbrsc", dproducts, matrices)
        start = index * form.step * tiling.rows
        old = _strip(dx, index, form.step * tiling.rows, 2)
        new = old + _transform_transposed(form, dtiles)
        return (jax.lax.dynamic_update_slice_in_dim(dx, new, start, axis=1), dmatrices), None

    sums = (jnp.zeros_like(padded), jnp.zeros_like(matrices))
    (dx, dmatrices), _ = jax.lax.scan(strip, sums, jnp.arange(tiling.strips))
    dx = dx[:, 1 : height + 1, 1 : width + 1]
    dkernel = jnp.matmul(_on_taps(form).T, dmatrices.reshape(-1, dmatrices[0, 0].size))
    return dx.astype(x.dtype), dkernel.reshape(kernel.shape).astype(kernel.dtype)


def _pad(form: Bilinear, x: jax.Array, tiling: _Tiling) -> jax.Array:
    # Zeros before the first sample, and after the last as many as complete the tiles.
    _, height, width, _ = x.shape
    below = form.step * tiling.strips * tiling.rows - height + 1
    right = form.step * tiling.columns - width + 1
    return jnp.pad(x.astype(jnp.float32), ((0, 0), (1, below), (1, right), (0, 0)))


def _strip(x: jax.Array, index: jax.Array, rows: int, more: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, index * rows, rows + more, axis=1)


def _on_taps(form: Bilinear) -> np.ndarray:
    return np.kron(form.kernels, form.kernels).astype(np.float32)


def _transform_kernel(form: Bilinear, kernel: jax.Array) -> jax.Array:
    # [3, 3, c, d] -> [p, p, c, d]; as one product, which reads and writes everything once.
    taps = kernel.astype(jnp.float32).reshape(9, -1)
    count = len(form.kernels)
    return jnp.matmul(_on_taps(form), taps).reshape(count, count, *kernel.shape[2:])


def _transform(form: Bilinear, x: jax.Array, tiling: _Tiling) -> jax.Array:
    # [b, rows, columns, c] -> [p, p, b, tile rows, tile columns, c]
    down = jnp.stack(_combine(form.inputs, _samples(form, x, tiling.rows, 1)))
    return jnp.stack(_combine(form.inputs, _samples(form, down, tiling.columns, 3)), axis=1)


def _transform_transposed(form: Bilinear, tiles: jax.Array) -> jax.Array:
    weights = form.inputs.T
    across = _overlap(form, _combine(weights, [tiles[:, q] for q in range(tiles.shape[1])]), 3)
    return _overlap(form, _combine(weights, list(across)), 1)


def _results(form: Bilinear, products: jax.Array) -> jax.Array:
    # [p, p, b, tile rows, tile columns, d] -> [b, rows, columns, d]
    count, _, b, rows, columns, d = products.shape
    across = jnp.stack(_combine(form.outputs, [products[:, q] for q in range(count)]), axis=4)
    down = jnp.stack(_combine(form.outputs, list(across)), axis=2)
    return down.reshape(b, TILE * rows, TILE * columns, d)


def _results_transposed(form: Bilinear, dy: jax.Array, tiling: _Tiling) -> jax.Array:
    b, *_, d = dy.shape
    dy = dy.reshape(b, tiling.rows, TILE, tiling.columns, TILE, d)
    weights = form.outputs.T
    down = jnp.stack(_combine(weights, [dy[:, :, i] for i in range(TILE)]))
    return jnp.stack(_combine(weights, [down[..., i, :] for i in range(TILE)]), axis=1)


def _samples(form: Bilinear, x: jax.Array, tiles: int, axis: int) -> list[jax.Array]:
    # For each of a tile's samples, those of all tiles.
    last = form.step * (tiles - 1) + 1
    return [jax.lax.slice_in_dim(x, i, i + last, form.step, axis) for i in range(form.step + 2)]


def _overlap(form: Bilinear, samples: Sequence[jax.Array], axis: int) -> jax.Array:
    # The transpose of `_samples`: a tile's last two samples are the next one's first two.
    def shifted(x: jax.Array, tiles: int) -> jax.Array:
        return jnp.pad(x, [(tiles, 1 - tiles) if i == axis else (0, 0) for i in range(x.ndim)])

    phases = [shifted(x, 0) for x in samples[: form.step]]
    for i, x in enumerate(samples[form.step :]):
        phases[i] += shifted(x, 1)
    joined = jnp.stack(phases, axis=axis + 1)
    shape = joined.shape
    joined = joined.reshape(*shape[:axis], -1, *shape[axis + 2 :])
    return jax.lax.slice_in_dim(joined, 0, joined.shape[axis] - form.step + 2, axis=axis)


def _combine(weights: np.ndarray, parts: Sequence[jax.Array]) -> list[jax.Array]:
    # Sums of the parts, a row of weights each; written out, since most weights are 0 or 1.
    sums = []
    for row in weights:
        terms = [
            part if weight == 1 else float(weight) * part
            for weight, part in zip(row, parts, strict=True)
            if weight
        ]
        sums.append(functools.reduce(jnp.add, terms))
    return sums


def _by_platform(form: Bilinear, direct: Convolution) -> Convolution:
    """On a CPU matrix products of `form`, elsewhere `direct`; so are the gradients."""

    @jax.custom_vjp
    def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.platform_dependent(
            x, kernel, cpu=functools.partial(_bilinear, form), default=direct
        )

    def forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        return convolution(x, kernel), (x, kernel)

    def backward(given: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.lax.platform_dependent(
            *given,
            dy,
            cpu=functools.partial(_bilinear_gradients, form),
            default=lambda x, kernel, dy: jax.vjp(direct, x, kernel)[1](dy),
        )

    convolution.defvjp(forward, backward)
    return convolution


_conv3x3 = _by_platform(ORDINARY, _plain)
_upsampled_conv3x3 = _by_platform(UPSAMPLED, _sub_pixel)
