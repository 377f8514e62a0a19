"""Pictures of a report: predictions beside the truth, and beside those of other methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from markupsafe import Markup, escape

from tcl_jax.evaluation.benchmark import Benchmark
from tcl_jax.evaluation.labels import IGNORE
from tcl_jax.evaluation.results import BenchmarkResult, ShownImage
from tcl_jax.evaluation.scores import count_pixels, per_cent
from tcl_jax.evaluation.thresholds import ThresholdSearch
from tcl_jax.pictures.grid import titled_grid
from tcl_jax.pictures.legend import MAX_ENTRIES, LegendEntry, legend_page
from tcl_jax.pictures.lettering import printable
from tcl_jax.pictures.overlays import data_url, overlay, save_png
from tcl_jax.pictures.palette import class_palette

Rgb = UInt8[np.ndarray, "h w 3"]

# Images much wider than high go in two rows of two, so that all have a readable size on a page.
_WIDE = 1.65
_MOST = {True: 3, False: 5}
"""Panels in a row of the page, by whether they are wide."""
_LONG_SIDE = {4: 500, 2: 900}
"""Of a panel in pixels, by the number of panels in a row."""
_SHORT_SIDE = 24
_TITLE, _GAP = 23, 14

_IMAGE, _TRUTH, _ERRORS = "image", "true labels", "right and wrong"
RIGHT, WRONG = (0, 140, 150), (226, 72, 20)
IGNORED = (72, 72, 76)


def write_pictures(folder: Path, result: BenchmarkResult) -> None:
    """Writes NAME_best.png, NAME_median.png and NAME_worst.png, as far as these are shown.

    Args:
        folder: made where needed.
        result: its benchmark gives the names; of its `shown` there is a picture each.
    """
    for shown in result.shown:
        file = folder / f"{result.benchmark.name}_{shown.rank}.png"
        save_png(file, shown_picture(result.benchmark, shown))


def shown_picture(benchmark: Benchmark, shown: ShownImage) -> UInt8[np.ndarray, "H W 3"]:
    """Image, true labels, prediction, and where it is right, side by side with a legend.

    Ignored pixels are dark grey. The legend lists the classes of truth and prediction
    with their IoU in this image, the largest first.

    Returns:
        RGB, uint8; about 2,500 pixels wide at most. Images that are wide take two rows, and large
        ones are reduced.
    """
    columns = 2 if _is_wide(shown) else 4
    panels = _panels(benchmark, {"prediction": shown})
    grid = titled_grid([*panels.items()], columns, font_size=_TITLE, gap=_GAP)
    return legend_page(grid, _legend(benchmark, [shown]))


def page_pictures(results: Mapping[str, BenchmarkResult]) -> list[dict[str, Any]]:
    """What the template of the page says of the images of a benchmark that are shown.

    Args:
        results: by the methods' names, of one benchmark; those that show any show the same images.

    Returns:
        For each image its `rank` and `key`; `panels` (title, note and data URL of each), whether
        they are `wide`, and the `columns` that they stand in; `legend` (entries), and how many
        classes more there are, `rest`.
    """
    shown = {title: one.shown for title, one in results.items() if one.shown}
    benchmark, pictures = next(iter(results.values())).benchmark, []
    for several in zip(*shown.values(), strict=True):
        found, entries = dict(zip(shown, several, strict=True)), _legend(benchmark, several)
        panels, wide = _panels(benchmark, found), _is_wide(several[0])
        rows = -(-len(panels) // _MOST[wide])
        notes = {title: f"mIoU {per_cent(100 * one.miou)} %" for title, one in found.items()}
        pictures.append({
            "rank": several[0].rank,
            "key": printable(several[0].key),
            "wide": wide,
            "columns": -(-len(panels) // rows),
            "panels": [
                (title, notes.get(title, ""), Markup(data_url(picture, "WEBP", quality=90)))
                for title, picture in panels.items()
            ],
            "legend": entries[:MAX_ENTRIES],
            "rest": len(entries[MAX_ENTRIES:]),
        })  # fmt: skip
    return pictures


def threshold_curves(searches: Mapping[str, ThresholdSearch]) -> Markup:
    """The mIoU of each method over the thresholds as SVG, with a dot at its best.

    Args:
        searches: by the methods' names, of one benchmark.
    """
    width, height, left, top = 560, 260, 44, 12
    highest = max(float(np.nanmax([0.01, *one.miou])) for one in searches.values())
    step = next(x for x in (1, 2, 5, 10, 20, 25) if 100 * highest <= 5 * x or x == 25)
    ceiling = step * math.ceil(100 * highest / step)

    def place(threshold: int | float, miou: int | float) -> tuple[str, str]:
        down = 1 - 100 * miou / ceiling
        return f"{left + width * threshold:.1f}", f"{top + height * down:.1f}"

    parts: list[str] = []
    for value in range(0, ceiling + 1, step):
        x, y = place(0, value / 100)
        parts.append(f'<path class="grid" d="M{x} {y}h{width}"/>')
        parts.append(f'<text x="{left - 8}" y="{y}" dy=".35em" text-anchor="end">{value}</text>')
    for tenth in range(0, 11, 2):
        x, y = place(tenth / 10, 0)
        parts.append(f'<text x="{x}" y="{y}" dy="1.5em" text-anchor="middle">{tenth / 10}</text>')
    colors = class_palette(len(searches), background=False)
    for i, (color, (title, one)) in enumerate(zip(colors, searches.items(), strict=True)):
        paint = "rgb({}, {}, {})".format(*_color(color))
        points = [place(t, x) for t, x in zip(one.tried, np.nan_to_num(one.miou), strict=True)]
        line = " ".join(f"{x},{y}" for x, y in points)
        x, y = points[one.place]
        parts.append(f'<polyline points="{line}" fill="none" stroke="{paint}" stroke-width="2"/>')
        parts.append(f'<circle cx="{x}" cy="{y}" r="4.5" fill="{paint}"/>')
        right, down = left + width + 16, top + 10 + 22 * i
        parts.append(f'<rect x="{right}" y="{down - 6}" width="12" height="12" fill="{paint}"/>')
        name = escape(printable(title))
        parts.append(f'<text x="{right + 19}" y="{down}" dy=".35em">{name}</text>')
    size = left + width + 240, max(top + height + 34, top + 22 * (len(searches) + 1))
    return Markup(
        f'<svg class="curves" viewBox="0 0 {size[0]} {size[1]}" role="img" '
        f'aria-label="mIoU by threshold">{"".join(parts)}</svg>'
    )


def _is_wide(shown: ShownImage) -> bool:
    height, width = shown.label.shape
    return width > _WIDE * height


def _panels(benchmark: Benchmark, methods: Mapping[str, ShownImage]) -> dict[str, Rgb]:
    """Pictures of one size by title: the image, the truth, what each method finds in it, and of a
    single one also where it is right.
    """
    first = next(iter(methods.values()))
    palette = class_palette(len(benchmark.classes), benchmark.background)
    untouched = 0 if benchmark.background else None
    height, width = first.label.shape
    scale = _LONG_SIDE[2 if _is_wide(first) else 4] / max(height, width)
    size = [max(round(side * scale), _SHORT_SIDE) for side in (width, height)]
    image = cv2.resize(first.image, size, interpolation=cv2.INTER_AREA)
    label, *predicted = (
        cv2.resize(array, size, interpolation=cv2.INTER_NEAREST)
        for array in (first.label, *(one.predicted for one in methods.values()))
    )
    # Pale and of 16 greys: tints stand out against it, and a PNG of it is small.
    grey = 135 + 7 * (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) // 16)
    faded = np.repeat(grey[..., None], 3, axis=-1)

    def tint(classes: np.ndarray) -> Rgb:
        return overlay(faded, classes, palette, 0.72, untouched=untouched)

    panels = {_IMAGE: image, _TRUTH: tint(np.maximum(label, 0))}
    panels |= dict(zip(methods, map(tint, predicted), strict=True))
    masked = [_TRUTH]
    if len(methods) == 1:
        wrong = (predicted[0] != label).astype(np.uint8)
        colors = np.array([RIGHT, WRONG], np.uint8)
        panels[_ERRORS] = overlay(faded, wrong, colors, 0.62, untouched=None)
        masked.append(_ERRORS)
    for title in masked:
        panels[title][label == IGNORE] = IGNORED
    return panels


def _legend(benchmark: Benchmark, several: Sequence[ShownImage]) -> list[LegendEntry]:
    """The classes of truth and predictions of one image, the largest first, and of a single
    prediction the IoU of each and the shares that are right and wrong.
    """
    palette, names = class_palette(len(benchmark.classes), benchmark.background), benchmark.names
    counts = [count_pixels(one.predicted, one.label, len(names)) for one in several]
    labelled, scores, single = counts[0].labelled, counts[0].scores(), len(several) == 1
    union = np.max([one.union for one in counts], 0)
    entries = [
        LegendEntry(
            names[i],
            None if benchmark.background and i == 0 else _color(palette[i]),
            float(union[i] / max(int(labelled.sum()), 1)),
            f"IoU {per_cent(100 * scores.per_class_iou[i])}" if single else "",
        )
        for i in sorted(np.flatnonzero(union), key=lambda i: (-int(labelled[i]), -int(union[i]), i))
    ]
    if single and not np.isnan(scores.aacc):
        entries.append(LegendEntry("right", RIGHT, scores.aacc))
        entries.append(LegendEntry("wrong", WRONG, 1 - scores.aacc))
    if share := float(np.mean(several[0].label == IGNORE)):
        entries.append(LegendEntry("ignored", IGNORED, share))
    return entries


def _color(row: UInt8[np.ndarray, " 3"]) -> tuple[int, int, int]:
    red, green, blue = (int(c) for c in row)
    return red, green, blue
