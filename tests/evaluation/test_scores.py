"""Segmentation scores against counts made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tcl_jax.evaluation.labels import IGNORE
from tcl_jax.evaluation.scores import Counts, count_levels, count_pixels

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
        parts = parts + count_pixels(PREDICTED[[row]], LABEL[[row]], 4)
    for name in ("intersection", "predicted", "labelled", "union"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    np.testing.assert_array_equal(whole.reduced(lambda x: 2 * x).union, 2 * whole.union)
    nothing = Counts.zeros(3).scores()
    assert np.isnan([nothing.miou, nothing.macc, nothing.aacc]).all()


def test_boundary_is_two_pixels_on_either_side_of_a_true_edge() -> None:
    """Five by five pixels around one of another class and around one that is not labelled."""
    label = np.ones((5, 5), int)
    label[2, 2], label[4, 0] = 2, IGNORE
    wide = np.pad(label, ((0, 2), (0, 3)), mode="edge")
    wide[5:] = 1
    predicted = np.full_like(wide, 1)
    counts = count_pixels(predicted, wide, 3)
    near = {(y, x) for y in range(5) for x in range(5)} | {(y, x) for y in (5, 6) for x in range(3)}
    near -= {(4, 0)}
    assert counts.edges.tolist() == [len(near) - 1, len(near)]
    assert counts.scores().boundary == pytest.approx(1 - 1 / len(near))
    assert np.isnan(count_pixels(predicted, np.ones_like(wide), 3).scores().boundary)


def test_levels_give_the_counts_of_every_threshold() -> None:
    rng = np.random.default_rng(0)
    label, best = rng.integers(-1, 4, (23, 31)), rng.integers(0, 4, (23, 31), np.uint16)
    levels = rng.integers(0, 4, (23, 31), np.uint8)
    label[:9], best[:9] = 0, 2
    several = count_levels(best, levels, label, 5, 3)
    for i in range(3):
        plain, one = count_pixels(np.where(levels > i, best, 0), label, 5), several.at(i)
        for name, counts in vars(plain).items():
            np.testing.assert_array_equal(getattr(one, name), counts)


@pytest.mark.parametrize(
    ("predicted", "label", "message"),
    [
        (np.zeros((2, 2), int), np.zeros((2, 3), int), r"shape \(2, 2\).*shape \(2, 3\)"),
        (np.zeros((1, 2), int), np.array([[0, 7]]), "label has the value 7 at 1 pixel"),
        (np.array([[9, 0]]), np.zeros((1, 2), int), "prediction has the value 9"),
    ],
)
def test_bad_maps(predicted: np.ndarray, label: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        count_pixels(predicted, label, 4)
