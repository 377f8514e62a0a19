"""Drawn pictures that cost as much to decode as photographs."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from tcl_jax.shapes.source import ShapesSource
from tcl_jax.shapes.texture import texture_scene

WIDTH, HEIGHT, QUALITY = 500, 375, 90
"""Size in pixels, and JPEG quality: about 50 KB each, as photographs of that size have."""

_SCENE_SIDE = 125


def make_photo(number: int) -> tuple[UInt8[np.ndarray, "h w 3"], str]:
    """Picture `number`, uint8 [HEIGHT, WIDTH, 3], and its caption: a drawn scene with texture."""
    example = ShapesSource("train", num_examples=number + 1, image_size=_SCENE_SIDE)[number]
    return texture_scene(example["image"], number, (HEIGHT, WIDTH)), example["text"]
