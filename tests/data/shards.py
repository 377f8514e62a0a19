"""Tar shards for tests, written by the standard library."""

from __future__ import annotations

import functools
import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tcl_jax.bench.photos import QUALITY, make_photo


def write_shard(
    path: Path,
    members: dict[str, bytes] | Iterable[tuple[str, bytes]],
    tar_format: int = tarfile.GNU_FORMAT,
) -> str:
    """A tar file of these members, in their order."""
    listed = members.items() if isinstance(members, dict) else members
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in listed:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def pairs(*keys: str) -> dict[str, bytes]:
    """Members KEY.jpg and KEY.txt of each key; the images are none."""
    members = {}
    for key in keys:
        members |= {f"{key}.jpg": b"image of " + key.encode(), f"{key}.txt": f"é {key}".encode()}
    return members


def encode(image: np.ndarray | Image.Image, file_format: str, **options: Any) -> bytes:
    """A picture as the bytes of a file."""
    buffer = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@functools.cache
def picture(number: int, file_format: str = "JPEG", side: int = 16) -> bytes:
    """A small picture whose colour tells its number, 0 to 255."""
    return encode(np.full((side, side, 3), number, np.uint8), file_format)


def write_photos(path: Path, count: int) -> None:
    """Drawn pictures 0 to count - 1, with their captions."""
    members = {}
    for number in range(count):
        pixels, caption = make_photo(number)
        photo = encode(pixels, "JPEG", quality=QUALITY)
        members |= {f"{number}.jpg": photo, f"{number}.txt": caption.encode()}
    write_shard(path, members)


def wait_for_another_time(path: Path) -> None:
    """Gives a file another time of change, however coarse the clock is."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
