"""Which rectangles are erased, over many draws, and how they travel with the batch."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from tcl_jax.data.pipeline import make_iterator
from tcl_jax.data.random_erasing import RandomErasing
from tcl_jax.data.transforms import Compose, HorizontalFlip

DRAWS = 20_000
SIDE = 224
KOLMOGOROV = 1.95
"""sqrt(n) times the largest distance of an empirical distribution; exceeded in 0.1 % of cases."""


def draw(erasing: RandomErasing, count: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([erasing(height, width, rng) for _ in range(count)])


@pytest.fixture(scope="module")
def boxes() -> np.ndarray:
    return draw(RandomErasing(1.0), DRAWS)


def assert_distributed(values: np.ndarray, cdf: np.ndarray) -> None:
    """Kolmogorov-Smirnov: `cdf` is the expected distribution function at the sorted values."""
    ranks = np.arange(1, len(values) + 1) / len(values)
    assert np.abs(ranks - cdf).max() * np.sqrt(len(values)) < KOLMOGOROV


def test_a_quarter_of_the_images_is_erased() -> None:
    erased = draw(RandomErasing(), DRAWS)
    assert erased.dtype == np.int32
    share = np.mean(erased.any(axis=1))
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / DRAWS)


def test_box_is_inside(boxes: np.ndarray) -> None:
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] > 0).all() and (boxes[:, 2:] < SIDE).all()
    ends = boxes[:, :2] + boxes[:, 2:]
    assert (ends.max(axis=0) == SIDE).all() and (boxes[:, :2].min(axis=0) == 0).all()


def test_area_is_uniform(boxes: np.ndarray) -> None:
    """But for the few large ones that are too long to fit."""
    share = np.sort(boxes[:, 2] * boxes[:, 3] / SIDE**2)
    assert 0.018 < share[0] < 0.021 and 0.325 < share[-1] < 0.34
    grid = np.linspace(0.02, 1 / 3, 10_001)
    fits = np.minimum(-np.log(grid), -np.log(0.3)) / -np.log(0.3)
    distribution = np.cumsum(fits) / fits.sum()
    # Sides are whole pixels: areas are spread by up to a percent.
    spread = share * np.random.default_rng(1).uniform(0.995, 1.005, len(share))
    assert_distributed(np.sort(spread), np.interp(np.sort(spread), grid, distribution))


def test_ratio_is_log_uniform(boxes: np.ndarray) -> None:
    small = boxes[boxes[:, 2] * boxes[:, 3] < 0.25 * SIDE**2]
    limit = np.log(1 / 0.3)
    blur = np.random.default_rng(1).uniform(-0.5, 0.5, (2, len(small)))
    ratio = np.sort(np.log((small[:, 2] + blur[0]) / (small[:, 3] + blur[1])))
    assert -limit - 0.05 < ratio[0] < -limit + 0.02 and limit - 0.02 < ratio[-1] < limit + 0.05
    assert_distributed(ratio, np.clip((ratio + limit) / (2 * limit), 0, 1))


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


@pytest.mark.parametrize(
    "field",
    [{"probability": -0.1}, {"probability": 1.1}, {"area": (0.0, 0.3)}, {"area": (0.3, 0.2)},
     {"area": (0.5, 1.5)}, {"ratio": (0.0, 1.0)}, {"ratio": (2.0, 1.0)}],
)  # fmt: skip
def test_bad_fields(field: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(field))}="):
        RandomErasing(**field)


class Pictures:
    """Small pictures, all different."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index):
        image = np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8)
        return {"image": image, "text": str(index)}


def tokens(texts):
    return np.array([[int(text)] for text in texts], np.int32)


def batches(erasing: RandomErasing | None, count: int) -> list:
    iterator = make_iterator(
        Pictures(),
        tokenizer=tokens,
        transform=Compose((HorizontalFlip(),)),
        erasing=erasing,
        global_batch_size=4,
        seed=0,
    )
    taken = [dict(next(iterator)) for _ in range(count)]
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
