"""Which rectangles are erased, over many draws, and how they travel with the batch."""

from __future__ import annotations

import pickle

import numpy as np

from tcl_jax.data.random_erasing import RandomErasing
from tests.data.streams import Numbers, iterate, take

SIDE = 224


def draw(erasing: RandomErasing, count: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([erasing(height, width, rng) for _ in range(count)])


def test_what_is_drawn_over_many_images() -> None:
    """A quarter is erased; area uniform, but for large ones that do not fit; ratio log-uniform."""
    drawn = draw(RandomErasing(), 8000)
    assert drawn.dtype == np.int32
    boxes = drawn[drawn.any(axis=1)]
    assert abs(len(boxes) / len(drawn) - 0.25) < 0.02
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] > 0).all() and (boxes[:, 2:] < SIDE).all()
    ends = boxes[:, :2] + boxes[:, 2:]
    assert (ends.max(axis=0) == SIDE).all() and (boxes[:, :2].min(axis=0) == 0).all()
    share = boxes[:, 2] * boxes[:, 3] / SIDE**2
    assert 0.018 < share.min() < 0.025 and 0.32 < share.max() < 0.34
    np.testing.assert_allclose(np.quantile(share, [0.25, 0.5]), [0.093, 0.167], atol=0.015)
    small = boxes[share < 0.2]
    ratio = np.log(small[:, 2] / small[:, 3]) / np.log(1 / 0.3)
    np.testing.assert_allclose(np.quantile(ratio, [0, 0.25, 0.5, 0.75, 1]),
                               [-1, -0.5, 0, 0.5, 1], atol=0.08)  # fmt: skip


def test_height_and_width_are_not_exchanged() -> None:
    tall = draw(RandomErasing(1.0, ratio=(2.0, 2.1)), 200, height=300, width=100)
    assert (tall[:, 2] > 1.8 * tall[:, 3]).all()
    assert (tall[:, 0] + tall[:, 2] <= 300).all() and (tall[:, 1] + tall[:, 3] <= 100).all()
    assert tall[:, 0].max() > 150


def test_what_cannot_fit_is_left_out() -> None:
    assert not draw(RandomErasing(1.0), 20, height=1, width=1).any()
    assert not draw(RandomErasing(1.0, area=(1.0, 1.0)), 20).any()
    assert not draw(RandomErasing(0), 200).any()


def test_what_is_drawn() -> None:
    """To the bit, as checkpoints of runs that go on depend on it."""
    erasing = pickle.loads(pickle.dumps(RandomErasing(1.0)))
    drawn = [erasing(SIDE, SIDE, np.random.default_rng(seed)).tolist() for seed in (1, 2)]
    assert drawn == [[117, 29, 82, 194], [51, 15, 110, 52]]


def batches(erasing: RandomErasing | None, count: int) -> list:
    iterator = iterate(Numbers(0, 12, side=8), 4, 0, erasing=erasing)
    taken = take(iterator, count)
    iterator.close()
    return taken


def test_batch_says_what_to_erase() -> None:
    plain, erased = batches(None, 6), batches(RandomErasing(0.5, area=(0.2, 0.5)), 6)
    for without, with_boxes in zip(plain, erased, strict=True):
        assert set(without) == {"image", "tokens"}
        np.testing.assert_array_equal(without["image"], with_boxes["image"])
        np.testing.assert_array_equal(without["tokens"], with_boxes["tokens"])
    boxes = np.concatenate([batch["erase"] for batch in erased])
    assert boxes.shape == (24, 4) and boxes.dtype == np.int32
    assert 4 < boxes.any(axis=1).sum() < 20
    assert len(np.unique(boxes[boxes.any(axis=1)], axis=0)) > 4
