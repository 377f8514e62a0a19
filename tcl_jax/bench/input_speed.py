"""How fast training images are made, beside the bare loop that no reader can do without.

One process is measured by its CPU time, which other programs on the machine do not change much;
several worker processes by the clock. What is compared takes turns, some images at a time, so that
a slow moment of the machine hits all alike; figures are medians over the rounds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from tcl_jax.bench.timed_input import (
    PARTS,
    PLACES,
    Cycled,
    TimedSource,
    TimedTokenizer,
    TimedTransform,
    Times,
)
from tcl_jax.data.images import ImageDecodeError, decode
from tcl_jax.data.pipeline import BatchIterator, make_iterator
from tcl_jax.data.random_erasing import RandomErasing
from tcl_jax.data.training_examples import Source, Tokenizer
from tcl_jax.data.transforms import Compose, HorizontalFlip, RandomResizedCrop
from tcl_jax.errors import InputError
from tcl_jax.parallel.cores import available_cores

BATCH_SIZE = 64
"""Images of a batch of the full pipeline, as the paper has on each of its GPUs."""
SAMPLE_SIZE = 128
"""Images that are measured, at most."""
REST = "batch and the rest"
"""What is not one of `timed_input.PARTS`."""

_LEAST_ROUNDS = 5
_WORKER_ROUNDS = 3
_BOXES = 16  # drawn for each image of the bare loop
_WARM_UP = 4  # batches of each worker, as many as may have been made ahead while others started


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, smallest and largest value over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[int | float]) -> Spread:
        """Of at least one value."""
        return cls(float(statistics.median(values)), float(min(values)), float(max(values)))


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage, with all that come before it.

    Attributes:
        name: what it adds.
        images_per_cpu_second: of one process; all its threads count.
        images_per_second: by the clock.
        of_bare_loop: its images per CPU second over those of the bare loop in the same round.
    """

    name: str
    images_per_cpu_second: Spread
    images_per_second: Spread
    of_bare_loop: Spread


@dataclasses.dataclass(frozen=True)
class Scaling:
    """The full pipeline in worker processes.

    Attributes:
        workers: their number.
        images_per_second: of all together, by the clock.
        of_linear: images per second over `workers` times those of one worker in the same round.
    """

    workers: int
    images_per_second: Spread
    of_linear: Spread


@dataclasses.dataclass(frozen=True)
class InputSpeed:
    """What `measure` found.

    Attributes:
        images: different images measured, of `mean_bytes` and `mean_megapixels`.
        image_size: side of what the model gets, in pixels.
        cores: that this process may use.
        load: programs that wanted to run in the minute before, on average.
        stages: the bare loop, then one more stage each time; the last is the full pipeline.
        shares: of the full pipeline's CPU time, by `PARTS` and `REST`; they add up to 1.
        scaling: by number of workers.
    """

    images: int
    mean_bytes: float
    mean_megapixels: float
    image_size: int
    cores: int
    load: float
    stages: tuple[Stage, ...]
    shares: Mapping[str, float]
    scaling: tuple[Scaling, ...]


