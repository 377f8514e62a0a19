"""What the browser draws from is what `Segmentation` makes."""

from __future__ import annotations

import base64
import io
import zlib

import numpy as np
import pytest
from PIL import Image

from tcl_jax.demo.shown import (
    LONG_SIDE,
    best_words,
    for_screen,
    mask_content,
    photo_content,
    word_colors,
)
from tcl_jax.inference.merging import SoftMasks
from tcl_jax.inference.segmentation import Segmentation

SHAPE = (23, 40)


def scores() -> np.ndarray:
    made = np.random.default_rng(0).random((8, 9, 3), np.float32)
    # Scores that are thresholds of the slider themselves, over areas.
    made[:3, :, :] = np.float32(0.7)
    made[5:, :, :] = np.float32(0.29)
    made[7, 7:, 1] = 1.0
    return made


@pytest.mark.parametrize("hundredths", [0, 1, 29, 30, 50, 69, 70, 71, 99, 100])
def test_labels_at_every_threshold(hundredths: int) -> None:
    threshold = hundredths / 100
    words, values = best_words(SoftMasks.of_array(scores()), SHAPE)
    labels = np.where(values > 10 * hundredths, words.astype(int) + 1, 0)
    image = np.zeros((*SHAPE, 3), np.uint8)
    result = Segmentation(image, ("a", "b", "c"), scores(), threshold)
    np.testing.assert_array_equal(labels, result.labels)
    assert len(set(labels.ravel())) > 1 or hundredths in (0, 100)


def test_planes_come_back() -> None:
    words, values = best_words(SoftMasks.of_array(scores()), SHAPE)
    data = np.frombuffer(
        zlib.decompress(base64.b64decode(mask_content(SoftMasks.of_array(scores()), SHAPE))),
        np.uint8,
    )
    planes = data.reshape(3, *SHAPE).astype(int)
    np.testing.assert_array_equal(planes[0], words)
    np.testing.assert_array_equal(planes[1] + 256 * planes[2], values)
    assert values.max() == 1000


def test_photos_fit_the_screen() -> None:
    assert for_screen(np.zeros((3000, 10, 3), np.uint8)).shape == (LONG_SIDE, 3, 3)
    assert for_screen(np.zeros((1, 5000, 3), np.uint8)).shape == (1, LONG_SIDE, 3)
    small = np.full((5, 7, 3), 90, np.uint8)
    assert for_screen(small) is small
    content = photo_content(small)
    assert (content["height"], content["width"]) == (5, 7) and content["panels"] == []
    decoded = Image.open(io.BytesIO(base64.b64decode(content["photo"].partition(",")[2])))
    assert decoded.size == (7, 5)


def test_colors_are_those_of_the_files() -> None:
    result = Segmentation(
        np.zeros((2, 2, 3), np.uint8), ("a", "b"), np.zeros((2, 2, 2), np.float32)
    )
    assert word_colors(2) == ["#{:02x}{:02x}{:02x}".format(*c) for c in result.colors.tolist()]
