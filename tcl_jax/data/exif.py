"""How a photo was held, by its EXIF data."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tcl_jax.errors import machine_fault


@dataclasses.dataclass(frozen=True)
class Turn:
    """How stored pixels become upright: mirror in x, in y, then exchange the axes."""

    mirror_x: bool = False
    mirror_y: bool = False
    swap: bool = False

    def apply(self, pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
        """Stored to upright; the same array where nothing is to do."""
        if self == Turn():
            return pixels
        pixels = pixels[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]
        return np.ascontiguousarray(pixels.swapaxes(0, 1) if self.swap else pixels)

    def box_before(
        self, box: tuple[int, int, int, int], *, width: int, height: int
    ) -> tuple[int, int, int, int]:
        """Where an upright box is in the stored image of this size."""
        left, top, right, bottom = box
        if self.swap:
            left, top, right, bottom = top, left, bottom, right
        if self.mirror_x:
            left, right = width - right, width - left
        if self.mirror_y:
            top, bottom = height - bottom, height - top
        return left, top, right, bottom


_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Turn(True), 3: Turn(True, True), 4: Turn(False, True), 5: Turn(False, False, True),
    6: Turn(False, True, True), 7: Turn(True, True, True), 8: Turn(True, False, True),
}  # fmt: skip
"""By the value of that tag of EXIF."""


def exif_turn(image: Image.Image) -> Turn:
    """What the EXIF data asks for; damaged EXIF data must not cost the picture."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION_TAG, 1), Turn())
    except Exception as error:
        if machine_fault(error):
            raise
        return Turn()
