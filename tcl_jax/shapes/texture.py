"""Drawn scenes with the texture of photographs."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import UInt8

# Standard deviation of the noise at each scale, finest first; larger at coarse scales, as in
# photographs.
_NOISE = ((1, 4.5), (2, 8.0), (4, 10.0), (16, 14.0))


def texture_scene(
    scene: UInt8[np.ndarray, "s s 3"], number: int, size: tuple[int, int]
) -> UInt8[np.ndarray, "h w 3"]:
    """The middle of a square scene with noise at several scales, of which the number is the seed.

    The scene is resized to the columns of the size.
    """
    height, width = size
    top = (width - height) // 2
    scene = cv2.resize(scene, (width, width), interpolation=cv2.INTER_CUBIC)
    picture = scene[top : top + height].astype(np.float32)
    rng = np.random.default_rng(number)
    for scale, deviation in _NOISE:
        shape = (-(-height // scale), -(-width // scale))
        light = rng.standard_normal(shape, np.float32) * np.float32(deviation)
        picture += cv2.resize(light, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)
