"""Segmentation scores from label maps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int64, Integer, UInt8

from tcl_jax.evaluation.labels import IGNORE

UNKNOWN = "-"
"""What stands where there is no figure."""
EDGE = 2
"""Pixels from a true edge, along rows and columns, within which the boundary score counts."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """Scores of a whole set as fractions; NaN where a class never occurs.

    Attributes:
        miou: mean of `per_class_iou` over classes that occur.
        macc: mean of `per_class_acc` over classes that occur in the labels.
        aacc: share of labelled pixels that are right.
        boundary: the same of those within `EDGE` pixels of a true edge.
        per_class_iou: intersection over union.
        per_class_acc: share of a class's labelled pixels that are right.
    """

    miou: float
    macc: float
    aacc: float
    boundary: float
    per_class_iou: Float[np.ndarray, " classes"]
    per_class_acc: Float[np.ndarray, " classes"]


@dataclasses.dataclass(frozen=True, eq=False)
class Counts:
    """Pixel counts per class, of one image or of a whole set; they add up.

    Attributes:
        intersection: pixels of the class that are predicted to be of it.
        predicted: labelled pixels that are predicted to be of the class.
        labelled: pixels of the class.
        edges: labelled pixels within `EDGE` pixels of a true edge: those that are right, and all.

    Those of several predictions at once have an axis of them first, but for `labelled`.
    """

    intersection: Int64[np.ndarray, "*several classes"]
    predicted: Int64[np.ndarray, "*several classes"]
    labelled: Int64[np.ndarray, " classes"]
    edges: Int64[np.ndarray, "*several 2"]

    @classmethod
    def zeros(cls, classes: int, *several: int) -> Counts:
        """Nothing counted."""
        shapes = (*several, classes), (*several, classes), (classes,), (*several, 2)
        return cls(*(np.zeros(shape, np.int64) for shape in shapes))

    def __add__(self, other: Counts) -> Counts:
        """Counts of both together."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Counts(*(mine + theirs for mine, theirs in pairs))

    def at(self, i: int) -> Counts:
        """Those of one of several predictions."""
        return Counts(self.intersection[i], self.predicted[i], self.labelled, self.edges[i])

    def reduced(self, reduce: Callable[[np.ndarray], np.ndarray]) -> Counts:
        """The counts through a function of an array, such as a sum over processes."""
        return Counts(*map(reduce, vars(self).values()))

    @property
    def union(self) -> Int64[np.ndarray, "*several classes"]:
        """Pixels that are of a class or predicted to be."""
        return self.predicted + self.labelled - self.intersection

    def scores(self) -> Scores:
        """Scores of everything counted."""
        iou = _divide(self.intersection, self.union)
        accuracy = _divide(self.intersection, self.labelled)
        right = np.array([self.intersection.sum(), self.edges[0]])
        aacc, boundary = _divide(right, np.array([self.labelled.sum(), self.edges[1]])).tolist()
        return Scores(
            miou=_nan_mean(iou),
            macc=_nan_mean(accuracy),
            aacc=aacc,
            boundary=boundary,
            per_class_iou=iou,
            per_class_acc=accuracy,
        )

    def mean_iou(self, classes: Sequence[int]) -> float:
        """Mean IoU over some of the classes, those that occur."""
        return _nan_mean(self.scores().per_class_iou[list(classes)])


def count_pixels(
    predicted: Integer[np.ndarray, "h w"], label: Integer[np.ndarray, "H W"], classes: int
) -> Counts:
    """Counts of a label map against the truth.

    Args:
        predicted: class per pixel, 0 to classes - 1.
        label: the same, or `labels.IGNORE` for pixels that do not count.
        classes: number of classes, background included where there is one.

    Raises:
        ValueError: if the shapes differ, or a value is not a class.
    """
    truth, found, near = _labelled(predicted, label, classes)
    right = truth == found
    edges = np.array([np.count_nonzero(right & near), np.count_nonzero(near)], np.int64)
    intersection, found_as, of_class = (
        np.bincount(v, minlength=classes) for v in (truth[right], found, truth)
    )
    return Counts(intersection, found_as, of_class, edges)


def count_levels(
    predicted: Integer[np.ndarray, "h w"],
    levels: UInt8[np.ndarray, "h w"],
    label: Integer[np.ndarray, "H W"],
    classes: int,
    thresholds: int,
) -> Counts:
    """Counts at several thresholds of the background, class 0, from one label map.

    Args:
        predicted, label, classes: as in `count_pixels`.
        levels: how many of the thresholds, from the lowest, a pixel's class stands against; at the
            others the pixel is of the background.
        thresholds: their number.

    Returns:
        Counts of as many predictions, from the lowest threshold to the highest.

    Raises:
        ValueError: as `count_pixels`.
    """
    truth, found, near = _labelled(predicted, label, classes)
    group = 4 * near + 2 * (truth == 0) + (truth == found)
    places = (group * classes + found) * (thresholds + 1) + levels[label != IGNORE]
    table = np.bincount(places, minlength=8 * classes * (thresholds + 1))
    table = table.reshape(2, 2, 2, classes, thresholds + 1)
    # Pixels of each class, background apart, that stand against a threshold.
    stand = np.flip(np.flip(table, -1).cumsum(-1), -1)[..., 1:, 1:].swapaxes(-1, -2)
    labelled = np.bincount(truth, minlength=classes)
    intersection, predicted_as = np.zeros((2, thresholds, classes), np.int64)
    intersection[:, 1:] = stand[:, :, 1].sum((0, 1))
    predicted_as[:, 1:] = stand.sum((0, 1, 2))
    # All other pixels are of the background, rightly so where the truth is.
    intersection[:, 0] = labelled[0] - stand[:, 1].sum((0, 1, -1))
    predicted_as[:, 0] = truth.size - predicted_as[:, 1:].sum(-1)
    right = stand[1, :, 1].sum((0, -1)) + table[1, 1].sum() - stand[1, 1].sum((0, -1))
    edges = np.stack([right, np.full(thresholds, np.count_nonzero(near))], -1)
    return Counts(intersection, predicted_as, labelled, edges)


def _labelled(
    predicted: Integer[np.ndarray, "h w"], label: Integer[np.ndarray, "H W"], classes: int
) -> tuple[Integer[np.ndarray, " n"], Integer[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Truth and prediction of the pixels that count, and whether they are near a true edge.

    Ignored pixels have an edge, too: they are what lies between objects in many benchmarks.
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
    around, values = np.ones((2 * EDGE + 1, 2 * EDGE + 1), np.uint8), label.astype(np.float32)
    near = cv2.dilate(values, around) > cv2.erode(values, around)
    return truth, found.astype(np.int64), near[valid]


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
