"""How fast a benchmark is judged, on made-up images, and what devices and host need of it."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import jax
import numpy as np

from tcl_jax.bench.timing import Program, compile_timed, time_calls
from tcl_jax.data.made_photos import make_photo
from tcl_jax.errors import InputError
from tcl_jax.evaluation.benchmark import Benchmark, custom_benchmark
from tcl_jax.evaluation.evaluator import MAX_THREADS, Evaluator, read_classes, read_pixels
from tcl_jax.evaluation.examples import Example
from tcl_jax.evaluation.protocol import Protocol, make_protocol
from tcl_jax.evaluation.scores import count_pixels
from tcl_jax.inference.engine import MaskEngine, default_batch_size
from tcl_jax.inference.merging import SoftMasks
from tcl_jax.inference.model import Model
from tcl_jax.inference.windows import SlidingWindow, resize_pixels
from tcl_jax.models.clip import CLIP
from tcl_jax.models.layers import compute_dtype
from tcl_jax.models.tcl import TCL
from tcl_jax.ops.images import center_offset
from tcl_jax.parallel.cores import available_cores
from tcl_jax.parallel.mesh import batch_sharded, local_mesh, put_locally

_DIFFERENT = 8
"""Drawn pictures; more images repeat them."""


@dataclasses.dataclass(frozen=True)
class JudgeSpeed:
    """Figures of judging; the shares overlap, and each is of the time of the whole.

    Attributes:
        height, width: of the images, in pixels.
        images, windows: how many there were, and windows of all of them.
        classes: number of texts.
        pamr: whether masks are refined.
        dtype: that the network computes in.
        batch_size: windows that a device computes together.
        images_per_second: of everything: reading, decoding, masks, label maps and counts.
        device_share: time that the devices need for the masks alone, over that of everything.
        host_share: time that the host's threads need for the rest alone, over that of everything.
        program: what the compiler says.
    """

    height: int
    width: int
    images: int
    windows: int
    classes: int
    pamr: bool
    dtype: str
    batch_size: int
    images_per_second: float
    device_share: float
    host_share: float
    program: Program


def judge_speed(
    model: Model,
    size: tuple[int, int],
    *,
    images: int,
    classes: int,
    pamr: bool,
    dtype: str,
    batch_size: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> JudgeSpeed:
    """Judges made-up images once for warm-up and once for the figures.

    Args:
        model: what is judged.
        size: rows and columns of the images, in pixels.
        images: how many, at least 1.
        classes: number of classes, 2 to 254.
        pamr: whether masks are refined.
        dtype: a key of `models.layers.COMPUTE_DTYPES`.
        batch_size: windows per device; None: the default.
        tell: is told what is being done.

    Raises:
        InputError: if a number is out of its range.
    """
    rows, columns = size
    if images < 1 or min(size) < 1 or not 2 <= classes <= 254:
        raise InputError(
            f"{images} images of {columns}x{rows} and {classes} classes cannot be judged; "
            "give at least 1 image and pixel, and 2 to 254 classes"
        )
    protocol = make_protocol(model, pamr=pamr, dtype=dtype)
    batch = batch_size or default_batch_size()
    texts = np.random.default_rng(0).standard_normal((classes, model.config.embed_dim))
    texts = texts.astype(np.float32)
    with tempfile.TemporaryDirectory(prefix="tcl_bench_") as folder:
        benchmark, examples = _write(Path(folder), size, images, classes)
        sliding = protocol.sliding_window(benchmark, size, model.config.patch_size)
        windows = len(sliding.windows) * images
        tell("judging all")
        whole = _seconds_of_all(model, protocol, benchmark, examples, texts, batch)
        tell("the devices alone")
        devices, program = _seconds_of_devices(model, protocol, sliding, windows, texts, batch)
        tell("the host alone")
        background = protocol.background_of(benchmark)
        host = _seconds_of_host(benchmark, examples, sliding, size, background, model)
    return JudgeSpeed(
        height=rows,
        width=columns,
        images=images,
        windows=windows,
        classes=classes,
        pamr=pamr,
        dtype=dtype,
        batch_size=batch,
        images_per_second=images / whole,
        device_share=devices / whole,
        host_share=host / whole,
        program=program,
    )


def _seconds_of_all(
    model: Model,
    protocol: Protocol,
    benchmark: Benchmark,
    examples: Sequence[Example],
    texts: np.ndarray,
    batch: int,
) -> float:
    """From files to counts, as an evaluation does it; all is compiled before."""
    evaluator = Evaluator(_network(model, protocol), model.weights, protocol, batch)

    def judge_all(examples: Sequence[Example]) -> float:
        start = time.perf_counter()
        for _ in evaluator.label_maps(examples, benchmark, texts, partial(_count, benchmark)):
            pass
        return time.perf_counter() - start

    judge_all(examples[:1])
    return judge_all(examples)


def _seconds_of_devices(
    model: Model,
    protocol: Protocol,
    sliding: SlidingWindow,
    windows: int,
    texts: np.ndarray,
    batch: int,
) -> tuple[float, Program]:
    """Masks of so many windows, without anything else; and the program that makes a batch."""
    mesh = local_mesh()
    engine = MaskEngine(_network(model, protocol), mesh, batch)
    params, side = put_locally(model.weights, mesh), max(sliding.side)
    traced = engine.trace(params, side, len(texts), protocol.options)
    compiled, program = compile_timed(traced)
    padded = center_offset(side, model.config.patch_size)[0]
    rows = engine.rows((padded, padded), len(texts))
    zeros = (np.zeros((rows, padded, padded, 3), np.uint8), np.zeros((rows, 4), np.int32))
    inputs = (*jax.device_put(zeros, batch_sharded(mesh)), put_locally(texts, mesh))
    call = partial(compiled, params, *inputs)
    call()
    return time_calls(call, -(-windows // rows)), program


def _seconds_of_host(
    benchmark: Benchmark,
    examples: Sequence[Example],
    sliding: SlidingWindow,
    size: tuple[int, int],
    background: float | None,
    model: Model,
) -> float:
    """Reading, label maps of random masks, and counts, in as many threads as an evaluation has."""
    grid = [4 * side // model.config.patch_size for side in sliding.padded]
    shape = len(sliding.windows), *grid, len(benchmark.names)
    masks = SoftMasks(sliding, np.random.default_rng(0).random(shape, np.float32))

    def score(example: Example) -> None:
        resize_pixels(read_pixels(example.image), sliding.size)
        _count(benchmark, example, masks.labels(size, background))

    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(min(available_cores(), MAX_THREADS)) as pool:
        list(pool.map(score, examples))
    return time.perf_counter() - start


def _network(model: Model, protocol: Protocol) -> TCL | CLIP:
    return model.module(compute_dtype(protocol.dtype))


def _count(benchmark: Benchmark, example: Example, labels: np.ndarray) -> None:
    count_pixels(labels, read_classes(example, benchmark), len(benchmark.names))


def _write(
    folder: Path, size: tuple[int, int], images: int, classes: int
) -> tuple[Benchmark, list[Example]]:
    """Drawn pictures as JPEG, and label maps of blocks."""
    rng, examples = np.random.default_rng(0), []
    for number in range(min(images, _DIFFERENT)):
        picture = cv2.resize(make_photo(number)[0], size[::-1], interpolation=cv2.INTER_LINEAR)
        label = rng.integers(0, classes, (8, 8), np.uint8)
        label = cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST)
        example = Example(str(number), folder / f"{number}.jpg", folder / f"{number}.png")
        cv2.imwrite(str(example.image), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
        cv2.imwrite(str(example.label), label)
        examples.append(example)
    names = [f"thing {i}" for i in range(classes)]
    benchmark = custom_benchmark(folder / "{key}.jpg", folder / "{key}.png", names, name="made_up")
    return benchmark, [examples[i % len(examples)] for i in range(images)]
