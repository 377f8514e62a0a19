"""Drawn pictures that cost as much to decode as photographs, packed as a tar shard."""

from __future__ import annotations

import io
import os
import tarfile

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tcl_jax.files import whole_file
from tcl_jax.shapes.source import ShapesSource
from tcl_jax.shapes.texture import texture_scene

WIDTH, HEIGHT, QUALITY = 500, 375, 90
"""Size in pixels, and JPEG quality: about 50 KB each, as photographs of that size have."""

_SCENE_SIDE = 125


def make_photo(number: int) -> tuple[UInt8[np.ndarray, "h w 3"], str]:
    """Picture `number`, uint8 [HEIGHT, WIDTH, 3], and its caption: a drawn scene with texture."""
    example = ShapesSource("train", num_examples=number + 1, image_size=_SCENE_SIDE)[number]
    return texture_scene(example["image"], number, (HEIGHT, WIDTH)), example["text"]


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