def measure(
    source: Source,
    *,
    transform: Compose,
    erasing: RandomErasing | None,
    tokenizer: Tokenizer,
    seconds: int | float = 10.0,
    worker_counts: Sequence[int],
    tell: Callable[[str], None] = lambda _: None,
) -> InputSpeed:
    """Measures the stages of the input, then the full pipeline in workers.

    Args:
        source: with images as encoded bytes.
        transform: whose first step is a `RandomResizedCrop`.
        erasing, tokenizer: as in `pipeline.make_iterator`.
        seconds: about how long the stages are measured together, and each number of workers.
        worker_counts: numbers of workers, 1 first; such as of `default_worker_counts`.
        tell: is given a line about what is going on.

    Raises:
        InputError: the seconds are not positive, images are no bytes or cannot be decoded, or the
            transform does not begin with a crop.
    """
    if not 0 < seconds < float("inf"):
        raise InputError(f"--seconds={seconds}: must be a positive number of seconds")
    crop = transform.steps[0] if transform.steps else None
    if not isinstance(crop, RandomResizedCrop):
        raise InputError("images are not cropped, so that there is nothing to compare with")
    load, cores = os.getloadavg()[0], available_cores()
    tell(f"reading up to {SAMPLE_SIZE} images")
    sample = _take_sample(source)
    tell("measuring the stages in one process")
    some = Cycled(source, sample.indexes)
    stages, shares = _measure_stages(some, sample, transform, crop, erasing, tokenizer, seconds)

    def start(workers: int) -> BatchIterator:
        return make_iterator(
            Cycled(source, range(len(source))),
            tokenizer=tokenizer,
            transform=transform,
            erasing=erasing,
            global_batch_size=BATCH_SIZE,
            seed=time.time_ns() % 2**32,  # other images each time, from all over the source
            num_workers=workers,
        )

    return InputSpeed(
        images=len(sample.files),
        mean_bytes=statistics.fmean(len(file) for file in sample.files),
        mean_megapixels=statistics.fmean(sample.pixels) / 1e6,
        image_size=crop.size,
        cores=cores,
        load=load,
        stages=stages,
        shares=shares,
        scaling=_measure_workers(start, worker_counts, seconds, tell),
    )


def default_worker_counts(cores: int) -> tuple[int, ...]:
    """1, 2, 4, ... and the number of cores."""
    return (*(2**k for k in range(cores.bit_length()) if 2**k < cores), cores)


# -------------------------------------------------------------------------------------- the sample


@dataclasses.dataclass(frozen=True)
class _Sample:
    """Images that can be decoded: number in the source, file, number of pixels."""

    indexes: list[int]
    files: list[bytes]
    pixels: list[int]


def _take_sample(source: Source) -> _Sample:
    """Images from all over the source."""
    sample = _Sample([], [], [])
    for place in np.linspace(0, len(source) - 1, min(len(source), SAMPLE_SIZE)):
        index = round(float(place))
        file = source[index]["image"]
        if not isinstance(file, bytes):
            raise InputError(
                f"{source!r} gives images as arrays of pixels: there is nothing to decode, and the "
                "bare loop cannot be measured. Give a source of encoded images, as tar shards are"
            )
        with contextlib.suppress(ImageDecodeError):
            image = decode(file)
            sample.indexes.append(index)
            sample.files.append(file)
            sample.pixels.append(image.shape[0] * image.shape[1])
    if not sample.files:
        raise InputError(f"{source!r}: none of the images that were looked at can be decoded")
    return sample


# -------------------------------------------------------------------------------------- one process


