"""From a benchmark's files to counts: decoded, computed and scored at the same time."""

from __future__ import annotations

import collections
import copy
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import cv2
import jax
import numpy as np
from jaxtyping import Float32, Int32, UInt8
from tqdm import tqdm

from tcl_jax.data.images import ImageDecodeError, read_image
from tcl_jax.errors import InputError, RunError
from tcl_jax.evaluation.benchmark import Benchmark
from tcl_jax.evaluation.examples import DatasetIndex, Example
from tcl_jax.evaluation.labels import read_label, to_classes
from tcl_jax.evaluation.protocol import Protocol
from tcl_jax.evaluation.results import BenchmarkResult, ImageResult, ShownImage, choose_shown
from tcl_jax.evaluation.score_log import Record, ScoreLog, describe_files
from tcl_jax.evaluation.scores import Counts, count_levels, count_pixels
from tcl_jax.evaluation.thresholds import ThresholdSearch
from tcl_jax.inference.engine import ImageTask, MaskEngine
from tcl_jax.inference.merging import SoftMasks
from tcl_jax.inference.refinement import Refiner
from tcl_jax.inference.windows import resize_pixels
from tcl_jax.models.method import Method
from tcl_jax.parallel.cores import available_cores
from tcl_jax.parallel.mesh import local_mesh, put_locally
from tcl_jax.parallel.processes import raise_on_all_processes

Argument = TypeVar("Argument")
Result = TypeVar("Result")

MAX_THREADS = 8
"""Threads that decode, and threads that score, at most."""
_DECODED_AHEAD = 4


class Evaluator:
    """Label maps of benchmarks' images by a model on the devices of this process.

    Every process takes a share of the images by itself, so that none waits for another.

    Args:
        model: the method.
        params: all its parameters, on the host or replicated on devices; None: see `with_params`.
        protocol: windows, post-processing and thresholds.
        batch_size: windows that a device computes together; None: one on a CPU, 8 elsewhere.
    """

    def __init__(
        self, model: Method, params: Any, protocol: Protocol, batch_size: int | None = None
    ) -> None:
        self.protocol = protocol
        self._patch_size, self._mesh = model.patch_size, local_mesh()
        self._refine: Refiner | None = None
        if protocol.refine == "pamr" and protocol.scores != "masks":
            how = protocol.pamr_dilations, protocol.pamr_iterations
            self._refine = Refiner(self._mesh, model.pixel_statistics, *how)
        self._engine = MaskEngine(model, self._mesh, batch_size)
        self._params = put_locally(params, self._mesh)

    def with_params(self, params: Any) -> Evaluator:
        """The same with other parameters; nothing is compiled again."""
        other = copy.copy(self)
        other._params = put_locally(params, self._mesh)
        return other

    def with_threshold(self, benchmark: Benchmark, threshold: float) -> Evaluator:
        """The same with a threshold for a benchmark; nothing is compiled again."""
        other, found = copy.copy(self), {benchmark.name: threshold}
        other.protocol = dataclasses.replace(self.protocol, search=False, found=found)
        return other

    def label_maps(
        self,
        examples: Iterable[Example],
        benchmark: Benchmark,
        texts: Float32[np.ndarray, "n d"],
        then: Callable[..., Result],
        thresholds: Sequence[float] = (),
    ) -> Iterator[Result]:
        """Label maps of images, each handed to a function in a thread; yields what it returns.

        With w threads (`MAX_THREADS`, or the cores there are), at most w + 4 images and the mask
        grids of w more are held at a time.

        Args:
            examples: the images, in any order.
            benchmark: its classes.
            texts: embeddings of `Protocol.texts_of`.
            then: what is done with an example and its label map, class or background per pixel.
            thresholds: if given, those of which `then` gets the two results of
                `SoftMasks.levels` instead of the label map.

        Raises:
            RunError: if an image cannot be read.
        """
        protocol, refine = self.protocol, self._refine
        background, rule = protocol.background_of(benchmark), protocol.rule_of(benchmark)

        def load(example: Example) -> ImageTask[tuple[Example, tuple[int, int]]]:
            image = read_pixels(example.image, benchmark.exif)
            size = image.shape[0], image.shape[1]
            sliding = protocol.sliding_window(benchmark, size, self._patch_size)
            pixels = resize_pixels(image, sliding.size, protocol.resize)
            return ImageTask((example, size), sliding, pixels)

        def score(found: tuple[ImageTask[tuple[Example, tuple[int, int]]], SoftMasks]) -> Result:
            (task, masks), (example, size) = found, found[0].item
            try:
                refined = None if refine is None else refine(task.pixels, masks, size)
                if rule is None and thresholds:
                    return then(example, *masks.levels(size, thresholds))
                if rule is None:
                    return then(example, masks.labels(size, background))
                if thresholds:
                    return then(example, *rule.levels(masks, size, thresholds, refined))
                return then(example, rule.labels(masks, size, refined=refined))
            except (RunError, ValueError) as error:
                raise RunError(f"{example.image}: {error}") from error

        workers = min(available_cores(), MAX_THREADS)
        with ThreadPoolExecutor(workers) as readers, ThreadPoolExecutor(workers) as scorers:
            try:
                tasks = _ahead(readers, load, examples, workers + _DECODED_AHEAD)
                options = protocol.options_of(benchmark)
                # The rule takes the best of a class's texts where windows are merged.
                synonyms = protocol.synonyms_of(benchmark) if rule is None else None
                found = self._engine(self._params, tasks, texts, options, synonyms)
                yield from _ahead(scorers, score, found, workers, eager=True)
            except BaseException:
                for pool in (readers, scorers):
                    pool.shutdown(wait=False, cancel_futures=True)
                raise


