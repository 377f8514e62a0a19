"""Drawn pictures that cost as much to decode as photographs, packed as a tar shard."""

from __future__ import annotations

import io
import os
import tarfile

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tcl_jax.files import whole_file
from tcl_jax.shapes.source import ShapesSource

WIDTH, HEIGHT, QUALITY = 500, 375, 90
"""Size in pixels, and JPEG quality: about 50 KB each, as photographs of that size have."""

_SCENE_SIDE = 125
# Standard deviation of the noise at each scale, finest first; larger at coarse scales, as in
# photographs.
_NOISE = ((1, 4.5), (2, 8.0), (4, 10.0), (16, 14.0))


def make_photo(number: int) -> tuple[UInt8[np.ndarray, "h w 3"], str]:
    """Picture `number`, uint8 [HEIGHT, WIDTH, 3], and its caption: a drawn scene with texture."""
    example = ShapesSource("train", num_examples=number + 1, image_size=_SCENE_SIDE)[number]
    return texture_scene(example["image"], number), example["text"]


def texture_scene(scene: UInt8[np.ndarray, "s s 3"], number: int) -> UInt8[np.ndarray, "h w 3"]:
    """The middle of a square scene as picture `number`, uint8 [HEIGHT, WIDTH, 3]."""
    scene = cv2.resize(scene, (WIDTH, WIDTH), interpolation=cv2.INTER_CUBIC)
    top = (WIDTH - HEIGHT) // 2
    picture = scene[top : top + HEIGHT].astype(np.float32)
    rng = np.random.default_rng(number)
    for scale, deviation in _NOISE:
        size = (-(-HEIGHT // scale), -(-WIDTH // scale))
        light = rng.standard_normal(size, np.float32) * np.float32(deviation)
        picture += cv2.resize(light, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)[..., None]
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def write_photos(path: str | os.PathLike[str], count: int) -> None:
    """Packs pictures 0 to count - 1 as the pairs KEY.jpg and KEY.txt of a tar shard."""
    with whole_file(path) as temporary, tarfile.open(temporary, "w") as tar:
        for number in range(count):
            picture, caption = make_photo(number)
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, "JPEG", quality=QUALITY)
            for suffix, data in (("jpg", buffer.getvalue()), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
