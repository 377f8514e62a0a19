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
_REST_LINES = 3


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

    The page is as wide as the picture and margins, or wider for narrow pictures.

    Args:
        picture: uint8 RGB of a size to be shown, see `for_display`.
        entries: listed in this order, down a column and then the next; of more than `MAX_ENTRIES`
            the rest is counted.
        absent: names that occur nowhere, listed in grey as far as three lines go.
    """
    height, width = picture.shape[:2]
    content = max(width, _MIN_WIDTH)
    size = int(np.clip(round(content / 48), *_FONT_SIZES))
    margin, line, beside, gap = size, round(1.4 * size), round(1.6 * size), 2 * size
    entries, rest = entries[:MAX_ENTRIES], entries[MAX_ENTRIES:]

    widest = min(content, 22 * size)
    if len(entries) > 6:  # long names are cut, so that a long list takes two columns
        widest = min(widest, max((content - gap) // 2, 12 * size))
    names, ends = [], [0]
    for entry in entries:
        room = widest - beside - math.ceil(text_width(f"  {entry.remark}", size))
        names += wrap(printable(entry.name), room, size, 1)
        ends.append(widest - room + math.ceil(text_width(names[-1], size)))
    column, cell = max(ends) + gap, line + size // 3
    per_column = max(math.ceil(len(entries) / max((content + gap) // column, 1)), 1)

    notes = []
    if rest:
        share = sum(entry.share for entry in rest)
        notes.append(f"and {len(rest)} more, together {_percent(share)}")
    if absent:
        listed = ", ".join(printable(name) for name in absent)
        notes += wrap(f"not found: {listed}", content, size, _REST_LINES)

    legend_top = margin + height + margin
    notes_top = legend_top + cell * min(len(entries), per_column) + margin // 2
    page_size = (content + 2 * margin, notes_top + line * len(notes) + margin // 2)
    page = Image.new("RGB", page_size, PAPER)
    page.paste(Image.fromarray(picture), (margin + (content - width) // 2, margin))
    draw = ImageDraw.Draw(page)
    for i, (entry, name) in enumerate(zip(entries, names, strict=True)):
        left, top = margin + i // per_column * column, legend_top + i % per_column * cell
        box = (left, top + size // 8, left + size, top + size // 8 + size)
        outline = FAINT if entry.color is None else None
        draw.rounded_rectangle(box, size // 4, entry.color or PAPER, outline)
        draw.text((left + beside, top), name, INK, font_for(name, size))
        end = left + beside + text_width(name, size)
        draw.text((end, top), f"  {entry.remark}", FAINT, load_font(size))
    for k, note in enumerate(notes):
        draw.text((margin, notes_top + k * line), note, FAINT, font_for(note, size))
    return np.asarray(page)


def _percent(share: int | float) -> str:
    """For people: one digit after the point, and never 0 or 100 for what is nearly so."""
    if 0 < share < 0.001:
        return "<0.1 %"
    if 0.9995 <= share < 1:
        return ">99.9 %"
    return f"{100 * share:.1f} %"
