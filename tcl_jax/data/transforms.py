"""From the bytes of an image file to a fixed-size uint8 picture, with random crop and flip.

A transform is a picklable callable `(image, rng) -> image`. The first of a chain may be given the
bytes of a file instead of an array; it then decodes no more of a JPEG than the crop needs. Values
stay uint8: normalisation happens on the device.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Rgb: TypeAlias = UInt8[np.ndarray, "h w 3"]
Edge: TypeAlias = int | float
Transform: TypeAlias = Callable[[bytes | Rgb, np.random.Generator], Rgb]

_TRIES = 10


class ImageDecodeError(ValueError):
    """The bytes are not a readable JPEG, PNG or WebP image."""


def decode(data: bytes) -> Rgb:
    """A whole JPEG, PNG or WebP file as RGB, turned upright as its EXIF data says.

    Transparent pixels are laid over white, 16-bit values are scaled to 8 bits, CMYK, grey and
    palette images are converted; of an animation the first frame is taken.

    Raises:
      ImageDecodeError: the bytes are of another format, damaged or cut short, or declare an
        implausible size.
    """
    image = _open(data)
    turn = _turn(image)
    return turn.apply(np.asarray(_load(image)))


@dataclasses.dataclass(frozen=True)
class Chain:
    """Transforms one after the other, with one random stream.

    Attributes:
      steps: the first may be one that decodes bytes.
    """

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
            box = self.sample_box(height, width, rng)
            return self._resize(Image.fromarray(image), box)
        opened = _open(image)
        turn = _turn(opened)
        width, height = opened.size
        upright = (width, height) if turn.swap else (height, width)
        box = turn.box_before(self.sample_box(*upright, rng), width=width, height=height)
        needed = (
            max(1, math.ceil(width * self.size / (box[2] - box[0]))),
            max(1, math.ceil(height * self.size / (box[3] - box[1]))),
        )
        shrink = _draft(opened, needed)
        left, top, right, bottom = (edge / shrink for edge in box)
        return turn.apply(self._resize(_load(opened), (left, top, right, bottom)))

    def sample_box(
        self, height: int, width: int, rng: np.random.Generator
    ) -> tuple[int, int, int, int]:
        """The part to keep as (left, top, right, bottom) in pixels, right and bottom exclusive."""
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

    def _resize(self, image: Image.Image, box: tuple[Edge, Edge, Edge, Edge]) -> Rgb:
        # Cropped before it is resized: pixels outside of the box must not bleed in.
        left, top = math.floor(box[0]), math.floor(box[1])
        right = min(image.width, math.ceil(box[2]))
        bottom = min(image.height, math.ceil(box[3]))
        inner = (box[0] - left, box[1] - top, min(box[2], right) - left, min(box[3], bottom) - top)
        part = image.crop((left, top, right, bottom))
        return np.asarray(part.resize((self.size, self.size), Image.Resampling.BILINEAR, box=inner))


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

    def __call__(self, image: bytes | Rgb, rng: np.random.Generator) -> Rgb:
        """Mirrors or not; always draws one number.

        Raises:
          ImageDecodeError: bytes that cannot be decoded.
        """
        flip = rng.random() < self.probability
        pixels = decode(image) if isinstance(image, bytes) else image
        return np.ascontiguousarray(pixels[:, ::-1]) if flip else pixels


# ---------------------------------------------------------------------------------- reading files


def _open(data: bytes) -> Image.Image:
    """Reads the header only."""
    try:
        return Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    except Image.DecompressionBombError as error:
        raise ImageDecodeError(f"the image is too large: {error}") from error
    except Exception as error:  # Pillow raises almost any type on damaged headers.
        raise ImageDecodeError(
            f"{len(data)} bytes beginning {data[:8]!r} are not a readable JPEG, PNG or WebP image."
        ) from error


def _draft(image: Image.Image, needed: tuple[int, int]) -> float:
    """Lets a JPEG be decoded smaller, at least `needed`; returns by how much it shrinks."""
    if image.format not in ("JPEG", "MPO"):
        return 1.0
    width = image.width
    drafted = image.draft(None, needed)
    return width / drafted[1][2] if drafted else 1.0


@dataclasses.dataclass(frozen=True)
class _Turn:
    """How stored pixels become upright: mirror in x, in y, then exchange the axes."""

    mirror_x: bool = False
    mirror_y: bool = False
    swap: bool = False

    def apply(self, pixels: Rgb) -> UInt8[np.ndarray, "H W 3"]:
        """Stored to upright; the same array where nothing is to do."""
        if not (self.mirror_x or self.mirror_y or self.swap):
            return pixels
        pixels = pixels[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]
        return np.ascontiguousarray(pixels.swapaxes(0, 1) if self.swap else pixels)

    def box_before(
        self, box: tuple[int, int, int, int], *, width: int, height: int
    ) -> tuple[int, int, int, int]:
        """Where an upright box is in the stored image of this size."""
        left, top, right, bottom = box
        if self.swap:
            left, top, right, bottom = top, left, bottom, right
        if self.mirror_x:
            left, right = width - right, width - left
        if self.mirror_y:
            top, bottom = height - bottom, height - top
        return left, top, right, bottom


# EXIF tag 0x0112, by its value.
_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: _Turn(mirror_x=True),
    3: _Turn(mirror_x=True, mirror_y=True),
    4: _Turn(mirror_y=True),
    5: _Turn(swap=True),
    6: _Turn(mirror_y=True, swap=True),
    7: _Turn(mirror_x=True, mirror_y=True, swap=True),
    8: _Turn(mirror_x=True, swap=True),
}


def _turn(image: Image.Image) -> _Turn:
    """What the EXIF data asks for; damaged EXIF data must not cost the picture."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION_TAG, 1), _Turn())
    except Exception:
        return _Turn()


def _load(image: Image.Image) -> Image.Image:
    """Decodes to RGB, as stored."""
    try:
        image.load()
        return _to_rgb(image)
    except Exception as error:
        raise ImageDecodeError(
            f"the {image.format or 'image'} data of {image.width} x {image.height} pixels cannot "
            f"be decoded: {error}"
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.float32)
        return Image.fromarray(np.clip(np.rint(deep / 257), 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
