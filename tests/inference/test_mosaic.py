"""Label maps tile by tile against masks of the whole image, put together step by step."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from tcl_jax.inference.mosaic import Mosaic
from tcl_jax.inference.upsampling import upsample, upsampled_argmax
from tcl_jax.inference.windows import MergedScores
from tcl_jax.ops.images import center_offset

PATCH = 16


def smooth_grids(mosaic: Mosaic, classes: int, cells_per_patch: int = 4) -> list[np.ndarray]:
    """Random masks of every window in which several classes win somewhere."""
    rng = np.random.default_rng(classes)
    grids = []
    for window in mosaic.windows:
        rows, columns = (
            center_offset(side, PATCH)[0] // PATCH * cells_per_patch
            for side in (window.height, window.width)
        )
        noise = rng.random((classes, rows, columns), np.float32)
        smooth = [cv2.GaussianBlur(plane, (0, 0), 2) for plane in noise]
        grids.append(np.ascontiguousarray(np.stack(smooth, axis=-1)))
    return grids


def step_by_step(mosaic: Mosaic, grids: list[np.ndarray], constant: float | None) -> np.ndarray:
    """The protocol in words: to the window, mean of windows, to the original, best class."""
    merged = MergedScores(*mosaic.size, grids[0].shape[-1])
    for window, grid in zip(mosaic.windows, grids, strict=True):
        (rows, top), (columns, left) = (
            center_offset(side, PATCH) for side in (window.height, window.width)
        )
        masks = upsample(grid, (rows, columns))
        merged.add(window, masks[top : top + window.height, left : left + window.width])
    return upsampled_argmax(merged.mean(), (mosaic.height, mosaic.width), constant)


@pytest.mark.parametrize(
    ("height", "width"),
    [(96, 128), (375, 500), (500, 333), (64, 64), (40, 61), (300, 1900), (1900, 150), (1, 500)],
)
@pytest.mark.parametrize("constant", [None, 0.5])
def test_equals_the_steps(height: int, width: int, constant: float | None) -> None:
    mosaic = Mosaic(height, width, 112, 112, 56, PATCH, max_long_side=512)
    grids = smooth_grids(mosaic, 9)
    labels = mosaic.labels(grids, constant)
    assert labels.shape == (height, width) and labels.dtype == np.uint16
    expected = step_by_step(mosaic, grids, constant)
    assert np.count_nonzero(labels != expected) <= max(5, labels.size // 50_000)
    assert len(np.unique(labels)) > 3 or labels.size <= 500


def test_windows_of_the_patch_grid() -> None:
    """CLIP alone has one cell a patch."""
    mosaic = Mosaic(90, 200, 64, 64, 32, PATCH)
    grids = smooth_grids(mosaic, 5, cells_per_patch=1)
    np.testing.assert_array_equal(mosaic.labels(grids), step_by_step(mosaic, grids, None))


def test_the_first_of_equal_classes_wins() -> None:
    mosaic = Mosaic(30, 30, 64, 64, 32, PATCH)
    grids = [np.full((16, 16, 4), 0.5, np.float32)]
    grids[0][..., 0] = 0.25
    assert (mosaic.labels(grids) == 1).all()
    # The constant is put before the classes, so that it wins against an equal one.
    assert (mosaic.labels(grids, 0.5) == 0).all()
    assert (mosaic.labels(grids, 0.49) == 2).all()
    assert (mosaic.labels(grids, 0.51) == 0).all()


def test_memory_does_not_grow_with_the_image_times_the_classes() -> None:
    import tracemalloc

    mosaic = Mosaic(1000, 1500, 448, 448, 224, PATCH)
    grids = smooth_grids(mosaic, 171)
    tracemalloc.start()
    mosaic.labels(grids)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 171 * 1000 * 1500 / 10
