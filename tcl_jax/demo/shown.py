"""What the browser needs to draw masks by itself, so that no slider waits for the server."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
from jaxtyping import UInt8

from tcl_jax.inference.merging import ROUNDING, SoftMasks
from tcl_jax.pictures.overlays import data_url

STEPS = 1000
"""Scores are sent in thousandths, so that thresholds of the slider mean the same here and there."""


def jpeg_url(picture: UInt8[np.ndarray, "H W 3"], quality: int) -> str:
    """A picture as a data URL, its colours as fine as its shapes."""
    return data_url(picture, "JPEG", quality=quality, subsampling=0)


def photo_content(picture: UInt8[np.ndarray, "H W 3"]) -> dict[str, Any]:
    """A picture for the page's stage, without masks."""
    height, width = picture.shape[:2]
    return {"photo": jpeg_url(picture, 92), "height": height, "width": width, "panels": []}


def mask_content(masks: SoftMasks, shape: tuple[int, int]) -> str:
    """The best word of every pixel and its score, for stage.js.

    A pixel is background from a threshold of k thousandths on if its score is k or less, as in
    `Segmentation.labels`. There may be up to 256 words.

    Returns:
        Base64 of zlib-compressed planes: scores in thousandths, rounded up (little-endian, 16
        bits), then indices of words (8 bits).
    """
    words, scores = masks.best(shape)
    values = np.ceil(np.clip((scores.astype(np.float64) - ROUNDING) * STEPS, 0, STEPS))
    data = values.astype("<u2").tobytes() + words.astype(np.uint8).tobytes()
    return base64.b64encode(zlib.compress(data, 6)).decode()
