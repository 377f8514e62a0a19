"""Sizes and windows, against what mmcv gives."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tcl_jax.inference.windows import Axis, SlidingWindow, resize_pixels, working_size


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((375, 500), (448, 597)),  # 597.33
        ((500, 375), (597, 448)),
        ((333, 500), (448, 673)),  # 672.67
        ((1, 1), (448, 448)),
        ((100, 1000), (205, 2048)),  # the long side decides: 204.8
        ((1, 10_000), (1, 2048)),  # 0.2 would vanish
    ],
)
def test_working_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert working_size(*size, 448) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((333, 500), (448, 672)),  # 672.67
        ((666, 333), (896, 448)),
        ((100, 1000), (204, 2048)),
        ((1, 10_000), (1, 2048)),
    ],
)
def test_working_size_rounded_down(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert working_size(*size, 448, resize="pillow") == expected


@pytest.mark.parametrize(
    ("size", "starts"),
    [(448, (0,)), (300, (0,)), (449, (0, 1)), (672, (0, 224)), (700, (0, 224, 252))],
)
def test_windows_cover_and_the_last_ends_at_the_border(size: int, starts: tuple[int, ...]) -> None:
    axis = Axis(size, 448, 224, 16)
    assert axis.starts == starts and starts[-1] + axis.side == size


def test_windows_are_padded_about_their_centre() -> None:
    sliding = SlidingWindow.over((70, 63), 64, 32, 16)
    assert sliding.windows == [(slice(0, 64), slice(0, 63)), (slice(6, 70), slice(0, 63))]
    assert sliding.side == (64, 63) and sliding.padded == (64, 64)
    assert sliding.columns.before == 0  # the smaller half comes first
    assert Axis(70, 100, 50, 16).padded == 80 and Axis(70, 100, 50, 16).before == 5


def test_resizing_to_the_same_size_is_the_identity() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    assert resize_pixels(image, (5, 7)) is image
    assert resize_pixels(image, (10, 21)).shape == (10, 21, 3)


def test_pillow_resizes_by_its_bicubic() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)
    expected = Image.fromarray(image).resize((7, 5), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(resize_pixels(image, (5, 7), "pillow"), np.asarray(expected))
