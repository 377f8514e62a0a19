"""Pictures of one size in a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from tcl_jax.pictures.legend import LegendEntry, legend_page
from tcl_jax.pictures.lettering import FONT_SIZE, load_font
from tcl_jax.pictures.overlays import enlarge
from tcl_jax.pictures.palette import INK, PAPER

_SIDE_BY_SIDE, _ENLARGED = 2, 2  # of a comparison's scenes

Rgb = UInt8[np.ndarray, "h w 3"]


def titled_grid(
    cells: Sequence[tuple[str, Rgb]], columns: int, *, font_size: int = FONT_SIZE, gap: int = 8
) -> UInt8[np.ndarray, "H W 3"]:
    """Pictures in rows, each under its title.

    Args:
        cells: titles and uint8 RGB pictures of one shape; titles may be empty.
        columns: cells side by side.
        font_size: of the titles, in pixels.
        gap: between cells, in pixels.
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


def comparison_grid(
    columns: Mapping[str, Sequence[Rgb]], legend: Mapping[str, Sequence[int]]
) -> UInt8[np.ndarray, "H W 3"]:
    """Scenes as rows of equal cells under column titles, two side by side, with a legend below.

    Args:
        columns: title -> one small picture per scene, all uint8 and of one shape.
        legend: name -> RGB, in the order they are shown.

    Returns:
        RGB picture, uint8.
    """
    scenes = zip(*columns.values(), strict=True)
    cells = [
        (title if i < _SIDE_BY_SIDE else "", enlarge(picture, _ENLARGED))
        for i, scene in enumerate(scenes)
        for title, picture in zip(columns, scene, strict=True)
    ]
    entries = [
        LegendEntry(name, (int(r), int(g), int(b)), 0, note="")
        for name, (r, g, b) in legend.items()
    ]
    return legend_page(titled_grid(cells, _SIDE_BY_SIDE * len(columns)), entries)
