"""Size of an image, and how its EXIF data turned it."""

from __future__ import annotations

from pathlib import Path

from tcl_jax.data.exif import Turn, exif_turn
from tcl_jax.data.images import load_rgb, open_file


def image_size(path: Path) -> tuple[tuple[int, int], Turn]:
    """Height and width of an upright image, and the turn that made it upright.

    The image is decoded, so that one that is cut or damaged is found.

    Raises:
        ImageDecodeError: if it cannot be read, is damaged or cut short.
        RunError: if the machine fails.
    """
    with open_file(path) as image:
        # Pillow turns a TIFF as it decodes it, and may know the EXIF data of a PNG only then.
        tiff_turn = exif_turn(image) if image.format == "TIFF" else None
        load_rgb(image)
        turn = tiff_turn or exif_turn(image)
        swap = turn.swap and tiff_turn is None
        return (image.width, image.height) if swap else (image.height, image.width), turn