def _measure_stages(
    source: Source,
    sample: _Sample,
    transform: Compose,
    crop: RandomResizedCrop,
    erasing: RandomErasing | None,
    tokenizer: Tokenizer,
    seconds: int | float,
) -> tuple[tuple[Stage, ...], dict[str, float]]:
    files, rng = sample.files, np.random.default_rng(0)
    boxes = []
    for data in files * _BOXES:
        with Image.open(io.BytesIO(data)) as image:
            boxes.append(crop.sample_box(image.height, image.width, rng))
    moved = Compose(
        tuple(s for s in transform.steps if isinstance(s, RandomResizedCrop | HorizontalFlip))
    )

    def file(place: int) -> bytes:
        return files[place % len(files)]

    def bare(place: int) -> None:
        image = Image.open(io.BytesIO(file(place))).convert("RGB")
        part = image.crop(boxes[place % len(boxes)])
        np.asarray(part.resize((crop.size, crop.size), Image.Resampling.BILINEAR))

    def augmented(place: int) -> None:
        transform(file(place), rng)
        if erasing is not None:
            erasing(crop.size, crop.size, rng)

    # A turn makes one batch: number of the round to CPU seconds of each part.
    turns: dict[str, Callable[[int], Times]] = {
        "bare loop": _each(bare),
        "decode": _each(lambda place: decode(file(place))),
        "crop and flip": _each(lambda place: moved(file(place), rng)),
        "augment": _each(augmented),
        "full pipeline": _pipeline_turn(source, transform, erasing, tokenizer),
    }
    begin = time.perf_counter()
    for turn in turns.values():  # also fills what is cached on first use
        turn(0)
    rounds = max(_LEAST_ROUNDS, round(seconds / (time.perf_counter() - begin)))
    cpu: dict[str, list[float]] = defaultdict(list)
    clock: dict[str, list[float]] = defaultdict(list)
    parts: Times = dict.fromkeys([*PARTS, REST], 0.0)
    for number in range(1, rounds + 1):
        for name, turn in turns.items():
            begin, begin_cpu = time.perf_counter(), time.process_time()
            told = turn(number)
            cpu[name].append((time.process_time() - begin_cpu) / BATCH_SIZE)
            clock[name].append((time.perf_counter() - begin) / BATCH_SIZE)
            for part, used in told.items():
                parts[part] += used
    total = sum(cpu["full pipeline"]) * BATCH_SIZE
    parts[REST] = max(0.0, total - sum(parts.values()))
    shares = {part: used / sum(parts.values()) for part, used in parts.items()}
    bare_cpu = cpu["bare loop"]
    return tuple(
        Stage(
            name,
            Spread.of([1 / t for t in cpu[name]]),
            Spread.of([1 / t for t in clock[name]]),
            Spread.of([b / t for b, t in zip(bare_cpu, cpu[name], strict=True)]),
        )
        for name in turns
    ), shares


def _each(work: Callable[[int], object]) -> Callable[[int], Times]:
    def turn(number: int) -> Times:
        for place in range(number * BATCH_SIZE, (number + 1) * BATCH_SIZE):
            work(place)
        return {}

    return turn


def _pipeline_turn(
    source: Source, transform: Compose, erasing: RandomErasing | None, tokenizer: Tokenizer
) -> Callable[[int], Times]:
    """A turn of the pipeline as training has it without workers, its parts timed from within."""

    def turn(number: int) -> Times:
        times: Times = {}
        batches = make_iterator(
            TimedSource(source, times),
            tokenizer=TimedTokenizer(tokenizer, times),
            transform=TimedTransform(transform, times),
            erasing=erasing,
            global_batch_size=BATCH_SIZE,
            seed=number,
            repeat=False,
        )
        # At the end of an epoch no more is made ahead than is taken.
        batches.set_state({**batches.get_state(), "next_batch": PLACES // BATCH_SIZE - 1})
        with contextlib.closing(batches):
            next(batches)
        return times

    return turn


# ------------------------------------------------------------------------------------------ workers


def _measure_workers(
    start: Callable[[int], BatchIterator],
    counts: Sequence[int],
    seconds: int | float,
    tell: Callable[[str], None],
) -> tuple[Scaling, ...]:
    rates: dict[int, list[float]] = defaultdict(list)
    for number in range(_WORKER_ROUNDS):
        for workers in counts:
            tell(f"measuring {workers} workers, round {number + 1} of {_WORKER_ROUNDS}")
            with contextlib.closing(start(workers)) as batches:
                for _ in range(_WARM_UP * workers):
                    next(batches)
                taken, begin = 0, time.perf_counter()
                # Workers finish about together: whole turns of them, or the rate is too high.
                while (spent := time.perf_counter() - begin) < seconds / _WORKER_ROUNDS:
                    for _ in range(workers):
                        next(batches)
                    taken += workers
            rates[workers].append(taken * BATCH_SIZE / spent)
    return tuple(
        Scaling(
            workers,
            Spread.of(rates[workers]),
            Spread.of(
                [
                    r / one * counts[0] / workers
                    for r, one in zip(rates[workers], rates[counts[0]], strict=True)
                ]
            ),
        )
        for workers in counts
    )
