"""The protocol's geometry: resizing, sliding windows, and putting their masks together.

Sizes round as mmcv's do and images are resized by OpenCV, since published scores were made so.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float32, UInt8

from tcl_jax.inference.settings import MAX_LONG_SIDE
from tcl_jax.ops.images import PIXEL_MEAN, PIXEL_STD


@dataclasses.dataclass(frozen=True)
class Window:
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return (
            slice(self.top, self.top + self.height),
            slice(self.left, self.left + self.width),
        )


def working_size(
    height: int, width: int, short_side: int, max_long_side: int = MAX_LONG_SIDE
) -> tuple[int, int]:
    """Rows and columns after resizing so that the short side is `short_side`.

    The aspect is kept, the long side is at most `max_long_side`, and both are at least 1.
    """
    scale = min(max_long_side / max(height, width), short_side / min(height, width))
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def resize_pixels(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> np.ndarray:
    """uint8 image of (rows, columns) = `size`, OpenCV's bilinear."""
    if image.shape[:2] == size:
        return image
    import cv2  # here, since only images of other sizes need it

    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def normalize_pixels(image: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w 3"]:
    """What `ops.images.normalize` does, on the host, so that padding can be zero afterwards."""
    return (image.astype(np.float32) - PIXEL_MEAN) / PIXEL_STD


def sliding_windows(height: int, width: int, window: int, stride: int) -> list[Window]:
    """Windows that cover an image, row by row; the last of a row or column ends at the border.

    All have one size: `window`, or the image's own where that is smaller.
    """
    rows, columns = min(window, height), min(window, width)
    return [
        Window(top, left, rows, columns)
        for top in _starts(height, window, stride)
        for left in _starts(width, window, stride)
    ]


def _starts(size: int, window: int, stride: int) -> list[int]:
    count = max(-(-(size - window) // stride), 0) + 1
    return [max(min(i * stride, size - window), 0) for i in range(count)]


class MergedScores:
    """Mean of the scores of overlapping windows.

    Args:
        height, width: of the image.
        classes: number of scores per pixel.
    """

    def __init__(self, height: int, width: int, classes: int) -> None:
        self._sum = np.zeros((height, width, classes), np.float32)
        self._count = np.zeros((height, width, 1), np.float32)

    def add(self, window: Window, scores: Float32[np.ndarray, "h w n"]) -> None:
        """Adds the scores of one window."""
        self._sum[window.slices] += scores
        self._count[window.slices] += 1

    def mean(self) -> Float32[np.ndarray, "h w n"]:
        """Scores of the image; ends the merging."""
        self._sum /= self._count
        return self._sum
