"""The page of training images: everything is on it, where it belongs."""

from __future__ import annotations

import numpy as np
import pytest

from tcl_jax.pictures.contact_sheet import PART, Card, contact_sheet
from tcl_jax.pictures.palette import PAPER


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


def test_images_stand_in_rows_as_high_as_their_longest_caption() -> None:
    images = [noise(224, 224, seed) for seed in range(17)]
    captions = ["x", "word " * 40, *["y"] * 15]
    cards = [Card(image, caption) for image, caption in zip(images, captions, strict=True)]
    page = contact_sheet(cards, title="t")
    places = [place_of(page, image) for image in images]
    columns = sorted({x for _, x in places})
    tops = sorted({y for y, _ in places})
    assert places == [(y, x) for y in tops for x in columns][: len(places)]
    assert np.diff(columns).min() >= 224 and np.diff(tops).min() >= 224
    assert tops[1] - tops[0] > tops[2] - tops[1]
    assert page.shape[1] == columns[-1] + 224 + columns[0]  # equal margins
    assert (page[[0, -1]] == PAPER).all() and (page[:, [0, -1]] == PAPER).all()


def test_an_original_stands_left_with_its_part_framed_and_the_rest_faded() -> None:
    original, image = noise(168, 224, 1), noise(224, 224, 2)
    card = Card(image, "c", original=original, part=(50, 30, 150, 130))
    page = contact_sheet([card], title="t")
    top, left = place_of(page, image)
    inner = original[32:128, 52:148]
    y, x = place_of(page, inner)
    assert x < left and (y - 32, x - 52) == (top + 28, left - 6 - 224)
    frame = np.argwhere((page == PART).all(-1))
    corner = np.array([y - 32, x - 52])
    np.testing.assert_array_equal(frame.min(0) - corner, [30, 50])
    np.testing.assert_array_equal(frame.max(0) - corner, [129, 149])
    outside = page[y - 32 : y - 32 + 168, x - 52 : x - 52 + 224][:25]
    np.testing.assert_array_equal(outside, np.rint(0.35 * original[:25].astype(float) + 165.75))
    whole = contact_sheet([Card(image, "c", original=original)], title="t")
    place_of(whole, original)
    assert not (whole == PART).all(-1).any()


def test_small_images_have_their_pixels_repeated_and_large_ones_are_reduced() -> None:
    image = noise(48, 48)
    place_of(contact_sheet([Card(image, "c")], title="t"), image.repeat(4, 0).repeat(4, 1))
    original = np.full((900, 1200, 3), 60, np.uint8)
    original[300:600, 400:800] = (20, 40, 200)
    card = Card(np.full((500, 300, 3), 7, np.uint8), "c", "", original, (400, 300, 800, 600))
    page = contact_sheet([card], title="t")
    place = np.argwhere((page == 7).all(-1))
    np.testing.assert_array_equal(np.ptp(place, axis=0) + 1, [224, 134])
    blue, frame = (np.argwhere((page == color).all(-1)) for color in ((20, 40, 200), PART))
    assert np.abs(blue.min(0) - frame.min(0)).max() <= 3
    assert np.abs(blue.max(0) - frame.max(0)).max() <= 3


@pytest.mark.parametrize("caption", ["", "\n\t", "猫が窓辺で寝ている", "🐱🐱", "a\0b", "w" * 900])
def test_any_caption_can_be_shown(caption: str) -> None:
    page = contact_sheet([Card(noise(224, 224), caption, caption)], title=caption)
    top, _ = place_of(page, noise(224, 224))
    assert (page[top + 224 :] < 200).any()
    assert page.shape[0] < 600
