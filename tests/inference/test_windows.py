"""Sizes, windows and their merging, against what mmcv and a plain loop give."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.inference.windows import (
    MergedScores,
    normalize_pixels,
    resize_pixels,
    sliding_windows,
    working_size,
)
from tcl_jax.ops.images import center_offset, normalize


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((375, 500), (448, 597)),  # 597.33
        ((500, 375), (597, 448)),
        ((1024, 2048), (448, 896)),
        ((512, 512), (448, 448)),
        ((333, 500), (448, 673)),  # 672.67
        ((1, 1), (448, 448)),
        ((100, 1000), (205, 2048)),  # the long side decides: 204.8
        ((1, 10_000), (1, 2048)),  # 0.2 would vanish
    ],
)
def test_working_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert working_size(*size, 448) == expected


@pytest.mark.parametrize(
    ("size", "starts"),
    [(448, [0]), (300, [0]), (449, [0, 1]), (672, [0, 224]), (700, [0, 224, 252])],
)
def test_windows_cover_and_the_last_ends_at_the_border(size: int, starts: list[int]) -> None:
    windows = sliding_windows(size, 448, 448, 224)
    assert [w.top for w in windows] == starts
    assert windows[-1].top + windows[-1].height == size
    assert all(w.left == 0 and w.width == 448 for w in windows)


def test_merged_scores_are_the_mean_over_windows() -> None:
    windows = sliding_windows(10, 13, 6, 3)
    rng = np.random.default_rng(0)
    parts = [rng.random((6, 6, 2), np.float32) for _ in windows]
    merged = MergedScores(10, 13, 2)
    for window, part in zip(windows, parts, strict=True):
        merged.add(window, part)
    mean = merged.mean()
    for y, x in [(0, 0), (5, 5), (9, 12), (4, 9)]:
        values = [
            part[y - w.top, x - w.left]
            for w, part in zip(windows, parts, strict=True)
            if w.top <= y < w.top + 6 and w.left <= x < w.left + 6
        ]
        np.testing.assert_allclose(mean[y, x], np.mean(values, axis=0), rtol=1e-6)


def test_normalising_on_the_host_equals_the_device() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    expected = np.asarray(normalize(jnp.asarray(image)))
    np.testing.assert_allclose(normalize_pixels(image), expected, atol=1e-6)


def test_resizing_to_the_same_size_is_the_identity() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    assert resize_pixels(image, (5, 7)) is image
    assert resize_pixels(image, (10, 21)).shape == (10, 21, 3)


def test_centre_offset() -> None:
    assert center_offset(70, 16) == (80, 5)
    assert center_offset(64, 16) == (64, 0)
    assert center_offset(63, 16) == (64, 0)  # the smaller half comes first