def evaluate_benchmark(
    evaluator: Evaluator,
    index: DatasetIndex,
    texts: Float32[np.ndarray, "n d"],
    log: ScoreLog,
    *,
    beside: BenchmarkResult | None = None,
    progress: bool = True,
) -> BenchmarkResult:
    """Scores every image of a benchmark that has no score yet; every process calls it.

    Where the protocol looks for the best threshold, all are counted at once, and the result is that
    at the best. Process 0 makes the label maps of the best, the median and the worst image once
    more, to show.

    Args:
        evaluator: the model.
        index: the images, whose files were verified.
        texts: embeddings of the benchmark's texts, [n, d].
        log: keeps the counts.
        beside: another method's result, whose images are shown.
        progress: whether to show a bar.

    Raises:
        RunError: if a file cannot be read any more.
    """
    benchmark, classes = index.benchmark, len(index.benchmark.names)
    mine = log.remaining(share_of(index.examples))
    tried = evaluator.protocol.tried_on(benchmark)
    own = evaluator.protocol.of(benchmark).threshold
    nothing = Counts.zeros(classes, *([len(tried)] if tried else []))

    def score(
        example: Example, labels: np.ndarray, levels: np.ndarray | None = None
    ) -> tuple[Example, Counts]:
        truth = read_classes(example, benchmark)
        if levels is None:
            return example, count_pixels(labels, truth, classes)
        return example, count_levels(labels, levels, truth, classes, len(tried))

    def score_all() -> None:
        total, last = nothing, time.monotonic()
        with tqdm(desc=benchmark.name, total=len(mine), unit="image", disable=not progress) as bar:
            for example, counts in evaluator.label_maps(mine, benchmark, texts, score, tried):
                now = time.monotonic()
                log.add(Record(example.key, describe_files(example), counts, now - last))
                total, last = total + counts, now
                bar.update()
                so_far = total.at(tried.index(own)) if tried else total
                bar.set_postfix_str(f"mIoU {100 * so_far.scores().miou:.1f}", refresh=False)

    raise_on_all_processes(score_all)
    records = log.gather([example.key for example in share_of(index.examples)])
    counts, search = {e.key: records[e.key].counts for e in index.examples}, None
    if tried:
        search = ThresholdSearch(tried, own, sum(counts.values(), nothing))
        counts = {key: several.at(search.place) for key, several in counts.items()}
        evaluator = evaluator.with_threshold(benchmark, search.best)
    images = tuple(ImageResult(key, one) for key, one in counts.items())
    seconds = sum(records[e.key].seconds for e in index.examples) / jax.process_count()
    if beside is None:
        rank_of = {key: rank for rank, key in choose_shown(images).items()}
    else:
        rank_of = {one.key: one.rank for one in beside.shown}
    shows = jax.process_index() == 0
    shown = raise_on_all_processes(
        lambda: _show(evaluator, index, texts, images, rank_of) if shows else ()
    )
    return BenchmarkResult(benchmark, images, shown, seconds, search)


