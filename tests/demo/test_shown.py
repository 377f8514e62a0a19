"""What the browser draws from is what `Segmentation` makes."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest

from tcl_jax.demo.shown import mask_content
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
    sent = zlib.decompress(base64.b64decode(mask_content(SoftMasks.of_array(scores()), SHAPE)))
    pixels = SHAPE[0] * SHAPE[1]
    values = np.frombuffer(sent, "<u2", pixels).reshape(SHAPE)
    words = np.frombuffer(sent, np.uint8, offset=2 * pixels).reshape(SHAPE)
    assert values.max() == 1000
    labels = np.where(values > 10 * hundredths, words.astype(int) + 1, 0)
    image = np.zeros((*SHAPE, 3), np.uint8)
    result = Segmentation(image, ("a", "b", "c"), scores(), hundredths / 100)
    np.testing.assert_array_equal(labels, result.labels)
    assert len(set(labels.ravel())) > 1 or hundredths in (0, 100)
