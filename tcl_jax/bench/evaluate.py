"""`bench evaluate`: how fast a benchmark is evaluated, from files to counts of pixels."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import jax
import numpy as np

from tcl_jax.bench.photos import HEIGHT, QUALITY, WIDTH, make_photo
from tcl_jax.bench.report import Report, say
from tcl_jax.bench.subject import read_segmenting
from tcl_jax.bench.timing import peak_bytes
from tcl_jax.evaluation.benchmark import Benchmark, custom_benchmark
from tcl_jax.evaluation.evaluator import Evaluator, read_classes
from tcl_jax.evaluation.examples import Example
from tcl_jax.evaluation.protocol import make_protocol
from tcl_jax.evaluation.scores import count_pixels
from tcl_jax.inference.engine import default_batch_size
from tcl_jax.models.layers import compute_dtype

_DIFFERENT = 8
"""Images that are written; more repeat them."""


def bench_evaluate(flags: argparse.Namespace) -> None:
    """`bench evaluate`: images per second of an evaluation."""
    subject = read_segmenting(flags)
    model, dtype = subject.model, subject.dtype
    method = model.method_in(compute_dtype(dtype))
    batch, devices = default_batch_size(), jax.local_devices()
    report = Report("evaluate", flags.load, flags.json, devices, **subject.about)
    protocol = make_protocol(model, pamr=False, dtype=dtype)
    evaluator = Evaluator(method, model.params, protocol, batch)
    for classes in flags.classes:
        what = f"{classes} classes"
        texts = np.random.default_rng(0).standard_normal((classes, method.embed_dim), np.float32)
        with (
            report.skip_too_large(what),
            tempfile.TemporaryDirectory(prefix="tcl_bench_") as folder,
        ):
            say(what)
            benchmark, examples = write_benchmark(Path(folder), flags.images, classes)
            evaluate(evaluator, benchmark, examples[:1], texts)  # compiles
            start = time.perf_counter()
            evaluate(evaluator, benchmark, examples, texts)
            seconds = time.perf_counter() - start
            sliding = protocol.sliding_window(benchmark, (HEIGHT, WIDTH), method.patch_size)
            report.add("evaluation", {
                "classes": classes, "batch_size": batch, "images": flags.images,
                "windows_per_image": len(sliding.windows),
                "images_per_second": flags.images / seconds, "peak_bytes": peak_bytes(devices),
            })  # fmt: skip
    report.print_tables()


def evaluate(
    evaluator: Evaluator, benchmark: Benchmark, examples: Sequence[Example], texts: np.ndarray
) -> None:
    """Labels the examples and counts their pixels by class."""

    def score(example: Example, labels: np.ndarray) -> None:
        count_pixels(labels, read_classes(example, benchmark), len(texts))

    for _ in evaluator.label_maps(examples, benchmark, texts, score):
        pass


def write_benchmark(folder: Path, images: int, classes: int) -> tuple[Benchmark, list[Example]]:
    """Drawn pictures as JPEG, with label maps of blocks."""
    rng, examples = np.random.default_rng(0), []
    for number in range(min(images, _DIFFERENT)):
        label = rng.integers(0, classes, (8, 8), np.uint8)
        label = cv2.resize(label, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST)
        example = Example(str(number), folder / f"{number}.jpg", folder / f"{number}.png")
        quality = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
        cv2.imwrite(str(example.image), make_photo(number)[0][..., ::-1], quality)
        cv2.imwrite(str(example.label), label)
        examples.append(example)
    names = [f"thing {i}" for i in range(classes)]
    benchmark = custom_benchmark(folder / "{key}.jpg", folder / "{key}.png", names, name="made_up")
    return benchmark, [examples[i % len(examples)] for i in range(images)]
