"""Segmentation scores against counts made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tcl_jax.evaluation.labels import IGNORE
from tcl_jax.evaluation.scores import Counts, count_pixels

LABEL = np.array([[0, 0, 1, 1], [0, 2, 2, IGNORE]])
PREDICTED = np.array([[0, 1, 1, 1], [0, 2, 0, 2]])


def test_hand_counted() -> None:
    counts = count_pixels(PREDICTED, LABEL, 4)
    np.testing.assert_array_equal(counts.intersection, [2, 2, 1, 0])
    np.testing.assert_array_equal(counts.union, [4, 3, 2, 0])
    scores = counts.scores()
    np.testing.assert_allclose(scores.per_class_iou, [2 / 4, 2 / 3, 1 / 2, np.nan])
    np.testing.assert_allclose(scores.per_class_acc, [2 / 3, 1, 1 / 2, np.nan])
    assert scores.miou == pytest.approx((1 / 2 + 2 / 3 + 1 / 2) / 3)
    assert scores.macc == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    assert scores.aacc == pytest.approx(5 / 7)
    assert counts.mean_iou([1, 3]) == pytest.approx(2 / 3)


def test_counts_add_up() -> None:
    whole = count_pixels(PREDICTED, LABEL, 4)
    parts = Counts.zeros(4)
    for row in range(2):
        parts = parts + count_pixels(PREDICTED[row], LABEL[row], 4)
    for name in ("intersection", "predicted", "labelled", "union"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    np.testing.assert_array_equal(whole.reduced(lambda x: 2 * x).union, 2 * whole.union)
    nothing = Counts.zeros(3).scores()
    assert np.isnan([nothing.miou, nothing.macc, nothing.aacc]).all()


@pytest.mark.parametrize(
    ("predicted", "label", "message"),
    [
        (np.zeros((2, 2), int), np.zeros((2, 3), int), r"shape \(2, 2\).*shape \(2, 3\)"),
        (np.zeros(2, int), np.array([0, 7]), "label has the value 7 at 1 pixel"),
        (np.array([9, 0]), np.zeros(2, int), "prediction has the value 9"),
    ],
)
def test_bad_maps(predicted: np.ndarray, label: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        count_pixels(predicted, label, 4)
