"""Label maps as tints over pictures, picture sizes, and PNG files."""

from __future__ import annotations

import base64
import io
import os
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from tcl_jax.files import whole_file

_BAND_PIXELS = 1 << 20


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    label: Integer[np.ndarray, "h w"],
    palette: UInt8[np.ndarray, "n 3"],
    opacity: int | float = 0.6,
    *,
    untouched: int | None = 0,
) -> UInt8[np.ndarray, "h w 3"]:
    """Image with every class but one tinted in its colour.

    Args:
        opacity: of the tint, in [0, 1].
        untouched: class whose pixels stay as they are, the background; None: no class.
    """
    tinted = np.empty(image.shape, np.uint8)
    colors = np.float32(opacity) * palette.astype(np.float32)
    rows = max(_BAND_PIXELS // image.shape[1], 1)
    for top in range(0, len(image), rows):
        band = slice(top, top + rows)
        mixed = image[band] * np.float32(1 - opacity)
        mixed += colors[label[band]]
        tinted[band] = np.rint(mixed, out=mixed)
        if untouched is not None:
            np.copyto(tinted[band], image[band], where=(label[band] == untouched)[..., None])
    return tinted


def enlarge(image: UInt8[np.ndarray, "h w 3"], factor: int) -> UInt8[np.ndarray, "H W 3"]:
    """Repeats every pixel, so that tiny pictures can be looked at."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def shrink(image: UInt8[np.ndarray, "h w 3"], long_side: int) -> UInt8[np.ndarray, "H W 3"]:
    """Image reduced without aliasing, so that its long side has at most `long_side` pixels.

    Each side keeps at least one pixel. An image that is no larger is returned as it is.
    """
    scale = long_side / max(image.shape[:2])
    if scale >= 1:
        return image
    import cv2  # here, so that the package runs without it where nothing is resized

    size = [max(round(side * scale), 1) for side in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def save_png(path: str | os.PathLike[str], image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes a PNG, whole or not at all."""
    with whole_file(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")


def data_url(image: UInt8[np.ndarray, "h w 3"], format: str, **options: Any) -> str:
    """A picture for a page, in a format of Pillow such as "WEBP", with its options."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format, **options)
    return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
