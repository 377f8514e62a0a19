"""Size of an image file without decoding it, as far as it is whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from tcl_jax.data.exif import Turn, exif_turn
from tcl_jax.data.images import MAX_PIXELS, load_rgb, open_file


def image_size(path: Path) -> tuple[tuple[int, int], Turn]:
    """Height and width of an image, upright as OpenCV gives it, and what its EXIF data did to it.

    Header and end are read of a JPEG, PNG or WebP; if these are odd, and of other formats, all.

    Raises:
        ImageDecodeError: if it cannot be read, is damaged or cut short.
        RunError: if the machine fails.
    """
    try:
        with path.open("rb") as file, Image.open(file, formats=[*_LOOKS_WHOLE]) as image:
            width, height = image.size
            looks_whole = _LOOKS_WHOLE.get(image.format or "")
            if looks_whole and width * height <= MAX_PIXELS:
                turn = Turn() if image.format == "PNG" else exif_turn(image)
                if looks_whole(file):
                    return (width, height) if turn.swap else (height, width), turn
    except Exception:  # What is odd is left to the reading of the whole.
        pass
    with open_file(path) as image:
        # A TIFF is turned as it is decoded, and of a PNG the EXIF data are known only then.
        turned = exif_turn(image) if image.format == "TIFF" else None
        load_rgb(image)
        turn, size = turned or exif_turn(image), (image.height, image.width)
        return (size[::-1] if turn.swap and turned is None else size), turn


def _jpeg_looks_whole(file: BinaryIO) -> bool:
    file.seek(-2, os.SEEK_END)
    return file.read(2) == b"\xff\xd9"


def _png_looks_whole(file: BinaryIO) -> bool:
    """Whether all chunks are there; an image that may be turned is left to the whole reading."""
    size = file.seek(0, os.SEEK_END)
    position = 8
    while position + 12 <= size:
        file.seek(position)
        length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
        position += 12 + length
        if kind == b"eXIf":
            return False
        if kind == b"IEND":
            return position <= size
    return False


def _webp_looks_whole(file: BinaryIO) -> bool:
    size = file.seek(0, os.SEEK_END)
    file.seek(4)
    return size >= 8 + int.from_bytes(file.read(4), "little")


_LOOKS_WHOLE: dict[str, Callable[[BinaryIO], bool]] = {
    "JPEG": _jpeg_looks_whole,
    "PNG": _png_looks_whole,
    "WEBP": _webp_looks_whole,
}
