"""RandAugment (Cubuk et al., NeurIPS 2020) as timm 0.6.7 defines its "increasing" variant.

timm's `_RAND_INCREASING_TRANSFORMS`, by Pillow's operations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from tcl_jax.data.images import Rgb

MAX_MAGNITUDE = 10
"""Magnitudes are clipped to [0, 10]; ranges of arguments below are those of 10."""

FILL = (124, 116, 104)
"""Colour of what comes in from outside: the ImageNet mean in [0, 255], rounded as timm does."""

# ---------------------------------------------------------------------------------------- strengths

Strength: TypeAlias = Callable[[float, np.random.Generator], int | float]
"""Magnitude, in [0, 10], to the argument of an operation; random where the sign is."""


def _signed(limit: int | float) -> Strength:
    """Up to `limit` in either direction."""

    def strength(magnitude: float, rng: np.random.Generator) -> float:
        value = magnitude / MAX_MAGNITUDE * limit
        return -value if rng.random() < 0.5 else value

    return strength


def _enhancement(magnitude: float, rng: np.random.Generator) -> float:
    """A factor that departs from 1 by up to 0.9, to either side, and is at least 0.1."""
    change = magnitude / MAX_MAGNITUDE * 0.9
    return max(0.1, 1 - change if rng.random() < 0.5 else 1 + change)


def _whole(at_0: int, at_10: int) -> Strength:
    """From one whole number to another."""
    step = 1 if at_10 > at_0 else -1

    def strength(magnitude: float, rng: np.random.Generator) -> int:
        del rng
        return at_0 + step * int(magnitude / MAX_MAGNITUDE * abs(at_10 - at_0))

    return strength


# --------------------------------------------------------------------------------------- operations


def posterize(image: Image.Image, bits: int) -> Image.Image:
    """Keeps the highest bits of each value; Pillow refuses 0 bits, which leave black."""
    return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)


def solarize_add(image: Image.Image, addition: int) -> Image.Image:
    """Adds to values below 128, up to 255."""
    return image.point([min(v + addition, 255) if v < 128 else v for v in range(256)] * 3)


def enhance(kind: Callable[[Image.Image], Any]) -> Callable[[Image.Image, float], Image.Image]:
    """One of Pillow's enhancements by a factor."""
    return lambda image, factor: kind(image).enhance(factor)


def rotate(image: Image.Image, degrees: int | float) -> Image.Image:
    """Turns counter-clockwise about the centre."""
    return image.rotate(degrees, resample=Image.Resampling.BILINEAR, fillcolor=FILL)


def affine(image: Image.Image, matrix: tuple[int | float, ...]) -> Image.Image:
    """The image read, bilinearly, at x' = a x + b y + c, y' = d x + e y + f."""
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        resample=Image.Resampling.BILINEAR,
        fillcolor=FILL,
    )


@dataclasses.dataclass(frozen=True)
class Operation:
    """One of the operations that are drawn from.

    Attributes:
      apply: the image, and the argument where there is one, to the changed image.
      strength: of the argument; None: there is none.
    """

    apply: Callable[..., Image.Image]
    strength: Strength | None = None


OPERATIONS: Mapping[str, Operation] = {
    "AutoContrast": Operation(ImageOps.autocontrast),
    "Equalize": Operation(ImageOps.equalize),
    "Invert": Operation(ImageOps.invert),
    "Rotate": Operation(rotate, _signed(30)),  # degrees
    "Posterize": Operation(posterize, _whole(4, 0)),  # bits kept
    "Solarize": Operation(ImageOps.solarize, _whole(256, 0)),  # values from here on are inverted
    "SolarizeAdd": Operation(solarize_add, _whole(0, 110)),
    "Color": Operation(enhance(ImageEnhance.Color), _enhancement),
    "Contrast": Operation(enhance(ImageEnhance.Contrast), _enhancement),
    "Brightness": Operation(enhance(ImageEnhance.Brightness), _enhancement),
    "Sharpness": Operation(enhance(ImageEnhance.Sharpness), _enhancement),
    "ShearX": Operation(lambda image, v: affine(image, (1, v, 0, 0, 1, 0)), _signed(0.3)),
    "ShearY": Operation(lambda image, v: affine(image, (1, 0, 0, v, 1, 0)), _signed(0.3)),
    # By a share of the width or height.
    "TranslateX": Operation(
        lambda image, v: affine(image, (1, 0, v * image.width, 0, 1, 0)), _signed(0.45)
    ),
    "TranslateY": Operation(
        lambda image, v: affine(image, (1, 0, 0, 0, 1, v * image.height)), _signed(0.45)
    ),
}
"""The fifteen, each drawn as often."""

_NAMES = tuple(OPERATIONS)


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Some random operations one after the other; a transform.

    The default is timm's `rand-m9-mstd0.5-inc1`.

    Attributes:
      operations: how many are drawn for an image, with replacement.
      probability: that one that is drawn is applied, in [0, 1].
      magnitude: mean of the magnitudes, in [0, 10].
      magnitude_std: their standard deviation before they are clipped to [0, 10].

    Raises:
      ValueError: a value out of range.
    """

    operations: int = 2
    probability: int | float = 0.5
    magnitude: int | float = 9.0
    magnitude_std: int | float = 0.5

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.operations < 0:
            raise ValueError(f"operations={self.operations}: must be at least 0.")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability={self.probability}: must be within 0 and 1.")
        if not 0 <= self.magnitude <= MAX_MAGNITUDE:
            raise ValueError(f"magnitude={self.magnitude}: must be within 0 and {MAX_MAGNITUDE}.")
        if not self.magnitude_std >= 0:
            raise ValueError(f"magnitude_std={self.magnitude_std}: must be at least 0.")

    def __call__(self, image: Rgb, rng: np.random.Generator) -> Rgb:
        """Changes an image."""
        picture = Image.fromarray(image)
        for name, arguments in self.sample(rng):
            picture = OPERATIONS[name].apply(picture, *arguments)
        return np.asarray(picture)

    def sample(self, rng: np.random.Generator) -> list[tuple[str, tuple[Any, ...]]]:
        """What is applied to one image: names of `OPERATIONS`, each with its argument if any."""
        chosen: list[tuple[str, tuple[Any, ...]]] = []
        for index in rng.integers(len(_NAMES), size=self.operations):
            if rng.random() >= self.probability:
                continue
            strength = OPERATIONS[_NAMES[index]].strength
            if strength is None:
                chosen.append((_NAMES[index], ()))
                continue
            drawn = rng.normal(self.magnitude, self.magnitude_std)
            magnitude = float(min(max(drawn, 0), MAX_MAGNITUDE))
            chosen.append((_NAMES[index], (strength(magnitude, rng),)))
        return chosen
