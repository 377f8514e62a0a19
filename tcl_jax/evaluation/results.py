"""What an evaluation found, in memory and as results.json."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import flax
import jax
import jaxlib
import numpy as np
import PIL
from absl import logging
from jaxtyping import Int32, UInt8, UInt16

import tcl_jax
from tcl_jax.errors import InputError, as_input_error, raise_machine_fault
from tcl_jax.evaluation.benchmark import Benchmark, paper_benchmarks
from tcl_jax.evaluation.scores import Counts, Scores
from tcl_jax.evaluation.thresholds import BEST, MISSED, ThresholdSearch, best_of_all
from tcl_jax.files import user_path, write_json

FORMAT_VERSION = 1
RESULTS_FILE = "results.json"
PAIRS_FILE = "pairs.json"
"""What a run writes of held-out pairs; of TCL with a threshold for its masks."""


@dataclasses.dataclass(frozen=True)
class ImageResult:
    """Counts of one image, by its key in the benchmark."""

    key: str
    counts: Counts

    @property
    def miou(self) -> float:
        """Mean IoU over the classes in its label or prediction, a fraction; NaN without a label."""
        return self.counts.scores().miou


@dataclasses.dataclass(frozen=True)
class ShownImage:
    """An image whose prediction a report shows.

    Attributes:
        key: of the image in its benchmark.
        rank: "best", "median" or "worst" of the benchmark, by the mIoU of the first method.
        miou: `ImageResult.miou`, a fraction.
        image: uint8 RGB.
        label: class per pixel, `labels.IGNORE` where it does not count.
        predicted: class per pixel.
    """

    key: str
    rank: str
    miou: float
    image: UInt8[np.ndarray, "h w 3"]
    label: Int32[np.ndarray, "h w"]
    predicted: UInt16[np.ndarray, "h w"]


@dataclasses.dataclass(frozen=True)
class BenchmarkResult:
    """A method evaluated on a benchmark.

    Attributes:
        benchmark: classes, split and published scores.
        images: counts of every image, each once.
        shown: a few of them to look at; may be empty.
        seconds: wall time it took.
        search: how the threshold was found, if it is the best; all counts are those at it.
    """

    benchmark: Benchmark
    images: tuple[ImageResult, ...]
    shown: tuple[ShownImage, ...]
    seconds: int | float
    search: ThresholdSearch | None = None

    @functools.cached_property
    def counts(self) -> Counts:
        """Of all images together."""
        classes = len(self.benchmark.names)
        return sum((image.counts for image in self.images), Counts.zeros(classes))

    @functools.cached_property
    def scores(self) -> Scores:
        """Of all images together, fractions."""
        return self.counts.scores()

    @property
    def full_set(self) -> int | None:
        """Number of images that the benchmark's split has; None: not known."""
        return self.benchmark.splits.get(self.benchmark.split)


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What an evaluation of a method found.

    Attributes:
        results: by name of the benchmark.
        fingerprint: see `protocol.fingerprint`.
    """

    results: dict[str, BenchmarkResult]
    fingerprint: dict[str, Any]


def choose_shown(images: Iterable[ImageResult]) -> dict[str, str]:
    """The images to show of a benchmark.

    Args:
        images: those without a labelled pixel are left out.

    Returns:
        Rank to key: best, median, worst. Equal images are ranked by key. Two images give the
        best and the worst, a single one the best.
    """
    scores = {image.key: image.miou for image in images if image.counts.labelled.any()}
    ranked = sorted(scores, key=lambda key: (-scores[key], key))
    places = {"best": (1, 0), "median": (3, (len(ranked) - 1) // 2), "worst": (2, -1)}
    return {rank: ranked[at] for rank, (least, at) in places.items() if len(ranked) >= least}


def published_mean(scores: Mapping[str, float | None]) -> float | None:
    """Mean of scores, by name, over `paper_benchmarks`; None unless all of them have one."""
    values = [scores.get(name) for name in paper_benchmarks()]
    known = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(known) / len(known) if len(known) == len(values) else None


# ------------------------------------------------------------------------------------ results.json


def write_results(
    path: str | os.PathLike[str], results: Sequence[BenchmarkResult], fingerprint: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes what was measured by one method, with all digits, and returns it.

    Scores are in per cent, None where a class never occurs; "mean_miou" is `published_mean`;
    "full_set_images" is None where it is not known. Where the best threshold was looked for, a
    benchmark's "threshold" has it, all that were tried and what it costs to miss it, and
    "best_threshold" is that of all benchmarks together.
    """
    modules = {
        "jax": jax, "jaxlib": jaxlib, "flax": flax, "numpy": np, "opencv": cv2, "pillow": PIL,
    }  # fmt: skip
    content = {
        "format_version": FORMAT_VERSION,
        "benchmarks": {result.benchmark.name: _to_json(result) for result in results},
        "mean_miou": published_mean(
            {result.benchmark.name: 100 * result.scores.miou for result in results}
        ),
        "best_threshold": best_of_all([one.search for one in results if one.search]),
        "fingerprint": dict(fingerprint),
        "versions": {
            "tcl_jax": tcl_jax.__version__,
            "python": platform.python_version(),
            **{name: module.__version__ for name, module in modules.items()},
        },
    }
    write_json(path, content)
    return content


