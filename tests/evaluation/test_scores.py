"""Segmentation scores against counts made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tcl_jax.evaluation.scores import Confusion

LABEL = np.array([[0, 0, 1, 1], [0, 2, 2, 255]])
PREDICTED = np.array([[0, 1, 1, 1], [0, 2, 0, 2]])


def test_hand_counted() -> None:
    confusion = Confusion(4)
    confusion.update(PREDICTED, LABEL)
    np.testing.assert_array_equal(confusion.intersection, [2, 2, 1, 0])
    np.testing.assert_array_equal(confusion.union, [4, 3, 2, 0])
    scores = confusion.scores()
    np.testing.assert_allclose(scores.per_class_iou, [2 / 4, 2 / 3, 1 / 2, np.nan])
    np.testing.assert_allclose(scores.per_class_acc, [2 / 3, 1, 1 / 2, np.nan])
    assert scores.miou == pytest.approx((1 / 2 + 2 / 3 + 1 / 2) / 3)
    assert scores.macc == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    assert scores.aacc == pytest.approx(5 / 7)
    assert confusion.mean_iou([1, 3]) == pytest.approx(2 / 3)


def test_updates_add_up() -> None:
    one, two = Confusion(4), Confusion(4)
    one.update(PREDICTED, LABEL)
    for row in range(2):
        two.update(PREDICTED[row], LABEL[row])
    np.testing.assert_array_equal(one.counts, two.counts)
    np.testing.assert_array_equal(one.reduced(lambda x: 2 * x).counts, 2 * one.counts)


def test_nothing_counted_is_nan() -> None:
    assert np.isnan(Confusion(3).scores().miou) and np.isnan(Confusion(3).scores().aacc)


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
        Confusion(4).update(predicted, label)
