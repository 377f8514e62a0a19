"""A page of training images with their captions, and what each was made from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from tcl_jax.pictures.lettering import font_for, printable, wrap
from tcl_jax.pictures.overlays import enlarge, shrink
from tcl_jax.pictures.palette import FAINT, INK, PAPER

PART = (232, 93, 4)
"""Colour of the frame about the part of an original that is used."""

_CELL = 224
_TITLE_SIZE, _CAPTION_SIZE, _NOTE_SIZE = 24, 15, 12
_CAPTION_LINE, _NOTE_LINE = 20, 17  # height in pixels
_CAPTION_LINES, _NOTE_LINES = 4, 2
_MIN_WIDTH = 448
_MARGIN, _GAP, _BETWEEN = 32, 28, 6
_FADED = 0.35  # how much is left of what is not used

Rgb = UInt8[np.ndarray, "h w 3"]


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
    rows = [cards[k : k + columns] for k in range(0, len(cards), columns)]
    texts = [[_lines(card, width) for card in row] for row in rows]
    heights = [max(_text_height(*lines) for lines in row) for row in texts]
    content = columns * (width + _GAP) - _GAP
    page_width = max(content, _MIN_WIDTH) + 2 * _MARGIN
    titles = _title_lines(title, subtitle, page_width - 2 * _MARGIN)
    top = _MARGIN + sum(round(1.4 * size) for _, size, _ in titles) + _GAP // 2
    height = top + sum(cell + text + _GAP for text in heights) - _GAP + _MARGIN
    page = Image.new("RGB", (page_width, height), PAPER)
    draw = ImageDraw.Draw(page)
    y = _MARGIN
    for line, size, color in titles:
        draw.text((_MARGIN, y), line, color, font_for(line, size))
        y += round(1.4 * size)
    for row, lines, text_height in zip(rows, texts, heights, strict=True):
        for k, (card, (caption, note)) in enumerate(zip(row, lines, strict=True)):
            corner = (_MARGIN + k * (width + _GAP), top)
            _draw_pictures(page, card, corner, width, cell)
            _draw_text(draw, caption, note, (corner[0], top + cell + 8))
        top += cell + text_height + _GAP
    return np.asarray(page)


def _title_lines(title: str, subtitle: str, width: int) -> list[tuple[str, int, tuple]]:
    """Lines with their sizes and colours."""
    lines = [(line, _TITLE_SIZE, INK) for line in wrap(printable(title), width, _TITLE_SIZE, 2)]
    if subtitle:
        wrapped = wrap(printable(subtitle), width, _CAPTION_SIZE, 3)
        lines += [(line, _CAPTION_SIZE, FAINT) for line in wrapped]
    return lines


def _lines(card: Card, width: int) -> tuple[list[str], list[str]]:
    """Lines of a card's caption and note."""
    caption = wrap(printable(card.caption), width, _CAPTION_SIZE, _CAPTION_LINES)
    note = wrap(printable(card.note), width, _NOTE_SIZE, _NOTE_LINES) if card.note else []
    return caption, note


def _text_height(caption: Sequence[str], note: Sequence[str]) -> int:
    return 8 + len(caption) * _CAPTION_LINE + len(note) * _NOTE_LINE + (4 if note else 0)


def _draw_pictures(
    page: Image.Image, card: Card, corner: tuple[int, int], width: int, cell: int
) -> None:
    """The original, if any, and the image, each in the middle of a cell."""
    left, top = corner
    pictures = [(left + width - cell, Image.fromarray(_fitted(card.image)))]
    if card.original is not None:
        pictures.append((left, _faded_outside(card.original, card.part)))
    for x, picture in pictures:
        page.paste(picture, (x + (cell - picture.width) // 2, top + (cell - picture.height) // 2))


def _draw_text(
    draw: ImageDraw.ImageDraw, caption: Sequence[str], note: Sequence[str], corner: tuple[int, int]
) -> None:
    x, y = corner
    for line in caption:
        draw.text((x, y), line, INK, font_for(line, _CAPTION_SIZE))
        y += _CAPTION_LINE
    for line in note:
        draw.text((x, y + 4), line, FAINT, font_for(line, _NOTE_SIZE))
        y += _NOTE_LINE


def _fitted(image: Rgb) -> UInt8[np.ndarray, "H W 3"]:
    """An image that fits into a cell: reduced, or enlarged by repeated pixels where that fits."""
    return shrink(enlarge(image, max(_CELL // max(image.shape[:2]), 1)), _CELL)


def _faded_outside(original: Rgb, part: tuple[int, int, int, int] | None) -> Image.Image:
    """An original in a cell; what is not of the part is faded, and the part framed."""
    fitted = _fitted(original)
    if part is None:
        return Image.fromarray(fitted)
    rows, columns = fitted.shape[0] / original.shape[0], fitted.shape[1] / original.shape[1]
    left, right = (math.floor(part[0] * columns), math.ceil(part[2] * columns))
    top, bottom = (math.floor(part[1] * rows), math.ceil(part[3] * rows))
    faded = np.rint(_FADED * fitted.astype(np.float32) + (1 - _FADED) * 255).astype(np.uint8)
    faded[top:bottom, left:right] = fitted[top:bottom, left:right]
    shown = Image.fromarray(faded)
    ImageDraw.Draw(shown).rectangle((left, top, right - 1, bottom - 1), outline=PART, width=2)
    return shown
