"""Sliding windows: how the protocol resizes an image and cuts it.

Sizes round as mmcv's do and images are resized by OpenCV, since TCL's published scores were made
so; for other methods they are rounded down and resized by Pillow.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tcl_jax.inference.settings import MAX_LONG_SIDE
from tcl_jax.ops.images import center_offset


def working_size(
    height: int,
    width: int,
    short_side: int,
    max_long_side: int = MAX_LONG_SIDE,
    resize: str = "opencv",
) -> tuple[int, int]:
    """Rows and columns after resizing so that the short side is `short_side`.

    The aspect is kept, the long side is at most `max_long_side`, and both are at least 1. They are
    rounded to the nearest, or with `resize="pillow"` down.
    """
    if resize == "opencv":
        scale = min(max_long_side / max(height, width), short_side / min(height, width))
        return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)
    ratio = max(height, width) / min(height, width)
    long_side = int(short_side * ratio)
    if long_side > max_long_side:
        short_side, long_side = max(int(max_long_side / ratio), 1), max_long_side
    return (short_side, long_side) if height < width else (long_side, short_side)


def resize_pixels(
    image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], resize: str = "opencv"
) -> np.ndarray:
    """uint8 image of (rows, columns) = `size`, by one of `settings.RESIZES`."""
    if image.shape[:2] == size:
        return image
    if resize == "pillow":
        return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))
    import cv2  # here, since only images of other sizes need it

    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


@dataclasses.dataclass(frozen=True)
class Axis:
    """Overlapping windows along the rows or the columns of an image.

    Attributes:
        size: pixels of the image.
        window, stride: side and distance of the windows, in pixels.
        patch_size: a window is padded to a multiple of it, the smaller half before.
    """

    size: int
    window: int
    stride: int
    patch_size: int

    @property
    def side(self) -> int:
        """Pixels of each window: of the whole image where that is smaller than a window."""
        return min(self.window, self.size)

    @property
    def starts(self) -> tuple[int, ...]:
        """First pixel of each window; the last window ends at the border."""
        last = self.size - self.side
        return (*range(0, last, self.stride), last)

    @property
    def padded(self) -> int:
        """Pixels of a padded window."""
        return center_offset(self.side, self.patch_size)[0]

    @property
    def before(self) -> int:
        """Pixels of padding before a window."""
        return center_offset(self.side, self.patch_size)[1]


@dataclasses.dataclass(frozen=True)
class SlidingWindow:
    """Overlapping windows, all of one size, that cover a resized image."""

    rows: Axis
    columns: Axis

    @classmethod
    def over(
        cls, size: tuple[int, int], window: int, stride: int, patch_size: int
    ) -> SlidingWindow:
        """Square windows over an image of (rows, columns) = `size`; see `Axis`."""
        return cls(*(Axis(side, window, stride, patch_size) for side in size))

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the image."""
        return self.rows.size, self.columns.size

    @property
    def side(self) -> tuple[int, int]:
        """Rows and columns of a window."""
        return self.rows.side, self.columns.side

    @property
    def padded(self) -> tuple[int, int]:
        """Rows and columns of a padded window."""
        return self.rows.padded, self.columns.padded

    @functools.cached_property
    def windows(self) -> list[tuple[slice, slice]]:
        """Rows and columns of the image that each window shows, row by row."""
        height, width = self.side
        return [
            (slice(top, top + height), slice(left, left + width))
            for top in self.rows.starts
            for left in self.columns.starts
        ]
