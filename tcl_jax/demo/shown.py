"""What the browser needs to draw masks by itself, so that no slider waits for the server."""

from __future__ import annotations

import base64
import io
import zlib
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image

from tcl_jax.inference.merging import ROUNDING, SoftMasks
from tcl_jax.pictures.overlays import shrink
from tcl_jax.pictures.palette import class_palette

LONG_SIDE = 1024
"""Long side of a picture on the page, in pixels; larger photos are reduced."""
STEPS = 1000
"""Scores are sent in thousandths, so that thresholds of the slider mean the same here and there."""

_JPEG_QUALITY = 92


def for_screen(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Image with a long side of at most `LONG_SIDE` pixels, each side at least one."""
    return shrink(image, LONG_SIDE)


def best_words(
    masks: SoftMasks, shape: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "H W"], UInt16[np.ndarray, "H W"]]:
    """Word with the largest score per pixel, and the score in thousandths, rounded up.

    A pixel is background from a threshold of k thousandths on if its value is k or less, as in
    `Segmentation.labels`.

    Args:
        masks: of up to 256 words.
        shape: rows and columns of the result.
    """
    words, scores = masks.best(shape)
    values = np.ceil(np.clip((scores.astype(np.float64) - ROUNDING) * STEPS, 0, STEPS))
    return words.astype(np.uint8), values.astype(np.uint16)


def photo_content(picture: UInt8[np.ndarray, "H W 3"]) -> dict[str, Any]:
    """A picture for the page's stage, without masks."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return {
        "photo": "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(),
        "height": picture.shape[0],
        "width": picture.shape[1],
        "panels": [],
    }


def mask_content(masks: SoftMasks, shape: tuple[int, int]) -> str:
    """Base64 of zlib-compressed planes: `best_words`' words, then low and high bytes of values."""
    words, values = best_words(masks, shape)
    planes = (words, values & 0xFF, values >> 8)
    data = b"".join(plane.astype(np.uint8).tobytes() for plane in planes)
    return base64.b64encode(zlib.compress(data, 6)).decode()


def word_colors(count: int) -> list[str]:
    """Colour of each word, as in the files to take away: #rrggbb."""
    return ["#{:02x}{:02x}{:02x}".format(*color) for color in class_palette(count, False).tolist()]
