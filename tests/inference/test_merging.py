"""Merged masks and label maps against the protocol's steps, one after the other."""

from __future__ import annotations

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.errors import RunError
from tcl_jax.inference import merging
from tcl_jax.inference.merging import SoftMasks
from tcl_jax.inference.windows import SlidingWindow, working_size
from tcl_jax.ops.resize import resize
from tests.reference import label_map

PATCH = 16
SIZES = [(96, 128), (500, 333), (64, 64), (40, 61), (300, 1900), (1, 500)]


def made_up(height: int, width: int, classes: int, cells_per_patch: int = 4) -> SoftMasks:
    """Smooth random masks of which several win somewhere."""
    size = working_size(height, width, 112, 512)
    sliding = SlidingWindow.over(size, 112, 56, PATCH)
    rng = np.random.default_rng(classes)
    rows, columns = (side // PATCH * cells_per_patch for side in sliding.padded)
    noise = rng.random((len(sliding.windows), classes, rows, columns), np.float32)
    grids = [[cv2.GaussianBlur(plane, (0, 0), 2) for plane in window] for window in noise]
    return SoftMasks(sliding, np.ascontiguousarray(np.moveaxis(np.array(grids), 1, -1)))


def step_by_step(masks: SoftMasks, size: tuple[int, int]) -> np.ndarray:
    """To the window, mean of windows, to the original."""
    sliding, total = masks.sliding, np.zeros((*masks.size, masks.grids.shape[-1]), np.float32)
    count = np.zeros((*masks.size, 1), np.float32)
    height, width = sliding.side
    top, left = sliding.rows.before, sliding.columns.before
    for window, grid in zip(sliding.windows, masks.grids, strict=True):
        whole = np.asarray(resize(jnp.asarray(grid), sliding.padded))
        total[window] += whole[top : top + height, left : left + width]
        count[window] += 1
    return np.asarray(resize(jnp.asarray(total / count), size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cells", [1, 4])
def test_equals_the_steps(
    size: tuple[int, int], cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = made_up(*size, 9, cells)
    expected = step_by_step(masks, size)
    monkeypatch.setattr(merging, "_BAND_VALUES", 9 * size[1] * 40)
    monkeypatch.setattr(merging, "_CLASSES", 4)
    bands = list(masks.bands(size))
    assert len(bands) == -(-size[0] // 40) and bands[0].dtype == np.float32
    np.testing.assert_allclose(np.concatenate(bands), expected, atol=2e-6)
    np.testing.assert_array_equal(masks.at(size), np.concatenate(bands))
    for background in (None, 0.5, 2.0):
        labels = masks.labels(size, background, threads=2)
        assert labels.shape == size and labels.dtype == np.uint16
        wrong = np.count_nonzero(labels != label_map(expected, background))
        assert wrong <= max(5, labels.size // 50_000)
    classes, scores = masks.best(size)
    np.testing.assert_allclose(scores, expected.max(-1), atol=2e-6)
    assert len(np.unique(classes)) > 3 or classes.size <= 500


@pytest.mark.parametrize(
    ("small", "large"),
    [
        ((7, 9), (7, 9)),
        ((7, 9), (50, 33)),
        ((50, 33), (7, 9)),
        ((1, 40), (9, 3)),
        ((6, 5), (900, 1)),
    ],
)
def test_masks_that_are_merged_already(small: tuple[int, int], large: tuple[int, int]) -> None:
    masks = np.random.default_rng(0).random((*small, 3), np.float32)
    expected = np.asarray(resize(jnp.asarray(masks), large))
    merged = SoftMasks.of_array(masks)
    np.testing.assert_allclose(merged.at(large), expected, atol=2e-6)
    np.testing.assert_array_equal(merged.at(small), masks)
    np.testing.assert_array_equal(merged.labels(large), label_map(expected, None))


def test_the_first_of_equal_classes_wins() -> None:
    masks = made_up(90, 144, 1)
    equal = SoftMasks(masks.sliding, np.repeat(masks.grids, 70, axis=-1))
    assert not equal.labels((227, 301)).any()
    grids = np.full((*masks.grids.shape[:3], 4), 0.4, np.float32)
    grids[..., 0] = 0.25
    flat = SoftMasks(masks.sliding, grids)
    assert (flat.labels((227, 301)) == 1).all()
    # The background is put before the classes, so that it wins against an equal one.
    for background, expected in ((0.4, 0), (0.39, 2), (0.41, 0)):
        assert (flat.labels((227, 301), background) == expected).all()


def test_masks_that_are_not_finite() -> None:
    masks = SoftMasks.of_array(np.full((4, 4, 2), np.nan, np.float32))
    with pytest.raises(RunError, match="not finite"):
        masks.labels((8, 8))
