"""Pictures of a report: a bar chart of classes, and predictions beside the truth."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from PIL import Image, ImageDraw

from tcl_jax.evaluation.benchmark import Benchmark
from tcl_jax.evaluation.labels import IGNORE
from tcl_jax.evaluation.report import per_cent
from tcl_jax.evaluation.results import BenchmarkResult, ShownImage
from tcl_jax.evaluation.scores import count_pixels
from tcl_jax.pictures.legend import LegendEntry, legend_page
from tcl_jax.pictures.lettering import font_for, load_font, printable, text_width, wrap
from tcl_jax.pictures.overlays import overlay, save_png
from tcl_jax.pictures.palette import FAINT, INK, PAPER, class_palette

Color = tuple[int, int, int]

MAX_BARS = 360
"""Classes that a chart has a bar for; of more, the best and the worst have one."""

_BAR, _PALE_BAR, _GRID = (38, 99, 168), (139, 178, 216), (222, 226, 231)
_MEAN = (208, 84, 0)
_FONT, _SMALL, _ROW, _MARGIN = 15, 13, 24, 28
_NAME_WIDTH, _VALUE_WIDTH, _COLUMN_GAP = 190, 52, 30
_ROWS = 45
_BAR_WIDTHS = {1: 520, 2: 330, 3: 240, 4: 200}
"""Length of a full bar in pixels, by number of columns."""
_AXES = (10, 20, 40, 60, 80, 100)

# Images much wider than high go in two rows of two, so that all have a readable size on a page.
_WIDE = 1.65
_PANEL_AREA, _PANEL_SIDE = {4: 480 * 360, 2: 900 * 450}, {4: 600, 2: 960}
_PANEL_SHORT_SIDE = 24
_GAP, _TITLE_FONT, _HEADING_FONT = 14, 23, 28
_RIGHT, _WRONG = (0, 140, 150), (226, 72, 20)
_IGNORED, _IGNORED_LINE = (72, 72, 76), (128, 128, 134)


def write_pictures(folder: Path, result: BenchmarkResult) -> dict[str, Path]:
    """Writes NAME_classes.png and NAME_best.png, NAME_median.png, NAME_worst.png.

    Args:
        folder: made where needed.
        result: its benchmark gives the names; of its `shown` there is a picture each.

    Returns:
        Path by "classes" and rank.
    """
    name = result.benchmark.name
    files = {"classes": folder / f"{name}_classes.png"}
    save_png(files["classes"], class_chart(result))
    for shown in result.shown:
        files[shown.rank] = folder / f"{name}_{shown.rank}.png"
        save_png(files[shown.rank], shown_picture(result.benchmark, shown))
    return files


# ------------------------------------------------------------------------------------------- chart


def class_chart(result: BenchmarkResult) -> UInt8[np.ndarray, "H W 3"]:
    """Bars of IoU per class from high to low, in columns, with a mark at their mean.

    Classes that never occur come last, with a dash. Bars below the mean are paler.

    Returns:
        RGB, uint8; about 2,000 pixels wide at most.
    """
    scores, names = result.scores, result.benchmark.names
    bars, left_out = _choose_bars(100 * scores.per_class_iou)
    columns = min(max(math.ceil(len(bars) / _ROWS), 1), max(_BAR_WIDTHS))
    rows = max(math.ceil(len(bars) / columns), 1)
    bar_width = _BAR_WIDTHS[columns]
    labels = [wrap(printable(names[i]), _NAME_WIDTH, _FONT, 1)[0] for i in bars]
    before = math.ceil(max(text_width(label, _FONT) for label in labels)) + 10
    column = before + bar_width + _VALUE_WIDTH
    width = 2 * _MARGIN + columns * column + (columns - 1) * _COLUMN_GAP
    top = _MARGIN + 82
    height = top + rows * _ROW + 34 + (26 if left_out else 0) + _MARGIN // 2
    known = scores.per_class_iou[~np.isnan(scores.per_class_iou)]
    mean = 100 * scores.miou
    axis = next(end for end in _AXES if end == _AXES[-1] or 100 * known.max(initial=0) <= end)

    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    title = wrap(f"{printable(result.benchmark.title)}: IoU per class", width - 2 * _MARGIN, 24, 1)
    draw.text((_MARGIN, _MARGIN - 8), title[0], INK, font_for(title[0], 24))
    over = f"{len(known):,} of {len(names):,} classes"
    facts = f"mean {per_cent(100 * scores.miou)} % over {over}" if known.size else "no class occurs"
    facts += f"; images of {printable(result.benchmark.split)}: {len(result.images):,}"
    facts = wrap(facts, width - 2 * _MARGIN, _FONT, 1)[0]
    draw.text((_MARGIN, _MARGIN + 26), facts, FAINT, font_for(facts, _FONT))
    for start in range(0, len(bars), rows):
        left = _MARGIN + start // rows * (column + _COLUMN_GAP)
        zero, here = left + before, bars[start : start + rows]
        bottom = top + len(here) * _ROW
        _draw_axis(draw, zero, (top, bottom), bar_width, axis)
        values = [float(100 * scores.per_class_iou[i]) for i in here]
        ends = [zero + (0 if math.isnan(v) else round(bar_width * v / axis)) for v in values]
        for i, (value, end) in enumerate(zip(values, ends, strict=True)):
            if end > zero:
                box = (zero, top + i * _ROW + 4, end - 1, top + (i + 1) * _ROW - 5)
                draw.rectangle(box, _PALE_BAR if value < mean else _BAR)
        if known.size:
            x = zero + round(bar_width * mean / axis)
            draw.line((x, top - 4, x, bottom), _MEAN, 2)
            draw.text((x, top - 22), f"mean {mean:.1f}", _MEAN, load_font(_SMALL), anchor="ma")
        for i, (value, end) in enumerate(zip(values, ends, strict=True)):
            middle = top + i * _ROW + _ROW // 2
            ink, label = FAINT if math.isnan(value) else INK, labels[start + i]
            draw.text((zero - 10, middle), label, ink, font_for(label, _FONT), anchor="rm")
            _draw_value(draw, (end + 6, middle), per_cent(value), ink)
    if left_out:
        note = f"{left_out:,} classes between the best and the worst have no bar here"
        draw.text((_MARGIN, height - _MARGIN // 2 - 26), note, FAINT, load_font(_FONT))
    return np.asarray(page)


def _choose_bars(iou: Float[np.ndarray, " n"]) -> tuple[list[int], int]:
    """Classes from high to low IoU, unknown ones last, and the number of those left out."""
    order = sorted(range(len(iou)), key=lambda i: (np.isnan(iou[i]), -iou[i], i))
    if len(order) <= MAX_BARS:
        return order, 0
    half = MAX_BARS // 2
    known = [i for i in order if not np.isnan(iou[i])]
    best = known[:half] or order[:half]
    worst = known[half:][-half:]
    return best + worst, len(order) - len(best) - len(worst)


def _draw_axis(
    draw: ImageDraw.ImageDraw, left: int, rows: tuple[int, int], width: int, axis: int
) -> None:
    """Faint lines at quarters of the axis, with numbers below."""
    for quarter in range(5):
        x = left + round(width * quarter / 4)
        draw.line((x, rows[0], x, rows[1]), _GRID, 1)
        value = f"{axis * quarter / 4:g}"
        draw.text((x, rows[1] + 6), value, FAINT, load_font(_SMALL), anchor="ma")


def _draw_value(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, ink: Color) -> None:
    """A number on a patch of paper, so that no line behind it disturbs."""
    font = load_font(_FONT)
    left, top, right, bottom = draw.textbbox(at, text, font, anchor="lm")
    draw.rectangle((left - 2, top - 2, right + 2, bottom + 2), PAPER)
    draw.text(at, text, ink, font, anchor="lm")


# ------------------------------------------------------------------------------------ shown images


def shown_picture(benchmark: Benchmark, shown: ShownImage) -> UInt8[np.ndarray, "H W 3"]:
    """Image, true labels, prediction, and where it is right, side by side with a legend.

    Ignored pixels are dark grey and hatched. The legend lists the classes of truth and prediction
    with their IoU in this image, the largest first.

    Args:
        benchmark: names and palette.
        shown: image and label maps, of any size; large ones are reduced.

    Returns:
        RGB, uint8; about 2,200 pixels wide at most. Images that are wide take two rows.
    """
    names = benchmark.names
    palette = class_palette(len(benchmark.classes), benchmark.background)
    height, width = shown.label.shape
    columns = 2 if width > _WIDE * height else 4
    size = _panel_size(height, width, columns)
    image = _fit(shown.image, size)
    label, predicted = _nearest(shown.label, size), _nearest(shown.predicted, size)
    ignored = label == IGNORE
    untouched = 0 if benchmark.background else None
    faded = _fade(image)
    truth = _hatch(_tint(faded, np.where(ignored, 0, label), palette, untouched), ignored)
    found = _tint(faded, predicted, palette, untouched)
    verdict = (predicted != label).astype(np.uint8)
    judged = _hatch(
        overlay(faded, verdict, np.array([_RIGHT, _WRONG], np.uint8), 0.62, untouched=None), ignored
    )

    counts = count_pixels(shown.predicted, shown.label, len(names))
    scores, total = counts.scores(), max(int(counts.labelled.sum()), 1)
    order = sorted(np.flatnonzero(counts.union), key=lambda i: (-int(counts.labelled[i]), i))
    entries = [
        LegendEntry(
            names[i],
            None if benchmark.background and i == 0 else _color(palette[i]),
            float(counts.union[i] / total),
            f"IoU {per_cent(100 * scores.per_class_iou[i])}",
        )
        for i in order
    ]
    share = float(np.mean(shown.label == IGNORE))
    if share > 0:
        entries.append(LegendEntry("ignored", _IGNORED, share))
    panels = {
        "image": image,
        "true labels": truth,
        "prediction": found,
        "right" if np.isnan(scores.aacc) else f"right {per_cent(100 * scores.aacc)} %": judged,
    }
    page = _compose(
        f"{wrap(printable(benchmark.title), 640, _HEADING_FONT, 1)[0]}, {shown.rank} image: "
        f"{printable(shown.key)}",
        f"mIoU {per_cent(100 * shown.miou)}",
        panels,
        columns,
    )
    return legend_page(page, entries)


def _compose(
    heading: str, score: str, panels: dict[str, np.ndarray], columns: int
) -> UInt8[np.ndarray, "H W 3"]:
    """Panels of equal size with titles, under a line of text; the last title has a colour key."""
    height, width = next(iter(panels.values())).shape[:2]
    used = columns * (width + _GAP) - _GAP
    row = max(used, 1120)
    top, title_height = _HEADING_FONT + 26, _TITLE_FONT + 14
    block = title_height + height + _GAP
    page = Image.new("RGB", (row, top + len(panels) // columns * block - _GAP), PAPER)
    draw = ImageDraw.Draw(page)
    room = row - round(text_width(score, _HEADING_FONT)) - 2 * _GAP
    heading = wrap(heading, room, _HEADING_FONT, 1)[0]
    draw.text((0, 0), heading, INK, font_for(heading, _HEADING_FONT))
    draw.text((row, 0), score, INK, load_font(_HEADING_FONT), anchor="ra")
    pitch = max(width + _GAP, (row + _GAP) // columns)
    for i, (title, panel) in enumerate(panels.items()):
        left = i % columns * pitch + (pitch - _GAP - width) // 2
        panel_top = top + i // columns * block + title_height
        page.paste(Image.fromarray(panel), (left, panel_top))
        middle, line = left + width // 2, panel_top - title_height
        if i < len(panels) - 1:
            draw.text((middle, line), title, FAINT, load_font(_TITLE_FONT), anchor="ma")
        else:
            _draw_key(draw, middle, line, ((title, _RIGHT), ("wrong", _WRONG)))
    return np.asarray(page)


def _draw_key(
    draw: ImageDraw.ImageDraw, middle: int, top: int, entries: tuple[tuple[str, Color], ...]
) -> None:
    """Words, each behind a square of its colour, centred."""
    font, square, space = load_font(_TITLE_FONT), _TITLE_FONT - 5, 10
    widths = [square + space + round(font.getlength(text)) for text, _ in entries]
    left = middle - (sum(widths) + 2 * space * (len(entries) - 1)) // 2
    for (text, color), width in zip(entries, widths, strict=True):
        draw.rounded_rectangle((left, top + 5, left + square, top + 5 + square), 4, color)
        draw.text((left + square + space, top), text, FAINT, font)
        left += width + 2 * space


def _panel_size(height: int, width: int, columns: int) -> tuple[int, int]:
    """Height and width of a panel: of about the same area whatever the image's shape."""
    scale = math.sqrt(_PANEL_AREA[columns] / (height * width))
    scale = min(scale, _PANEL_SIDE[columns] / max(height, width))
    return (
        max(round(height * scale), _PANEL_SHORT_SIDE),
        max(round(width * scale), _PANEL_SHORT_SIDE),
    )


