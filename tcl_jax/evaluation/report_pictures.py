"""Pictures of a report: predictions beside the truth."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from tcl_jax.evaluation.benchmark import Benchmark
from tcl_jax.evaluation.labels import IGNORE
from tcl_jax.evaluation.report import per_cent
from tcl_jax.evaluation.results import BenchmarkResult, ShownImage
from tcl_jax.evaluation.scores import count_pixels
from tcl_jax.pictures.grid import titled_grid
from tcl_jax.pictures.legend import LegendEntry, legend_page
from tcl_jax.pictures.overlays import overlay, save_png
from tcl_jax.pictures.palette import class_palette

# Images much wider than high go in two rows of two, so that all have a readable size on a page.
_WIDE = 1.65
_LONG_SIDE = {4: 500, 2: 900}
"""Of a panel in pixels, by the number of panels in a row."""
_SHORT_SIDE = 24
_TITLE, _GAP = 23, 14

RIGHT, WRONG = (0, 140, 150), (226, 72, 20)
IGNORED = (72, 72, 76)


def write_pictures(folder: Path, result: BenchmarkResult) -> dict[str, Path]:
    """Writes NAME_best.png, NAME_median.png and NAME_worst.png, as far as these are shown.

    Args:
        folder: made where needed.
        result: its benchmark gives the names; of its `shown` there is a picture each.

    Returns:
        Path by rank.
    """
    files = {one.rank: folder / f"{result.benchmark.name}_{one.rank}.png" for one in result.shown}
    for shown in result.shown:
        save_png(files[shown.rank], shown_picture(result.benchmark, shown))
    return files


def shown_picture(benchmark: Benchmark, shown: ShownImage) -> UInt8[np.ndarray, "H W 3"]:
    """Image, true labels, prediction, and where it is right, side by side with a legend.

    Ignored pixels are dark grey. The legend lists the classes of truth and prediction
    with their IoU in this image, the largest first.

    Returns:
        RGB, uint8; about 2,500 pixels wide at most. Images that are wide take two rows, and large
        ones are reduced.
    """
    palette = class_palette(len(benchmark.classes), benchmark.background)
    untouched = 0 if benchmark.background else None
    height, width = shown.label.shape
    columns = 2 if width > _WIDE * height else 4
    scale = _LONG_SIDE[columns] / max(height, width)
    size = [max(round(side * scale), _SHORT_SIDE) for side in (width, height)]
    image = cv2.resize(shown.image, size, interpolation=cv2.INTER_AREA)
    label, predicted = (
        cv2.resize(array, size, interpolation=cv2.INTER_NEAREST)
        for array in (shown.label, shown.predicted)
    )
    # Pale and of 16 greys: tints stand out against it, and a PNG of it is small.
    grey = 135 + 7 * (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) // 16)
    faded = np.repeat(grey[..., None], 3, axis=-1)
    truth = overlay(faded, np.maximum(label, 0), palette, 0.72, untouched=untouched)
    found = overlay(faded, predicted, palette, 0.72, untouched=untouched)
    wrong = (predicted != label).astype(np.uint8)
    errors = overlay(faded, wrong, np.array([RIGHT, WRONG], np.uint8), 0.62, untouched=None)
    for panel in (truth, errors):
        panel[label == IGNORE] = IGNORED

    counts = count_pixels(shown.predicted, shown.label, len(benchmark.names))
    scores, total = counts.scores(), max(int(counts.labelled.sum()), 1)
    order = sorted(np.flatnonzero(counts.union), key=lambda i: (-int(counts.labelled[i]), i))
    entries = [
        LegendEntry(
            benchmark.names[i],
            None if benchmark.background and i == 0 else _color(palette[i]),
            float(counts.union[i] / total),
            f"IoU {per_cent(100 * scores.per_class_iou[i])}",
        )
        for i in order
    ]
    if not np.isnan(scores.aacc):
        entries.append(LegendEntry("right", RIGHT, scores.aacc))
        entries.append(LegendEntry("wrong", WRONG, 1 - scores.aacc))
    if share := float(np.mean(shown.label == IGNORE)):
        entries.append(LegendEntry("ignored", IGNORED, share))
    titles = ("image", "true labels", "prediction", "right and wrong")
    cells = list(zip(titles, (image, truth, found, errors), strict=True))
    return legend_page(titled_grid(cells, columns, font_size=_TITLE, gap=_GAP), entries)


def _color(row: UInt8[np.ndarray, " 3"]) -> tuple[int, int, int]:
    red, green, blue = (int(c) for c in row)
    return red, green, blue
