"""RandAugment (Cubuk et al., NeurIPS 2020) as timm 0.6.7 defines its "increasing" variant.

timm's `_RAND_INCREASING_TRANSFORMS`, by Pillow's operations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from tcl_jax.data.images import Rgb

MAX_MAGNITUDE = 10
"""Magnitudes are clipped to [0, 10]; ranges of arguments below are those of 10."""

FILL = (124, 116, 104)
"""Colour of what comes in from outside: the ImageNet mean in [0, 255], rounded as timm does."""


@dataclasses.dataclass(frozen=True)
class Operation:
    """One of the operations that are drawn from.

    Attributes:
      apply: the image, and the argument where there is one, to the changed image.
      argument: of a strength in [0, 1], the magnitude's share of 10, and of random numbers, which
        decide on its sign; None: there is no argument.
    """

    apply: Callable[..., Image.Image]
    argument: Callable[[float, np.random.Generator], int | float] | None = None


def sign(rng: np.random.Generator) -> int:
    """One or the other direction."""
    return -1 if rng.random() < 0.5 else 1


def to_either_side(most: int | float) -> Callable[[float, np.random.Generator], float]:
    """An argument that departs from 0 by up to so much."""
    return lambda strength, rng: sign(rng) * strength * most


def enhancement(kind: Callable[[Image.Image], Any]) -> Operation:
    """One of Pillow's, by a factor that departs from 1 by up to 0.9, to either side."""
    return Operation(
        lambda image, factor: kind(image).enhance(factor),
        lambda strength, rng: max(0.1, 1 + sign(rng) * strength * 0.9),
    )


def posterize(image: Image.Image, bits: int) -> Image.Image:
    """Keeps the highest bits of each value; Pillow refuses 0 bits, which leave black."""
    return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)


def solarize_add(image: Image.Image, addition: int) -> Image.Image:
    """Adds to values below 128, up to 255."""
    return image.point([min(v + addition, 255) if v < 128 else v for v in range(256)] * 3)


def rotate(image: Image.Image, degrees: int | float) -> Image.Image:
    """Turns counter-clockwise about the centre."""
    return image.rotate(degrees, resample=Image.Resampling.BILINEAR, fillcolor=FILL)


def affine(image: Image.Image, *matrix: int | float) -> Image.Image:
    """The image read, bilinearly, at x' = a x + b y + c, y' = d x + e y + f."""
    kind, how = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return image.transform(image.size, kind, matrix, resample=how, fillcolor=FILL)


OPERATIONS: Mapping[str, Operation] = {
    "AutoContrast": Operation(ImageOps.autocontrast),
    "Equalize": Operation(ImageOps.equalize),
    "Invert": Operation(ImageOps.invert),
    "Rotate": Operation(rotate, to_either_side(30)),  # degrees
    "Posterize": Operation(posterize, lambda strength, _: 4 - int(strength * 4)),  # bits kept
    # The value from which on all are inverted.
    "Solarize": Operation(ImageOps.solarize, lambda strength, _: 256 - int(strength * 256)),
    "SolarizeAdd": Operation(solarize_add, lambda strength, _: int(strength * 110)),
    "Color": enhancement(ImageEnhance.Color),
    "Contrast": enhancement(ImageEnhance.Contrast),
    "Brightness": enhancement(ImageEnhance.Brightness),
    "Sharpness": enhancement(ImageEnhance.Sharpness),
    "ShearX": Operation(lambda image, v: affine(image, 1, v, 0, 0, 1, 0), to_either_side(0.3)),
    "ShearY": Operation(lambda image, v: affine(image, 1, 0, 0, v, 1, 0), to_either_side(0.3)),
    # By a share of the width or height.
    "TranslateX": Operation(
        lambda image, v: affine(image, 1, 0, v * image.width, 0, 1, 0), to_either_side(0.45)
    ),
    "TranslateY": Operation(
        lambda image, v: affine(image, 1, 0, 0, 0, 1, v * image.height), to_either_side(0.45)
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
            argument = OPERATIONS[_NAMES[index]].argument
            if argument is None:
                chosen.append((_NAMES[index], ()))
                continue
            drawn = rng.normal(self.magnitude, self.magnitude_std)
            magnitude = float(min(max(drawn, 0), MAX_MAGNITUDE))
            chosen.append((_NAMES[index], (argument(magnitude / MAX_MAGNITUDE, rng),)))
        return chosen