def _show(
    evaluator: Evaluator,
    index: DatasetIndex,
    texts: np.ndarray,
    images: Sequence[ImageResult],
    rank_of: Mapping[str, str],
) -> tuple[ShownImage, ...]:
    """The images that have a rank, by key."""
    benchmark, scores = index.benchmark, {image.key: image.miou for image in images}

    def show(example: Example, predicted: np.ndarray) -> ShownImage:
        image, label = read_pixels(example.image, benchmark.exif), read_classes(example, benchmark)
        key = example.key
        return ShownImage(key, rank_of[key], scores[key], image, label, predicted)

    by_key = {example.key: example for example in index.examples}
    chosen = [by_key[key] for key in rank_of]
    shown = {one.key: one for one in evaluator.label_maps(chosen, benchmark, texts, show)}
    return tuple(shown[key] for key in rank_of)


# ------------------------------------------------------------------------------------------- files


def read_pixels(path: Path, exif: str | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """An image as RGB, decoded by OpenCV and turned upright, as published scores are.

    HEIC, AVIF and what OpenCV does not know are read by `data.images.read_image`.

    Args:
        path: of the image.
        exif: "ignore" leaves a JPEG, PNG or WebP as it is stored; others are turned all the same.

    Raises:
        RunError: if it cannot be read.
    """
    flags = cv2.IMREAD_COLOR | (cv2.IMREAD_IGNORE_ORIENTATION if exif == "ignore" else 0)
    try:
        data = np.fromfile(path, np.uint8)
        # OpenCV would read AVIF, but not turn it.
        image = None if data[4:8].tobytes() == b"ftyp" else cv2.imdecode(data, flags)
        return read_image(path) if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    except ImageDecodeError as error:
        raise RunError(f"{error}; what was scored so far is kept") from error
    except (OSError, cv2.error) as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def read_classes(example: Example, benchmark: Benchmark) -> Int32[np.ndarray, "h w"]:
    """The true class per pixel, `labels.IGNORE` where it does not count.

    Raises:
        RunError: if the label cannot be read.
    """
    try:
        return to_classes(read_label(example.label), benchmark)
    except InputError as error:
        raise RunError(f"{example.label}: {error}; what was scored so far is kept") from error


def share_of(examples: Sequence[Example]) -> Sequence[Example]:
    """The images that this process scores, of those of all processes."""
    return examples[jax.process_index() :: jax.process_count()]


def _ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[Argument], Result],
    arguments: Iterable[Argument],
    depth: int,
    *,
    eager: bool = False,
) -> Iterator[Result]:
    """Results in order, at most `depth` computed ahead; if eager, each as soon as it is there."""
    queue: collections.deque[Future[Result]] = collections.deque()
    for argument in arguments:
        queue.append(pool.submit(function, argument))
        while len(queue) > depth or (eager and queue and queue[0].done()):
            yield queue.popleft().result()
    while queue:
        yield queue.popleft().result()
