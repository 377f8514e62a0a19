"""`bench input`: how fast training images are made, and which step takes how long.

The steps are measured one after the other in one process by its CPU time, which other programs on
the machine do not change much; the whole pipeline by the clock, by number of worker processes.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from tcl_jax.bench.report import Report, say
from tcl_jax.data.images import ImageDecodeError
from tcl_jax.data.pipeline import BatchIterator, make_iterator
from tcl_jax.data.random_erasing import RandomErasing
from tcl_jax.data.sources import make_erasing, make_source, make_transform
from tcl_jax.data.training_examples import Source, left_out_of
from tcl_jax.data.transforms import Compose
from tcl_jax.errors import InputError
from tcl_jax.parallel.cores import available_cores
from tcl_jax.training.build import abstract_experiment
from tcl_jax.training.check import check_config

BATCH_SIZE = 64
"""Images of a batch, as the paper has on each of its GPUs; fewer where a source has fewer."""
_WARM_UP = 4  # batches of each worker, as many as may have been made ahead while others started


def bench_input(flags: argparse.Namespace) -> None:
    """`bench input`: images per second, step by step and by number of worker processes."""
    config = flags.config
    check_config(config)
    most = available_cores() if flags.workers is None else flags.workers
    experiment = abstract_experiment(config)
    size, tokenizer = experiment.method.resolution, experiment.objective.text_encoder.tokenizer()
    source, transform = make_source(config.data, size), make_transform(config.data, size)
    erasing = make_erasing(config.data)
    assert isinstance(transform, Compose)
    about = f"{len(source)} pairs of {source!r}"
    if left_out := left_out_of(source):
        about += f"; left out: {left_out}"
    report = Report("input", flags.load, flags.json, data=about, image_size=size)
    say("measuring the steps in one process")
    for row in measure_steps(source, transform, erasing, flags.seconds):
        report.add("steps", row)
    batch_size = min(BATCH_SIZE, len(source))
    powers = (2**k for k in range(most.bit_length()) if 2**k < most)
    for workers in sorted({0, *powers, most}):
        say(f"measuring {workers} workers")
        batches = make_iterator(
            source,
            tokenizer=tokenizer,
            transform=transform,
            erasing=erasing,
            global_batch_size=batch_size,
            seed=time.time_ns() % 2**32,  # other images each time, from all over the source
            num_workers=workers,
        )
        with contextlib.closing(batches):
            rate = batch_size * measure_workers(batches, max(workers, 1), flags.seconds)
        report.add("workers", {"workers": workers, "images_per_second": rate})
    report.print_tables()


def measure_steps(
    source: Source, transform: Compose, erasing: RandomErasing | None, seconds: float
) -> list[dict[str, Any]]:
    """Rows of what it takes to make an image, in about so many seconds.

    Returns:
        For each `step`, reading first: `seconds` of CPU time that an image takes, those of all
        threads together, and `time_share`. Decoding belongs to the step that it is done in.

    Raises:
        InputError: no image that was looked at can be decoded.
    """
    rng, begin = np.random.default_rng(), time.perf_counter()
    spent: Counter[str] = Counter()
    made = looked_at = 0
    while looked_at < BATCH_SIZE or time.perf_counter() - begin < seconds:
        looked_at += 1
        times: dict[str, float] = {}

        def timed(step: str, work: Callable[..., Any], *arguments: Any) -> Any:
            start = time.process_time()
            result = work(*arguments)
            times[step] = time.process_time() - start  # noqa: B023  (called in this round only)
            return result

        image = timed("read", source.__getitem__, int(rng.integers(len(source))))["image"]
        with contextlib.suppress(ImageDecodeError):
            for step in transform.steps:
                image = timed(type(step).__name__, step, image, rng)
            if erasing is not None:
                timed(type(erasing).__name__, erasing, *image.shape[:2], rng)
            spent.update(times)
            made += 1
    if not made:
        raise InputError(f"{source!r}: none of {looked_at} images can be decoded")
    total = sum(spent.values())
    return [
        {"step": step, "seconds": used / made, "time_share": used / total}
        for step, used in spent.items()
    ]


def measure_workers(batches: BatchIterator, workers: int, seconds: float) -> float:
    """Batches per second of the whole pipeline, by the clock, in about so many seconds."""
    for _ in range(_WARM_UP * workers):
        next(batches)
    taken, begin = 0, time.perf_counter()
    # Workers finish about together: whole turns of them, or the rate is too high.
    while (spent := time.perf_counter() - begin) < seconds:
        for _ in range(workers):
            next(batches)
        taken += workers
    return taken / spent
