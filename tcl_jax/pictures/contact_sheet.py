"""A page of training images with their captions, and what each was made from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from tcl_jax.pictures.grid import Rgb, titled_grid
from tcl_jax.pictures.lettering import printable
from tcl_jax.pictures.overlays import enlarge, shrink
from tcl_jax.pictures.palette import PAPER

PART = (232, 93, 4)
"""Colour of the frame about the part of an original that is used."""

_CELL, _PAGE_WIDTH, _GAP, _LINES = 224, 1900, 24, 6
_FADED = 0.35  # how much is left of what is not used


@dataclasses.dataclass(frozen=True)
class Card:
    """One training image.

    Attributes:
        image: RGB, uint8 [h, w, 3], as the model gets it.
        caption: any text.
        note: what was done to it; may be empty.
        original: RGB, uint8 [H, W, 3], what it was made from; None: is not shown.
        part: (left, top, right, bottom) in the original's pixels, the part that is used; None: all.
    """

    image: np.ndarray
    caption: str
    note: str = ""
    original: np.ndarray | None = None
    part: tuple[int, int, int, int] | None = None


def contact_sheet(cards: Sequence[Card]) -> UInt8[np.ndarray, "H W 3"]:
    """Cards, at least one, in rows about as wide as a screen, each under its caption and note.

    An original stands left of its image, all of it but the used part faded.
    """
    paired = any(card.original is not None for card in cards)
    width = _CELL * (1 + paired)
    cells = []
    for card in cards:
        drawn = Image.new("RGB", (width, _CELL), PAPER)
        _paste(drawn, Image.fromarray(_fitted(card.image)), width - _CELL)
        if card.original is not None:
            _paste(drawn, _faded_outside(card.original, card.part), 0)
        title = f"{printable(card.caption)} ({card.note})" if card.note else card.caption
        cells.append((title or "?", np.asarray(drawn)))
    columns = min(len(cards), _PAGE_WIDTH // (width + _GAP))
    return titled_grid(cells, columns, lines=_LINES, gap=_GAP)


def _paste(page: Image.Image, picture: Image.Image, left: int) -> None:
    """Puts a picture in the middle of a square cell."""
    page.paste(picture, (left + (_CELL - picture.width) // 2, (_CELL - picture.height) // 2))


def _fitted(image: Rgb) -> UInt8[np.ndarray, "H W 3"]:
    """An image that fits into a cell: reduced, or enlarged by repeated pixels where that fits."""
    return shrink(enlarge(image, max(_CELL // max(image.shape[:2]), 1)), _CELL)


def _faded_outside(original: Rgb, part: tuple[int, int, int, int] | None) -> Image.Image:
    """An original that fits into a cell; what is not of the part is faded, and the part framed."""
    fitted = _fitted(original)
    if part is None:
        return Image.fromarray(fitted)
    rows, columns = fitted.shape[0] / original.shape[0], fitted.shape[1] / original.shape[1]
    left, right = math.floor(part[0] * columns), math.ceil(part[2] * columns)
    top, bottom = math.floor(part[1] * rows), math.ceil(part[3] * rows)
    faded = np.rint(_FADED * fitted.astype(np.float32) + (1 - _FADED) * 255).astype(np.uint8)
    faded[top:bottom, left:right] = fitted[top:bottom, left:right]
    shown = Image.fromarray(faded)
    ImageDraw.Draw(shown).rectangle((left, top, right - 1, bottom - 1), outline=PART, width=2)
    return shown
