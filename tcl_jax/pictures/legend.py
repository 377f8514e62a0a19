"""A picture with a legend beneath it, readable whatever the picture's size and the names."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from tcl_jax.pictures.lettering import font_for, load_font, printable, text_width, wrap
from tcl_jax.pictures.overlays import shrink
from tcl_jax.pictures.palette import FAINT, INK, PAPER

MIN_LONG_SIDE, MAX_LONG_SIDE = 480, 2000
"""Long side of a picture that is shown, in pixels; smaller ones are enlarged, larger reduced."""
MIN_SHORT_SIDE = 16
"""Short side below which a sliver is stretched, so that one can see it."""
MAX_ENTRIES = 90
"""Number of names that are listed with a colour; more are counted only."""

_MIN_WIDTH = 480
_FONT_SIZES = (15, 28)
_NAME_LINES, _REST_LINES = 2, 3


@dataclasses.dataclass(frozen=True)
class LegendEntry:
    """A line of a legend.

    Attributes:
        name: any text.
        color: RGB; None: a class that is shown untinted.
        share: of the picture's area, in [0, 1].
        note: what is written behind the name; None: the share in per cent.
    """

    name: str
    color: tuple[int, int, int] | None
    share: int | float
    note: str | None = None

    @property
    def remark(self) -> str:
        """What is written behind the name."""
        return _percent(self.share) if self.note is None else self.note


def for_display(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Image of a size that suits a screen: tiny ones have their pixels repeated, huge ones fewer.

    The long side becomes `MIN_LONG_SIDE` to `MAX_LONG_SIDE` pixels. The aspect is kept, but for
    slivers, whose short side is stretched to `MIN_SHORT_SIDE`.
    """
    image = shrink(image, MAX_LONG_SIDE)
    factor = math.ceil(MIN_LONG_SIDE / max(image.shape[:2]))
    rows, columns = (max(factor, math.ceil(MIN_SHORT_SIDE / s)) for s in image.shape[:2])
    return image.repeat(rows, axis=0).repeat(columns, axis=1)


def legend_page(
    picture: UInt8[np.ndarray, "h w 3"], entries: Sequence[LegendEntry], absent: Sequence[str] = ()
) -> UInt8[np.ndarray, "H W 3"]:
    """Picture on a white page, and under it the names with their colours and areas in columns.

    Args:
        picture: uint8 RGB of a size to be shown, see `for_display`.
        entries: in the order they are listed; of more than `MAX_ENTRIES` the rest is counted.
        absent: names that occur nowhere, listed in grey as far as three lines go.

    Returns:
        uint8 RGB; the page is as wide as the picture and margins, or wider for narrow pictures.
    """
    height, width = picture.shape[:2]
    content = max(width, _MIN_WIDTH)
    font_size = int(np.clip(round(content / 48), *_FONT_SIZES))
    margin, line = font_size, round(1.5 * font_size)
    entries, rest = entries[:MAX_ENTRIES], entries[MAX_ENTRIES:]
    cells = _lay_out(entries, content, font_size)
    notes = []
    if rest:
        share = sum(entry.share for entry in rest)
        notes.append(f"and {len(rest)} more, together {_percent(share)}")
    if absent:
        names = ", ".join(printable(name) for name in absent)
        notes += wrap(f"not found: {names}", content, font_size, _REST_LINES)
    legend_height = max((cell.bottom for cell in cells), default=0)
    notes_top = margin + height + margin + legend_height + (margin // 2 if notes else 0)
    page = Image.new(
        "RGB", (content + 2 * margin, notes_top + len(notes) * line + margin // 2), PAPER
    )
    page.paste(Image.fromarray(picture), (margin + (content - width) // 2, margin))
    draw = ImageDraw.Draw(page)
    top = margin + height + margin
    for entry, cell in zip(entries, cells, strict=True):
        _draw_entry(draw, entry, cell, (margin + cell.left, top + cell.top), font_size)
    for i, note in enumerate(notes):
        draw.text((margin, notes_top + i * line), note, FAINT, font_for(note, font_size))
    return np.asarray(page)


@dataclasses.dataclass(frozen=True)
class _Cell:
    """Place of an entry, relative to the legend's corner, and its name's lines."""

    left: int
    top: int
    bottom: int
    lines: tuple[str, ...]


def _lay_out(entries: Sequence[LegendEntry], width: int, font_size: int) -> list[_Cell]:
    """Cells that flow down, then to the next column."""
    line, beside = round(1.35 * font_size), round(1.6 * font_size)
    gap = 2 * font_size
    widest = min(width, 22 * font_size)
    if len(entries) > 6:  # long names take more lines, so that a long list takes two columns
        widest = min(widest, max((width - gap) // 2, 12 * font_size))
    wrapped, widths = [], []
    for entry in entries:
        remark = round(text_width(f"  {entry.remark}", font_size))
        room = widest - beside - remark
        lines = wrap(printable(entry.name), room, font_size, _NAME_LINES)
        wrapped.append(lines)
        ends = [text_width(text, font_size) for text in lines]
        ends[-1] += remark
        widths.append(beside + math.ceil(max(ends)))
    column = max(widths, default=1) + gap
    columns = max((width + gap) // column, 1)
    per_column = max(-(-len(entries) // columns), 1)
    cells = []
    top = 0
    for i, lines in enumerate(wrapped):
        top = 0 if i % per_column == 0 else top
        bottom = top + len(lines) * line + font_size // 2
        cells.append(_Cell(i // per_column * column, top, bottom, tuple(lines)))
        top = bottom
    return cells


def _draw_entry(
    draw: ImageDraw.ImageDraw,
    entry: LegendEntry,
    cell: _Cell,
    corner: tuple[int, int],
    font_size: int,
) -> None:
    left, top = corner
    box = (left, top + font_size // 8, left + font_size, top + font_size // 8 + font_size)
    radius = font_size // 4
    if entry.color is None:
        draw.rounded_rectangle(box, radius, PAPER, FAINT, max(font_size // 12, 1))
    else:
        draw.rounded_rectangle(box, radius, entry.color)
    x, line = left + round(1.6 * font_size), round(1.35 * font_size)
    for i, text in enumerate(cell.lines):
        draw.text((x, top + i * line), text, INK, font_for(text, font_size))
    end = x + text_width(cell.lines[-1], font_size)
    bottom = top + (len(cell.lines) - 1) * line
    draw.text((end, bottom), f"  {entry.remark}", FAINT, load_font(font_size))


def _percent(share: int | float) -> str:
    """For people: one digit after the point, and never 0 or 100 for what is nearly so."""
    if 0 < share < 0.001:
        return "<0.1 %"
    if 0.9995 <= share < 1:
        return ">99.9 %"
    return f"{100 * share:.1f} %"
