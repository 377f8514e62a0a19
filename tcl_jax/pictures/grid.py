"""Pictures of one size in a grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from tcl_jax.pictures.lettering import FONT_SIZE, load_font
from tcl_jax.pictures.palette import INK, PAPER

Rgb = UInt8[np.ndarray, "h w 3"]


def titled_grid(
    cells: Sequence[tuple[str, Rgb]], columns: int, *, font_size: int = FONT_SIZE, gap: int = 8
) -> UInt8[np.ndarray, "H W 3"]:
    """Pictures in rows, each under its title.

    Args:
        cells: titles, which may be empty, and uint8 RGB pictures of one shape.
        columns: cells side by side.
        font_size, gap: of the titles and between the cells, in pixels.
    """
    height, width = cells[0][1].shape[:2]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    lines = [font_size + 10 if any(title for title, _ in row) else 0 for row in rows]
    page_size = columns * (width + gap) - gap, sum(lines) + len(rows) * (height + gap) - gap
    page = Image.new("RGB", page_size, PAPER)
    draw, top = ImageDraw.Draw(page), 0
    for row, line in zip(rows, lines, strict=True):
        for k, (title, picture) in enumerate(row):
            left = k * (width + gap)
            draw.text((left + width // 2, top), title, INK, load_font(font_size), anchor="ma")
            page.paste(Image.fromarray(picture), (left, top + line))
        top += line + height + gap
    return np.asarray(page)
