"""RandAugment (Cubuk et al., NeurIPS 2020) as timm 0.6.7 defines its "increasing" variant."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from tcl_jax.data import image_operations as operations
from tcl_jax.data.images import Rgb, decode

MAX_MAGNITUDE = 10
"""Magnitudes are clipped to [0, 10]; ranges of arguments below are those of 10."""

Strength: TypeAlias = Callable[[float, np.random.Generator], int | float]


@dataclasses.dataclass(frozen=True)
class Operation:
    """One of the operations that are drawn from.

    Attributes:
      apply: the image, and the argument where there is one, to the changed image.
      strength: magnitude, in [0, 10], to the argument; random where the sign is; None: no argument.
    """

    apply: Callable[..., Rgb]
    strength: Strength | None = None


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


def _bits(magnitude: float, rng: np.random.Generator) -> int:
    """Bits kept: 4 down to 0."""
    del rng
    return 4 - int(magnitude / MAX_MAGNITUDE * 4)


def _threshold(magnitude: float, rng: np.random.Generator) -> int:
    """Values from here on are inverted: 256 down to 0."""
    del rng
    return 256 - int(magnitude / MAX_MAGNITUDE * 256)


def _addition(magnitude: float, rng: np.random.Generator) -> int:
    """Added to dark values: 0 to 110."""
    del rng
    return int(magnitude / MAX_MAGNITUDE * 110)


OPERATIONS: Mapping[str, Operation] = {
    "AutoContrast": Operation(operations.auto_contrast),
    "Equalize": Operation(operations.equalize),
    "Invert": Operation(operations.invert),
    "Rotate": Operation(operations.rotate, _signed(30)),  # degrees
    "Posterize": Operation(operations.posterize, _bits),
    "Solarize": Operation(operations.solarize, _threshold),
    "SolarizeAdd": Operation(operations.solarize_add, _addition),
    "Color": Operation(operations.color, _enhancement),
    "Contrast": Operation(operations.contrast, _enhancement),
    "Brightness": Operation(operations.brightness, _enhancement),
    "Sharpness": Operation(operations.sharpness, _enhancement),
    "ShearX": Operation(operations.shear_x, _signed(0.3)),
    "ShearY": Operation(operations.shear_y, _signed(0.3)),
    "TranslateX": Operation(operations.translate_x, _signed(0.45)),  # share of the width
    "TranslateY": Operation(operations.translate_y, _signed(0.45)),
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

    def __call__(self, image: bytes | Rgb, rng: np.random.Generator) -> Rgb:
        """Changes an image.

        Raises:
          ImageDecodeError: bytes that cannot be decoded.
        """
        pixels = decode(image) if isinstance(image, bytes) else image
        for name, arguments in self.sample(rng):
            pixels = OPERATIONS[name].apply(pixels, *arguments)
        return pixels

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
