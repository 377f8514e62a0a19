"""Pictures of one size in a grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from tcl_jax.pictures.lettering import FONT_SIZE, font_for, printable, wrap
from tcl_jax.pictures.palette import INK, PAPER

Rgb = UInt8[np.ndarray, "h w 3"]


def titled_grid(
    cells: Sequence[tuple[str, Rgb]],
    columns: int,
    *,
    lines: int = 1,
    font_size: int = FONT_SIZE,
    gap: int = 8,
) -> UInt8[np.ndarray, "H W 3"]:
    """Pictures in rows, each under its title.

    Args:
        cells: titles, which may be empty, and uint8 RGB pictures of one shape.
        columns: cells side by side.
        lines: of a title at most; what is longer is cut.
        font_size, gap: of the titles and between the cells, in pixels.
    """
    height, width = cells[0][1].shape[:2]
    line = round(1.4 * font_size)
    titles = [wrap(printable(t), width, font_size, lines) if t else [] for t, _ in cells]
    starts = range(0, len(cells), columns)
    above = [line * max(map(len, titles[start : start + columns])) for start in starts]
    size = columns * (width + gap) - gap, sum(above) + len(above) * (height + gap) - gap
    page = Image.new("RGB", size, PAPER)
    draw, top = ImageDraw.Draw(page), 0
    for start, room in zip(starts, above, strict=True):
        for k, (_, picture) in enumerate(cells[start : start + columns]):
            left = k * (width + gap)
            for i, text in enumerate(titles[start + k]):
                place = (left + width // 2, top + i * line)
                draw.text(place, text, INK, font_for(text, font_size), anchor="ma")
            page.paste(Image.fromarray(picture), (left, top + room))
        top += room + height + gap
    return np.asarray(page)