def read_results(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `write_results` wrote.

    Args:
        path: the file, or the folder it lies in.

    Raises:
        InputError: if it is not there, is something else, or is of another format version.
    """
    file = Path(path)
    if file.is_dir():
        file = file / RESULTS_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if found := _thresholds_of_scenes(content):
            raise ValueError(f"they are of drawn scenes; give as a number that of {found}")
        if content["format_version"] != FORMAT_VERSION:
            raise ValueError(f"its format_version is not {FORMAT_VERSION}")
        for entry in (*content["benchmarks"].values(), content["fingerprint"]):
            if not isinstance(entry, dict):
                raise TypeError(f"{entry!r} is no table")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise_machine_fault(f"{str(file)!r}", error)
        raise InputError(
            f"no results at {str(file)!r} ({error}); give the --output folder of an evaluation by "
            f"this version of tcl_jax that has finished, or its {RESULTS_FILE}"
        ) from error
    return content


def best_thresholds(
    folder: str | os.PathLike[str], method: str, step: int | None = None, **used: Any
) -> tuple[float, dict[str, float]]:
    """The best thresholds of a method, as an evaluation that looked for them has found them, or
    else the one that a run on pairs proposes without labels.

    Args:
        folder: the evaluation's output, or the part of it that is the method's; or a run's workdir.
        method: a key of `models.methods.METHODS`.
        step: of the run that the model is from; that a proposal is of another one is logged.
        used: fields of a fingerprint that threshold and masks depend on.

    Returns:
        That of all benchmarks together, and those of single ones by name.

    Raises:
        InputError: if there are none, or they are of another method or other masks.
    """
    path, what = user_path(folder), f"threshold {f'{BEST}:{folder}'!r}"
    proposal, best = path / PAIRS_FILE, None
    own = path / method if (path / method).is_dir() else path
    if not proposal.is_file() or (own / RESULTS_FILE).is_file():
        content = read_results(own)
        best, benchmarks = content.get("best_threshold"), content["benchmarks"]
        fields = content["fingerprint"]
    if best is None and proposal.is_file():
        best, fields, benchmarks = _read_proposal(proposal)
        at = fields["step"]
        if None not in (step, at, best) and step != at:
            logging.warning(
                "%s was found after step %s, and this model is of step %s; the run finds it anew "
                "when it comes to its end",
                what, at, step,
            )  # fmt: skip
    if best is None:
        raise InputError(
            f"{what}: these results were made with a threshold that was given, or of no masks; "
            f"evaluate with --threshold={BEST} on a benchmark with a background first"
        )
    for name, value in {"method": method, **used}.items():
        if fields.get(name) != value:
            raise InputError(
                f"{what} was found with {name}={fields.get(name)!r}, and this is {name}={value!r}; "
                f"evaluate with --threshold={BEST} and the same flags first"
            )
    entries = benchmarks.items()
    return best, {name: one["threshold"]["best"] for name, one in entries if "threshold" in one}


def _read_proposal(file: Path) -> tuple[float | None, dict[str, Any], dict[str, Any]]:
    """The threshold of a run on pairs, None of a CLIP, what it was made with, and no benchmarks."""
    with as_input_error(f"{str(file)!r} is no result of a run on pairs"):
        content = json.loads(file.read_text(encoding="utf-8"))
        if "scores" not in content or not isinstance(content.get("made_with", {}), dict):
            raise ValueError("it has no scores")
        made = {"step": content.get("step")} | content.get("made_with", {})
        return content.get("threshold"), made, {}


def _thresholds_of_scenes(content: Mapping[str, Any]) -> str:
    """By row, of what a run on drawn scenes writes; else ""."""
    rows = content.items()
    if not all(isinstance(row, dict) and "threshold" in row for _, row in rows):
        return ""
    return ", ".join(f"{name}, {row['threshold']:g}" for name, row in rows)


def _to_json(result: BenchmarkResult) -> dict[str, Any]:
    scores, benchmark = result.scores, result.benchmark
    rows = zip(benchmark.names, scores.per_class_iou, scores.per_class_acc, strict=True)
    entry = {
        "title": benchmark.title,
        "split": benchmark.split,
        "images": len(result.images),
        "full_set_images": result.full_set,
        "miou": _percent(scores.miou),
        "macc": _percent(scores.macc),
        "aacc": _percent(scores.aacc),
        "boundary": _percent(scores.boundary),
        "per_class": {
            name: {"iou": _percent(iou), "acc": _percent(acc)} for name, iou, acc in rows
        },
        "published": dict(benchmark.published),
        "seconds": result.seconds,
    }
    return entry | ({"threshold": _search_to_json(result.search)} if result.search else {})


def _search_to_json(search: ThresholdSearch) -> dict[str, Any]:
    """What was found, with differences of mIoU in per cent."""
    scores = [search.counts.at(i).scores() for i in range(len(search.tried))]
    return {
        "best": search.best,
        "own": search.own,
        "lost_at_own": _percent(search.loss(search.own)),
        "missed_by": MISSED,
        "lost_if_lower": _percent(search.loss(search.best - MISSED)),
        "lost_if_higher": _percent(search.loss(search.best + MISSED)),
        "tried": list(search.tried),
        "miou": [_percent(one.miou) for one in scores],
        "boundary": [_percent(one.boundary) for one in scores],
    }


def _percent(fraction: float | np.floating) -> float | None:
    return None if np.isnan(fraction) else 100 * float(fraction)
