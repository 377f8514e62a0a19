"""Pixel-adaptive mask refinement (Araslanov & Roth, CVPR 2020; the original's `PAMR`).

An iteration takes 2 * 48 FLOPs per pixel and mask, and of memory little more than the padded masks.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tcl_jax.ops.resize import resize

DILATIONS = (1, 2, 4, 8, 12, 24)
NEIGHBOURS = tuple((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0))


def pamr(
    image: Float[Array, "b H W 3"],
    mask: Float[Array, "b h w n"],
    *,
    dilations: tuple[int, ...] = DILATIONS,
    iterations: int = 10,
    size: Int[Array, "2"] | None = None,
) -> Float[Array, "b H W n"]:
    """Masks that follow the image's own edges, float32.

    Every iteration replaces a pixel's mask by the affinity-weighted mean of its neighbours' (8 per
    dilation, the border replicated). The mask is first resized bilinearly, `align_corners=True`, to
    the image's size.

    Args:
        image: normalised.
        mask: soft masks.
        dilations: distances of the neighbours, in pixels.
        iterations: number of times the masks are averaged.
        size: rows and columns of the images, where those after them only fill up a size that a
            program is compiled for; the border is replicated from there. None: H and W.
    """
    image = image.astype(jnp.float32)
    mask = resize(mask, image.shape[1:3], align_corners=True)
    offsets = [(d * y, d * x) for d in dilations for y, x in NEIGHBOURS]
    affinity = _affinity(jnp.moveaxis(image, -1, 0), offsets, len(dilations), size)
    shifted = partial(_shifted, offsets=offsets, rows=1, size=size)

    def refine(_: Int[Array, ""], mask: jax.Array) -> jax.Array:
        # One sum that compiles to one loop: all 48 copies would be 48 times the masks' memory.
        return sum(
            (
                weight[..., None] * neighbour
                for weight, neighbour in zip(affinity, shifted(mask), strict=True)
            ),
            start=jnp.zeros_like(mask),
        )

    return jax.lax.fori_loop(0, iterations, refine, mask)


def _affinity(
    image: Float[Array, "3 b H W"],
    offsets: list[tuple[int, int]],
    dilations: int,
    size: Int[Array, "2"] | None,
) -> Float[Array, "k b H W"]:
    """Softmax over the neighbours of the mean over channels of -|I_p - I_q| / (1e-8 + 0.1 std)."""
    neighbours = _shifted(image, offsets, rows=2, size=size)
    # The centre counts once per dilation, as in the original.
    count = len(offsets) + dilations
    mean = _whole((sum(neighbours) + dilations * image) / count)
    squares = sum(jnp.square(n - mean) for n in neighbours)
    squares = squares + dilations * jnp.square(image - mean)
    scale = _whole(1.0 / (1e-8 + 0.1 * jnp.sqrt(squares / (count - 1))))
    distances = [jnp.abs(n - image) * scale for n in neighbours]
    # Not a mean over the axis: XLA on CPUs makes 48 separate reductions of that, 20 times slower.
    logits = jnp.stack([(red + green + blue) / -3.0 for red, green, blue in distances])
    return jax.nn.softmax(_whole(logits), axis=0)


def _shifted(
    x: jax.Array, offsets: list[tuple[int, int]], *, rows: int, size: Int[Array, "2"] | None
) -> list[jax.Array]:
    """Copies of a map that take their values from so many pixels (down, right), see `pamr`.

    Args:
        rows: axis of rows; columns are the next.
    """
    reach = max(abs(v) for offset in offsets for v in offset)
    height, width = x.shape[rows : rows + 2]
    if size is None:
        widths = [(reach, reach) if axis in (rows, rows + 1) else (0, 0) for axis in range(x.ndim)]
        padded = jnp.pad(x, widths, mode="edge")
    else:
        padded = x
        for axis, length, last in zip((rows, rows + 1), (height, width), size - 1, strict=True):
            places = jnp.clip(jnp.arange(-reach, length + reach), 0, last)
            padded = jnp.take(padded, places, axis=axis, mode="clip")
    padded = _whole(padded)
    before = (slice(None),) * rows
    return [
        padded[*before, reach + y : reach + y + height, reach + x : reach + x + width]
        for y, x in offsets
    ]


def _whole(x: jax.Array) -> jax.Array:
    """Keeps a CPU's compiler from computing an array again for each of its readers."""
    # XLA for TPUs would need up to twice the memory and traffic of batches.
    whole = jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)
    assert isinstance(whole, jax.Array)
    return whole
