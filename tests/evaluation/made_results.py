"""Results made by hand, for tests of what is written about them."""

from __future__ import annotations

from typing import Any

import numpy as np

from tcl_jax.evaluation.benchmark import Benchmark, custom_benchmark, load_benchmark
from tcl_jax.evaluation.labels import IGNORE
from tcl_jax.evaluation.results import BenchmarkResult, ImageResult, ShownImage
from tcl_jax.evaluation.scores import Counts


def counts_of(ious: list[float], size: int = 1000) -> Counts:
    """Counts with these IoUs, all pixels of a class that are predicted being right; NaN: none."""
    labelled = np.array([0 if np.isnan(iou) else size for iou in ious], np.int64)
    right = np.array([0 if np.isnan(iou) else round(size * iou) for iou in ious], np.int64)
    return Counts(right, right.copy(), labelled, np.array([3, 4]))


def result_of(
    name: str | Benchmark, miou: float = 0.5, images: int | None = None, **fields: Any
) -> BenchmarkResult:
    """A benchmark whose classes all have this IoU but the last, which never occurs."""
    benchmark = load_benchmark(name) if isinstance(name, str) else name
    number = benchmark.splits.get(benchmark.split, 1) if images is None else images
    nothing = Counts.zeros(len(benchmark.names))
    counts = counts_of([miou] * (len(benchmark.names) - 1) + [float("nan")])
    rest = tuple(ImageResult(f"{i:05}", nothing) for i in range(1, number))
    return BenchmarkResult(
        benchmark, (ImageResult("00000", counts), *rest), **{"shown": (), "seconds": 75.0, **fields}
    )


def own_benchmark(**settings: Any) -> Benchmark:
    """A user's own, with names that have to be escaped."""
    classes = ["sparrow", ["great tit", "tit"], "<b>crow | *co* & son</b>"]
    title = "Birds of my <garden>"
    return custom_benchmark("photos", "masks", classes, name="birds", title=title, **settings)


def shown_of(height: int, width: int, rank: str = "worst") -> ShownImage:
    """Truth of classes 1 (left half) and 2, with a quarter ignored; the prediction is all 1."""
    label = np.full((height, width), 1, np.int32)
    label[:, width // 2 :] = 2
    label[: height // 2, : width // 2] = IGNORE
    image = np.full((height, width, 3), (200, 100, 50), np.uint8)
    return ShownImage("photo_1", rank, 1 / 6, image, label, np.ones((height, width), np.uint16))


def fingerprint_of(**changes: Any) -> dict[str, Any]:
    """The paper's protocol for the benchmark voc, but for some fields."""
    return {
        "hash": "0123456789abcdef", "protocol": "tcl", "method": "tcl", "weights": "ab" * 32,
        "window": 448, "stride": 224, "short_side": 448, "max_long_side": 2048,
        "resize": "OpenCV 4.12.0, linear", "threshold": 0.4, "refine": "pamr", "kp_weight": 0.3,
        "templates": "custom", "dtype": "float32",
        "benchmarks": {"voc": {"classes": "0" * 16, "images": 1449, "image_list": "1" * 16}},
        **changes,
    }  # fmt: skip
