"""Pixel-adaptive mask refinement (Araslanov & Roth, CVPR 2020)."""

from __future__ import annotations

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
) -> Float[Array, "b H W n"]:
    """Masks that follow the image's own edges, float32.

    Every iteration replaces a pixel's mask by the affinity-weighted mean of its neighbours' (8 per
    dilation, the border replicated). The mask is first resized bilinearly, `align_corners=True`, to
    the image's size.

    Args:
        image: [b, H, W, 3] normalised.
        mask: [b, h, w, n] soft masks.
        dilations: distances of the neighbours, in pixels.
        iterations: number of times the masks are averaged.
    """
    image = image.astype(jnp.float32)
    mask = resize(mask, image.shape[1:3], align_corners=True)
    offsets = [(d * y, d * x) for d in dilations for y, x in NEIGHBOURS]
    affinity = _affinity(image, offsets, len(dilations))

    def refine(_: Int[Array, ""], mask: jax.Array) -> jax.Array:
        shifted = _Shifts(mask, max(dilations))
        total = jnp.zeros_like(mask)
        # One neighbour at a time: all 48 shifted copies would be 48 times the masks' memory.
        for k, offset in enumerate(offsets):
            total = total + affinity[k][..., None] * shifted[offset]
        return total

    return jax.lax.fori_loop(0, iterations, refine, mask)


def _affinity(
    image: Float[Array, "b H W 3"], offsets: list[tuple[int, int]], dilations: int
) -> Float[Array, "k b H W"]:
    """Softmax over the neighbours of the mean over channels of -|I_p - I_q| / (1e-8 + 0.1 std)."""
    shifted = _Shifts(image, max(abs(v) for offset in offsets for v in offset))
    neighbours = [shifted[offset] for offset in offsets]
    # The centre counts once per dilation, as in the original.
    count = len(offsets) + dilations
    mean = (sum(neighbours) + dilations * image) / count
    squares = sum(jnp.square(n - mean) for n in neighbours)
    squares = squares + dilations * jnp.square(image - mean)
    std = jnp.sqrt(squares / (count - 1))
    scale = 1.0 / (1e-8 + 0.1 * std)
    logits = [-jnp.mean(jnp.abs(n - image) * scale, axis=-1) for n in neighbours]
    return jax.nn.softmax(jnp.stack(logits), axis=0)


class _Shifts:
    """Copies of a map shifted by whole pixels, the border replicated."""

    def __init__(self, x: Float[Array, "b H W c"], reach: int) -> None:
        self._reach, self._shape = reach, x.shape
        self._padded = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")

    def __getitem__(self, offset: tuple[int, int]) -> Float[Array, "b H W c"]:
        (top, left), (_, height, width, _) = offset, self._shape
        top, left = top + self._reach, left + self._reach
        return self._padded[:, top : top + height, left : left + width]
