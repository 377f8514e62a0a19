"""Segmentation scores from label maps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

IGNORE = 255
"""Label of pixels that do not count."""


@dataclasses.dataclass(frozen=True)
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


class Confusion:
    """Pixel counts by true and predicted class, over a whole set; int64 [classes, classes].

    Args:
        classes: number of classes, background included where there is one.
        counts: to start from; zeros if None.
    """

    def __init__(self, classes: int, counts: Int[np.ndarray, "n n"] | None = None) -> None:
        self.classes = classes
        self.counts = np.zeros((classes, classes), np.int64) if counts is None else counts

    def update(self, predicted: Int[np.ndarray, "..."], label: Int[np.ndarray, "..."]) -> None:
        """Counts the pixels of label maps; those labelled 255 are left out.

        Raises:
            ValueError: if the shapes differ, or a value is not a class.
        """
        if predicted.shape != label.shape:
            raise ValueError(
                f"prediction of shape {predicted.shape} and label of shape {label.shape} differ; "
                "resize the prediction to the label"
            )
        valid = label != IGNORE
        truth, found = label[valid].astype(np.int64), predicted[valid].astype(np.int64)
        for name, values in (("label", truth), ("prediction", found)):
            wrong = values[(values < 0) | (values >= self.classes)]
            if wrong.size:
                raise ValueError(
                    f"{name} has the value {wrong[0]} at {wrong.size} pixel(s); classes are 0 to "
                    f"{self.classes - 1}, and {IGNORE} in a label is ignored"
                )
        flat = np.bincount(truth * self.classes + found, minlength=self.classes**2)
        self.counts += flat.reshape(self.classes, self.classes)

    def reduced(self, reduce: Callable[[np.ndarray], np.ndarray]) -> Confusion:
        """The counts through a function, such as a sum over processes."""
        return Confusion(self.classes, reduce(self.counts))

    @property
    def intersection(self) -> Int[np.ndarray, " classes"]:
        """Pixels of each class that are right."""
        return np.diag(self.counts)

    @property
    def union(self) -> Int[np.ndarray, " classes"]:
        """Pixels that are of a class or predicted to be."""
        return self.counts.sum(axis=0) + self.counts.sum(axis=1) - self.intersection

    def scores(self) -> Scores:
        """Scores of everything counted so far."""
        iou = _divide(self.intersection, self.union)
        accuracy = _divide(self.intersection, self.counts.sum(axis=1))
        total = int(self.counts.sum())
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


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _nan_mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
