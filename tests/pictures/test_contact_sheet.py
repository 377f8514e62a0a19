"""The page of training images: everything is on it, where it belongs."""

from __future__ import annotations

import numpy as np
import pytest

from tcl_jax.pictures.contact_sheet import PART, Card, contact_sheet


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Dark, so that it is not taken for paper, letters or frames."""
    return np.random.default_rng(seed).integers(40, 90, (height, width, 3), np.uint8)


def place_of(page: np.ndarray, picture: np.ndarray) -> tuple[int, int]:
    """Top left corner of a picture that is on the page once, unchanged."""
    height, width = picture.shape[:2]
    corners = [
        (int(y), int(x))
        for y, x in np.argwhere((page == picture[0, 0]).all(-1))
        if np.array_equal(page[y : y + height, x : x + width], picture)
    ]
    assert len(corners) == 1
    return corners[0]


def test_an_original_stands_left_with_its_part_framed_and_the_rest_faded() -> None:
    original, image = noise(168, 224, 1), noise(224, 224, 2)
    page = contact_sheet([Card(image, "c", original=original, part=(50, 30, 150, 130))])
    top, left = place_of(page, image)
    y, x = place_of(page, original[32:128, 52:148])
    corner = np.array([y - 32, x - 52])
    assert tuple(corner) == (top + 28, left - 224)
    frame = np.argwhere((page == PART).all(-1))
    np.testing.assert_array_equal(frame.min(0) - corner, [30, 50])
    np.testing.assert_array_equal(frame.max(0) - corner, [129, 149])
    outside = page[y - 32 : y - 32 + 168, x - 52 : x - 52 + 224][:25]
    np.testing.assert_array_equal(outside, np.rint(0.35 * original[:25].astype(float) + 165.75))
    whole = contact_sheet([Card(image, "c", original=original)])
    place_of(whole, original)
    assert not (whole == PART).all(-1).any()


def test_small_images_have_their_pixels_repeated_and_large_ones_are_reduced() -> None:
    image = noise(48, 48)
    place_of(contact_sheet([Card(image, "c")]), image.repeat(4, 0).repeat(4, 1))
    original = np.full((900, 1200, 3), 60, np.uint8)
    original[300:600, 400:800] = (20, 40, 200)
    card = Card(np.full((500, 300, 3), 7, np.uint8), "c", "", original, (400, 300, 800, 600))
    page = contact_sheet([card])
    place = np.argwhere((page == 7).all(-1))
    np.testing.assert_array_equal(np.ptp(place, axis=0) + 1, [224, 134])
    blue, frame = (np.argwhere((page == color).all(-1)) for color in ((20, 40, 200), PART))
    assert np.abs(blue.min(0) - frame.min(0)).max() <= 3
    assert np.abs(blue.max(0) - frame.max(0)).max() <= 3


@pytest.mark.parametrize("caption", ["", "\n\t", "猫が窓辺で寝ている", "🐱🐱", "a\0b", "w" * 900])
def test_any_caption_can_be_shown(caption: str) -> None:
    page = contact_sheet([Card(noise(224, 224), caption, caption)])
    top, _ = place_of(page, noise(224, 224))
    assert (page[:top] < 200).any() and page.shape[0] < 600
