"""The threshold of the background that is best on labelled images, and what it costs to miss it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from tcl_jax.evaluation.scores import Counts

TRIED = tuple(i / 20 for i in range(1, 20))
"""Thresholds that are counted beside a method's own."""
BEST = "best"
"""In place of a threshold: all are counted. `best:DIR` is what was found so in the results DIR,
or what the run in DIR proposes without labels."""
MADE_WITH = ("scores", "refine", "kp_weight")
"""Fields of a protocol that a threshold of masks depends on, beside the method."""
MISSED = 0.1
"""By how much the best threshold is missed where the costs of that are told."""


@dataclasses.dataclass(frozen=True, eq=False)
class ThresholdSearch:
    """A benchmark's counts at many thresholds.

    Attributes:
        tried: the thresholds, ascending.
        own: the one of them that is the protocol's.
        counts: of all images together, at each of them.
    """

    tried: tuple[float, ...]
    own: float
    counts: Counts

    @functools.cached_property
    def miou(self) -> Float[np.ndarray, " tried"]:
        """At each threshold, a fraction; NaN without a labelled pixel."""
        return np.array([self.counts.at(i).scores().miou for i in range(len(self.tried))])

    @property
    def place(self) -> int:
        """Of the best threshold, the lowest of equal ones."""
        return int(np.argmax(np.nan_to_num(self.miou)))

    @property
    def best(self) -> float:
        """The threshold of the highest mIoU."""
        return self.tried[self.place]

    def loss(self, threshold: float) -> float:
        """By how much the mIoU at a threshold is below the best; between two that were tried on the
        line from one to the other, NaN beyond them.
        """
        known = np.interp(round(threshold, 6), self.tried, self.miou, left=np.nan, right=np.nan)
        return float(self.miou[self.place] - known)


def best_of_all(searches: Sequence[ThresholdSearch]) -> float | None:
    """Of the thresholds tried on all benchmarks the one of the highest mean mIoU; None of none."""
    if not searches:
        return None
    common = [t for t in searches[0].tried if all(t in one.tried for one in searches)]
    return min(common, key=lambda t: sum(one.loss(t) for one in searches))