def _fit(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """Image reduced to a panel's size without aliasing; a smaller one keeps its pixels visible."""
    reduced = [min(new, old) for new, old in zip(size, image.shape[:2], strict=True)]
    if tuple(reduced) != image.shape[:2]:
        image = cv2.resize(image, reduced[::-1], interpolation=cv2.INTER_AREA)
    return _nearest(image, size)


def _nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Rows and columns whose centres are nearest to those of the new size."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp)
        for new, old in zip(size, array.shape[:2], strict=True)
    )
    return array[rows[:, None], columns]


def _fade(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """A pale version in 16 greys: tints stand out against it, and a PNG of it is small."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) // 16
    return (135 + 7 * grey)[..., None].repeat(3, axis=-1)


def _tint(
    image: UInt8[np.ndarray, "h w 3"],
    label: Integer[np.ndarray, "h w"],
    palette: UInt8[np.ndarray, "n 3"],
    untouched: int | None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Classes in their colours, with a dark line where two meet."""
    tinted = overlay(image, label, palette, 0.72, untouched=untouched)
    edge = np.zeros(label.shape, bool)
    edge[:-1] |= label[:-1] != label[1:]
    edge[:, :-1] |= label[:, :-1] != label[:, 1:]
    tinted[edge] = tinted[edge] // 3
    return tinted


def _hatch(
    image: UInt8[np.ndarray, "h w 3"], where: Bool[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Dark grey with diagonal lines in some places."""
    rows, columns = np.indices(where.shape, np.int32)
    line = (rows + columns) % 10 < 2
    image[where] = _IGNORED
    image[where & line] = _IGNORED_LINE
    return image


def _color(row: UInt8[np.ndarray, " 3"]) -> Color:
    red, green, blue = (int(c) for c in row)
    return red, green, blue
