"""Which rectangle of an image is erased, if any. What goes into it is up to the training step."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Int32

_TRIES = 10


@dataclasses.dataclass(frozen=True)
class RandomErasing:
    """Draws the one rectangle of Random Erasing (Zhong et al., AAAI 2020) with timm's ranges.

    The share of the image's area is uniform in `area`, height / width log-uniform in `ratio`, the
    place uniform. A rectangle as high or as wide as the image is drawn again, ten times at most;
    then nothing is erased.

    Attributes:
      probability: share of the images that lose a rectangle, in [0, 1].
      area: smallest and largest share of the image's area, in (0, 1].
      ratio: smallest and largest height / width.

    Raises:
      ValueError: a probability outside of [0, 1].
    """

    probability: int | float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)

    def __post_init__(self) -> None:
        """Checks the probability."""
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability={self.probability}: must be within 0 and 1.")

    def __call__(self, height: int, width: int, rng: np.random.Generator) -> Int32[np.ndarray, "4"]:
        """The rectangle as (top, left, height, width) in pixels; all zero: nothing is erased."""
        nothing = np.zeros(4, np.int32)
        if rng.random() >= self.probability:
            return nothing
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(_TRIES):
            area = height * width * rng.uniform(*self.area)
            ratio = math.exp(rng.uniform(low, high))
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < h < height and 0 < w < width:
                top = rng.integers(height - h + 1)
                left = rng.integers(width - w + 1)
                return np.array([top, left, h, w], np.int32)
        return nothing
