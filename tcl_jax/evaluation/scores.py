"""Segmentation scores from label maps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int64, Integer

from tcl_jax.evaluation.labels import IGNORE

UNKNOWN = "-"
"""What stands where there is no figure."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """Scores of a whole set as fractions; NaN where a class never occurs.

    Attributes:
        miou: mean of `per_class_iou` over classes that occur.
        macc: mean of `per_class_acc` over classes that occur in the labels.
        aacc: share of labelled pixels that are right.
        per_class_iou: intersection over union.
        per_class_acc: share of a class's labelled pixels that are right.
    """

    miou: float
    macc: float
    aacc: float
    per_class_iou: Float[np.ndarray, " classes"]
    per_class_acc: Float[np.ndarray, " classes"]


@dataclasses.dataclass(frozen=True, eq=False)
class Counts:
    """Pixel counts per class, of one image or of a whole set; they add up.

    Attributes:
        intersection: pixels of the class that are predicted to be of it.
        predicted: labelled pixels that are predicted to be of the class.
        labelled: pixels of the class.
    """

    intersection: Int64[np.ndarray, " classes"]
    predicted: Int64[np.ndarray, " classes"]
    labelled: Int64[np.ndarray, " classes"]

    @classmethod
    def zeros(cls, classes: int) -> Counts:
        """Nothing counted."""
        return cls(*np.zeros((3, classes), np.int64))

    def __add__(self, other: Counts) -> Counts:
        """Counts of both together."""
        return Counts(
            self.intersection + other.intersection,
            self.predicted + other.predicted,
            self.labelled + other.labelled,
        )

    def reduced(self, reduce: Callable[[np.ndarray], np.ndarray]) -> Counts:
        """The counts through a function of an array [3, classes], such as a sum over processes."""
        return Counts(*reduce(np.stack([self.intersection, self.predicted, self.labelled])))

    @property
    def union(self) -> Int64[np.ndarray, " classes"]:
        """Pixels that are of a class or predicted to be."""
        return self.predicted + self.labelled - self.intersection

    def scores(self) -> Scores:
        """Scores of everything counted."""
        iou = _divide(self.intersection, self.union)
        accuracy = _divide(self.intersection, self.labelled)
        total = int(self.labelled.sum())
        return Scores(
            miou=_nan_mean(iou),
            macc=_nan_mean(accuracy),
            aacc=float(self.intersection.sum() / total) if total else float("nan"),
            per_class_iou=iou,
            per_class_acc=accuracy,
        )

    def mean_iou(self, classes: Sequence[int]) -> float:
        """Mean IoU over some of the classes, those that occur."""
        return _nan_mean(self.scores().per_class_iou[list(classes)])


def count_pixels(
    predicted: Integer[np.ndarray, "..."], label: Integer[np.ndarray, "..."], classes: int
) -> Counts:
    """Counts of a label map against the truth.

    Args:
        predicted: class per pixel, 0 to classes - 1.
        label: the same, or `labels.IGNORE` for pixels that do not count.
        classes: number of classes, background included where there is one.

    Raises:
        ValueError: if the shapes differ, or a value is not a class.
    """
    if predicted.shape != label.shape:
        raise ValueError(
            f"prediction of shape {predicted.shape} and label of shape {label.shape} differ; "
            "resize the prediction to the label"
        )
    valid = label != IGNORE
    truth, found = label[valid], predicted[valid]
    for name, values in (("label", truth), ("prediction", found)):
        wrong = values[(values < 0) | (values >= classes)]
        if wrong.size:
            raise ValueError(
                f"{name} has the value {wrong[0]} at {wrong.size} pixel(s); classes are 0 to "
                f"{classes - 1}, and {IGNORE} in a label is ignored"
            )
    right = truth[truth == found]
    return Counts(*(np.bincount(v, minlength=classes) for v in (right, found, truth)))


def per_cent(value: float | None, *, mark: bool = False) -> str:
    """Per cent with one digit, a dash where not known."""
    if value is None or np.isnan(value):
        return UNKNOWN
    return f"{value:.1f}" + "*" * mark


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _nan_mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
