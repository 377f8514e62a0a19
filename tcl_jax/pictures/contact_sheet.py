"""A page of training images with their captions, and what each was made from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from tcl_jax.pictures.lettering import font_for, printable, wrap
from tcl_jax.pictures.overlays import enlarge, shrink
from tcl_jax.pictures.palette import FAINT, INK, PAPER

PART = (232, 93, 4)
"""Colour of the frame about the part of an original that is used."""

_CELL = 224
_TITLE, _CAPTION, _NOTE = 24, 15, 12  # font sizes
_MIN_WIDTH = 448
_MARGIN, _GAP, _BETWEEN, _ABOVE_TEXT = 32, 28, 6, 8
_FADED = 0.35  # how much is left of what is not used

Rgb = UInt8[np.ndarray, "h w 3"]
Lines: TypeAlias = list[tuple[str, int, tuple[int, int, int]]]
"""Texts with their font sizes and colours."""


@dataclasses.dataclass(frozen=True)
class Card:
    """One training image.

    Attributes:
        image: RGB, uint8 [h, w, 3], as the model gets it.
        caption: any text.
        note: what was done to it, in small print; may be empty.
        original: RGB, uint8 [H, W, 3], what it was made from; None: is not shown.
        part: (left, top, right, bottom) in the original's pixels, the part that is used; None: all.
    """

    image: np.ndarray
    caption: str
    note: str = ""
    original: np.ndarray | None = None
    part: tuple[int, int, int, int] | None = None


def contact_sheet(
    cards: Sequence[Card], *, title: str, subtitle: str = "", columns: int | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """Cards in rows under a title, each with its caption beneath.

    Args:
        cards: at least one. An original stands left of its image, all of it but the used part
            faded.
        title, subtitle: the lines at the top.
        columns: cards side by side; None: as many as make the page about as wide as a screen.

    Returns:
        uint8 RGB.
    """
    paired = any(card.original is not None for card in cards)
    cell = _CELL if paired else max(max(_fitted(card.image).shape[:2]) for card in cards)
    width = 2 * cell + _BETWEEN if paired else cell
    if columns is None:
        columns = min(len(cards), max(round(1900 / (width + _GAP)), 1))
    content = max(columns * (width + _GAP) - _GAP, _MIN_WIDTH)
    heading = _wrapped(title, content, _TITLE, INK, 2) + _wrapped(
        subtitle, content, _CAPTION, FAINT, 3
    )
    texts = [
        _wrapped(card.caption or "?", width, _CAPTION, INK, 4)
        + _wrapped(card.note, width, _NOTE, FAINT, 2)
        for card in cards
    ]
    starts = range(0, len(cards), columns)
    heights = [
        cell + _ABOVE_TEXT + max(map(_height, texts[start : start + columns])) + _GAP
        for start in starts
    ]
    top = _MARGIN + _height(heading) + _GAP // 2
    page_size = (content + 2 * _MARGIN, top + sum(heights) - _GAP + _MARGIN)
    page = Image.new("RGB", page_size, PAPER)
    draw = ImageDraw.Draw(page)
    _write(draw, heading, _MARGIN, _MARGIN)
    for start, height in zip(starts, heights, strict=True):
        for k, card in enumerate(cards[start : start + columns]):
            left = _MARGIN + k * (width + _GAP)
            _paste(page, Image.fromarray(_fitted(card.image)), left + width - cell, top, cell)
            if card.original is not None:
                _paste(page, _faded_outside(card.original, card.part), left, top, cell)
            _write(draw, texts[start + k], left, top + cell + _ABOVE_TEXT)
        top += height
    return np.asarray(page)


def _wrapped(text: str, width: int, size: int, color: tuple[int, int, int], most: int) -> Lines:
    """Lines of a text, none of an empty one."""
    lines = wrap(printable(text), width, size, most) if text else []
    return [(line, size, color) for line in lines]


def _height(lines: Lines) -> int:
    return sum(round(1.4 * size) for _, size, _ in lines)


def _write(draw: ImageDraw.ImageDraw, lines: Lines, x: int, y: int) -> None:
    for line, size, color in lines:
        draw.text((x, y), line, color, font_for(line, size))
        y += round(1.4 * size)


def _paste(page: Image.Image, picture: Image.Image, x: int, y: int, cell: int) -> None:
    """Puts a picture in the middle of a square cell."""
    page.paste(picture, (x + (cell - picture.width) // 2, y + (cell - picture.height) // 2))


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
