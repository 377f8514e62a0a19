"""From pixels to the numbers that the model takes."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

PixelStatistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of the channels of RGB in [0, 1]."""
IMAGENET: PixelStatistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""TCL feeds CLIP with these and not with CLIP's own."""
CLIP_PIXELS: PixelStatistics = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
"""CLIP's own, with which it was trained."""
PIXELS = {"imagenet": IMAGENET, "clip": CLIP_PIXELS}
"""Statistics by name."""

AnyArray = TypeVar("AnyArray", jax.Array, np.ndarray)


def normalize(
    image: UInt8[AnyArray, "... 3"] | Float[AnyArray, "... 3"],
    statistics: PixelStatistics = IMAGENET,
) -> Float[AnyArray, "... 3"]:
    """RGB bytes (uint8, 0 to 255) to normalised float32; floating input is taken as normalised.

    NumPy's arrays stay on the host.
    """
    if jnp.issubdtype(image.dtype, jnp.floating):
        return image.astype(np.float32)
    mean, std = (np.array(values, np.float32) * 255 for values in statistics)
    return (image.astype(np.float32) - mean) / std


def renormalize(
    image: Float[Array, "... 3"], statistics: PixelStatistics, others: PixelStatistics
) -> Float[Array, "... 3"]:
    """Images normalised with some statistics, as if it had been with others."""
    if statistics == others:
        return image
    (mean, std), (other_mean, other_std) = (
        jnp.asarray(x, jnp.float32) for x in (statistics, others)
    )
    return (image * std + (mean - other_mean)) / other_std


def erase(
    image: Float[Array, "b h w c"], boxes: Int[Array, "b 4"], keys: Key[Array, "b"]
) -> Float[Array, "b h w c"]:
    """Replaces a rectangle of each image by standard normal noise, drawn for every value.

    Args:
        image: normalised.
        boxes: (top, left, height, width) in pixels; an empty one erases nothing.
        keys: of the noise of each image.
    """
    inside = inside_boxes(boxes, image.shape[1], image.shape[2])[..., None]
    draw = partial(jax.random.normal, shape=image.shape[1:], dtype=image.dtype)
    return jnp.where(inside, jax.vmap(draw)(keys), image)


def inside_boxes(
    boxes: Int[Array, "b 4"], rows: int, columns: int
) -> Bool[Array, "b rows columns"]:
    """Which pixels of images are inside of a rectangle, one for each image, as in `erase`."""
    y, x = jnp.arange(rows), jnp.arange(columns)
    top, left, height, width = boxes.T[:, :, None]
    down = (y >= top) & (y < top + height)
    across = (x >= left) & (x < left + width)
    return down[:, :, None] & across[:, None, :]


def center_offset(size: int, multiple: int) -> tuple[int, int]:
    """Size padded to a multiple, and how much of the padding lies before (the smaller half)."""
    padded = -(-size // multiple) * multiple
    return padded, (padded - size) // 2


def center_pad(image: Float[Array, "b H W c"], multiple: int) -> tuple[jax.Array, tuple[int, int]]:
    """Images padded with zeros to a multiple (see `center_offset`), and their (top, left) in it."""
    height, width = image.shape[1:3]
    (rows, top), (columns, left) = center_offset(height, multiple), center_offset(width, multiple)
    below, right = rows - height - top, columns - width - left
    return jnp.pad(image, ((0, 0), (top, below), (left, right), (0, 0))), (top, left)


def pad_black(
    image: Float[Array, "b H W 3"], multiple: int, statistics: PixelStatistics
) -> Float[Array, "b h w 3"]:
    """Normalised images with black below and at the right, to multiples of the patch."""
    batch, *size, channels = image.shape
    size = [-(-side // multiple) * multiple for side in size]
    black = normalize(jnp.zeros(channels, jnp.uint8), statistics)
    canvas = jnp.broadcast_to(black, (batch, *size, channels))
    return canvas.at[:, : image.shape[1], : image.shape[2]].set(image)
