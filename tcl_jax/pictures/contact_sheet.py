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

_CELL, _PAGE_WIDTH, _MIN_WIDTH = 224, 1900, 448
_TITLE, _CAPTION, _NOTE = 24, 15, 12  # font sizes
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
    cards: Sequence[Card], *, title: str, subtitle: str = ""
) -> UInt8[np.ndarray, "H W 3"]:
    """Cards under a title, in rows about as wide as a screen, each with its caption beneath.

    Args:
        cards: at least one. An original stands left of its image, all of it but the used part
            faded.
        title, subtitle: the lines at the top.

    Returns:
        uint8 RGB.
    """
    paired = any(card.original is not None for card in cards)
    width = 2 * _CELL + _BETWEEN if paired else _CELL
    columns = min(len(cards), round(_PAGE_WIDTH / (width + _GAP)))
    content = max(columns * (width + _GAP) - _GAP, _MIN_WIDTH)
    heading = _wrapped(title, content, _TITLE, INK, 2)
    heading += _wrapped(subtitle, content, _CAPTION, FAINT, 3)
    drawn = [_draw_card(card, width) for card in cards]
    rows = [drawn[start : start + columns] for start in range(0, len(drawn), columns)]
    heights = [max(card.height for card in row) + _GAP for row in rows]
    top = _MARGIN + _height(heading) + _GAP // 2
    page_size = (content + 2 * _MARGIN, top + sum(heights) - _GAP + _MARGIN)
    page = Image.new("RGB", page_size, PAPER)
    _write(page, heading, _MARGIN, _MARGIN)
    for row, height in zip(rows, heights, strict=True):
        for k, card in enumerate(row):
            page.paste(card, (_MARGIN + k * (width + _GAP), top))
        top += height
    return np.asarray(page)


def _draw_card(card: Card, width: int) -> Image.Image:
    text = _wrapped(card.caption or "?", width, _CAPTION, INK, 4)
    text += _wrapped(card.note, width, _NOTE, FAINT, 2)
    drawn = Image.new("RGB", (width, _CELL + _ABOVE_TEXT + _height(text)), PAPER)
    _paste(drawn, Image.fromarray(_fitted(card.image)), width - _CELL)
    if card.original is not None:
        _paste(drawn, _faded_outside(card.original, card.part), 0)
    _write(drawn, text, 0, _CELL + _ABOVE_TEXT)
    return drawn


def _wrapped(text: str, width: int, size: int, color: tuple[int, int, int], most: int) -> Lines:
    """Lines of a text, none of an empty one."""
    lines = wrap(printable(text), width, size, most) if text else []
    return [(line, size, color) for line in lines]


def _height(lines: Lines) -> int:
    return sum(round(1.4 * size) for _, size, _ in lines)


def _write(page: Image.Image, lines: Lines, x: int, y: int) -> None:
    draw = ImageDraw.Draw(page)
    for line, size, color in lines:
        draw.text((x, y), line, color, font_for(line, size))
        y += round(1.4 * size)


def _paste(page: Image.Image, picture: Image.Image, left: int) -> None:
    """Puts a picture in the middle of a square cell at the top."""
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
