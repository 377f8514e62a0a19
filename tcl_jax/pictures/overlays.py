"""Masks as pictures: overlays, legends and comparison grids."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageDraw

from tcl_jax.files import whole_file
from tcl_jax.pictures.lettering import FONT_SIZE, load_font
from tcl_jax.pictures.palette import FAINT, INK, PAPER

MARGIN = 14
_BAND_PIXELS = 1 << 20
_SIDE_BY_SIDE, _ENLARGED = 2, 2  # of a comparison's scenes

Rgb = UInt8[np.ndarray, "h w 3"]


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    label: Integer[np.ndarray, "h w"],
    palette: UInt8[np.ndarray, "n 3"],
    opacity: int | float = 0.6,
    *,
    untouched: int | None = 0,
) -> UInt8[np.ndarray, "h w 3"]:
    """Image with every class but one tinted in its colour, made part by part.

    Args:
        image: RGB, uint8.
        label: class per pixel.
        palette: colour per class, uint8.
        opacity: of the tint, in [0, 1].
        untouched: class whose pixels stay as they are, the background; None: no class.
    """
    tinted = np.empty(image.shape, np.uint8)
    colors = np.float32(opacity) * palette.astype(np.float32)
    flat = image.reshape(-1, 3), label.reshape(-1), tinted.reshape(-1, 3)
    for start in range(0, label.size, _BAND_PIXELS):
        pixels, classes, result = (array[start : start + _BAND_PIXELS] for array in flat)
        mixed = pixels * np.float32(1 - opacity)
        mixed += colors[classes]
        result[:] = np.rint(mixed, out=mixed)
        if untouched is not None:
            np.copyto(result, pixels, where=(classes == untouched)[:, None])
    return tinted


def enlarge(image: UInt8[np.ndarray, "h w 3"], factor: int) -> UInt8[np.ndarray, "H W 3"]:
    """Repeats every pixel, so that tiny pictures can be looked at."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def shrink(image: UInt8[np.ndarray, "h w 3"], long_side: int) -> UInt8[np.ndarray, "H W 3"]:
    """Image reduced without aliasing, so that its long side has at most `long_side` pixels.

    Each side keeps at least one pixel. An image that is no larger is returned as it is.
    """
    scale = long_side / max(image.shape[:2])
    if scale >= 1:
        return image
    import cv2  # here, since only large pictures need it

    size = [max(round(side * scale), 1) for side in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


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
    titles = list(columns)
    scenes = len(columns[titles[0]])
    side_h, side_w = (size * _ENLARGED for size in columns[titles[0]][0].shape[:2])
    gap, title_height = 6, FONT_SIZE + 12
    block = len(titles) * (side_w + gap) - gap
    rows = -(-scenes // _SIDE_BY_SIDE)
    width = _SIDE_BY_SIDE * (block + 2 * MARGIN)
    entries = _legend_layout(legend, width - 2 * MARGIN)
    legend_height = (entries[-1][1] + FONT_SIZE + 12 if entries else 0) + MARGIN
    height = MARGIN + title_height + rows * (side_h + gap) + legend_height + MARGIN

    page = Image.new("RGB", (width, height), PAPER)
    draw, font = ImageDraw.Draw(page), load_font()
    for group in range(min(_SIDE_BY_SIDE, scenes)):
        left = MARGIN + group * (block + 2 * MARGIN)
        for k, title in enumerate(titles):
            center = left + k * (side_w + gap) + side_w // 2
            draw.text((center, MARGIN + 4), title, INK, font, anchor="ma")
    for scene in range(scenes):
        row, group = divmod(scene, _SIDE_BY_SIDE)
        left = MARGIN + group * (block + 2 * MARGIN)
        top = MARGIN + title_height + row * (side_h + gap)
        for k, title in enumerate(titles):
            cell = Image.fromarray(enlarge(columns[title][scene], _ENLARGED))
            page.paste(cell, (left + k * (side_w + gap), top))
    top = MARGIN + title_height + rows * (side_h + gap) + MARGIN
    for (name, color), (x, y) in zip(legend.items(), entries, strict=True):
        box = (MARGIN + x, top + y, MARGIN + x + FONT_SIZE, top + y + FONT_SIZE)
        draw.rectangle(box, tuple(int(c) for c in color), FAINT)
        draw.text((MARGIN + x + FONT_SIZE + 6, top + y - 2), name, INK, font)
    return np.asarray(page)


def _legend_layout(legend: Mapping[str, Sequence[int]], width: int) -> list[tuple[int, int]]:
    """Left and top of every entry, in columns of equal width."""
    font = load_font()
    cell = max((int(font.getlength(name)) for name in legend), default=0) + FONT_SIZE + 24
    per_row = max(width // cell, 1)
    return [(i % per_row * cell, i // per_row * (FONT_SIZE + 9)) for i in range(len(legend))]


def save_png(path: str | os.PathLike[str], image: Rgb) -> None:
    """Writes a PNG, whole or not at all."""
    with whole_file(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")
