"""From the bytes of an image file to a fixed-size uint8 picture, with random crop and flip.

A transform is a picklable callable `(image, rng) -> image`. The crop, which comes first, takes the
bytes of a file too, and decodes no more of a JPEG than it needs. Values stay uint8: normalisation
happens on the device.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tcl_jax.data.exif import exif_turn
from tcl_jax.data.images import MAX_PIXELS, Rgb, check_size, decode, load_rgb, open_bytes

Edge: TypeAlias = int | float
Box: TypeAlias = tuple[Edge, Edge, Edge, Edge]
"""Left, top, right and bottom in pixels, right and bottom exclusive."""
Transform: TypeAlias = Callable[[Any, np.random.Generator], Rgb]

_TRIES = 10


@dataclasses.dataclass(frozen=True)
class Compose:
    """Transforms one after the other, with one random stream."""

    steps: tuple[Transform, ...]

    def __call__(self, image: bytes | Rgb, rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
        """Applies the steps in order; without any, only decodes."""
        for step in self.steps:
            image = step(image, rng)
        return decode(image) if isinstance(image, bytes) else image


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of the image, resized to a square (bilinear, antialiased when shrinking).

    The part's area is uniform in `scale` x the image's, its aspect log-uniform in `ratio`; where
    ten draws do not fit, the largest centred part with an allowed aspect is taken. A JPEG whose
    part is at least twice as large as the result is decoded at a half, quarter or eighth.

    Attributes:
      size: side of the result in pixels.
      scale: smallest and largest share of the area, in (0, 1].
      ratio: smallest and largest width / height.

    Raises:
      ValueError: a size below 1, or a range that is empty or out of bounds.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.size < 1:
            raise ValueError(f"size={self.size}: must be at least 1 pixel.")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale={self.scale}: must be (low, high) with 0 < low <= high <= 1.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio={self.ratio}: must be (low, high) with 0 < low <= high.")

    def __call__(
        self, image: bytes | Rgb, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "size size 3"]:
        """Crops and resizes.

        Raises:
          ImageDecodeError: bytes that cannot be decoded.
        """
        if not isinstance(image, bytes):
            height, width = image.shape[:2]
            return self.resize_part(Image.fromarray(image), self.sample_box(height, width, rng))
        opened = open_bytes(image)
        turn = exif_turn(opened)
        width, height = opened.size
        upright = (width, height) if turn.swap else (height, width)
        box = turn.box_before(self.sample_box(*upright, rng), width=width, height=height)
        needed = (
            max(1, math.ceil(width * self.size / (box[2] - box[0]))),
            max(1, math.ceil(height * self.size / (box[3] - box[1]))),
        )
        # A JPEG can be decoded at a fraction of its size.
        drafted = opened.draft(None, needed) if opened.format in ("JPEG", "MPO") else None
        shrink = width / drafted[1][2] if drafted else 1.0
        left, top, right, bottom = (edge / shrink for edge in box)
        return turn.apply(self.resize_part(load_rgb(opened), (left, top, right, bottom)))

    def sample_box(
        self, height: int, width: int, rng: np.random.Generator
    ) -> tuple[int, int, int, int]:
        """The part to keep, a `Box` of whole pixels."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(_TRIES):
            area = height * width * rng.uniform(*self.scale)
            aspect = math.exp(rng.uniform(low, high))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left = int(rng.integers(width - w + 1))
                top = int(rng.integers(height - h + 1))
                return left, top, left + w, top + h
        w = min(width, max(1, round(height * self.ratio[1])))
        h = min(height, max(1, round(width / self.ratio[0])))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h

    def resize_part(self, image: Image.Image, box: Box) -> UInt8[np.ndarray, "size size 3"]:
        """A part of the image as a square."""
        # Cropped before it is resized: pixels outside of the box must not bleed in.
        left, top = math.floor(box[0]), math.floor(box[1])
        right = min(image.width, math.ceil(box[2]))
        bottom = min(image.height, math.ceil(box[3]))
        inner = (box[0] - left, box[1] - top, min(box[2], right) - left, min(box[3], bottom) - top)
        part = image.crop((left, top, right, bottom))
        return np.asarray(part.resize((self.size, self.size), Image.Resampling.BILINEAR, box=inner))


@dataclasses.dataclass(frozen=True)
class CenterCrop:
    """The middle of the image whose short side is brought to `size` (Pillow's bicubic).

    As torchvision's `Resize` and `CenterCrop` make it of a Pillow image; nothing is random.
    """

    size: int

    def __call__(
        self, image: bytes | Rgb, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "size size 3"]:
        """Resizes and crops.

        Raises:
          ImageDecodeError: bytes that cannot be decoded, or an image so long and thin that it would
            have more than `MAX_PIXELS`.
        """
        del rng
        whole = Image.fromarray(decode(image) if isinstance(image, bytes) else image)
        short = min(whole.size)
        width, height = (self.size * side // short for side in whole.size)
        check_size(width, height, MAX_PIXELS)
        resized = whole.resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        return np.asarray(resized.crop((left, top, left + self.size, top + self.size)))


@dataclasses.dataclass(frozen=True)
class HorizontalFlip:
    """Mirrors left and right.

    Attributes:
      probability: how often, in [0, 1].

    Raises:
      ValueError: a probability outside of [0, 1].
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        """Checks the probability."""
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability={self.probability}: must be within 0 and 1.")

    def __call__(self, image: Rgb, rng: np.random.Generator) -> Rgb:
        """Mirrors or not; always draws one number."""
        return np.asarray(cv2.flip(image, 1)) if rng.random() < self.probability else image
