"""Whether the values of a benchmark's labels are those that it says, before anything is scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from tcl_jax.data.words import BACKGROUND_NAME
from tcl_jax.errors import shorten
from tcl_jax.evaluation.benchmark import BENCHMARKS, Benchmark, spans
from tcl_jax.evaluation.examples import Problem

_ADVICE = (
    "If 0 is none of the classes, give --background; if 0 does not count and 1 is the first class, "
    "--reduce_zero_label; if other values do not count, --ignore=VALUES; if classes have other "
    "values, write `VALUE: NAME` into the file of classes (in TOML: background, reduce_zero_label, "
    "ignore, values)"
)


def describe_values(benchmark: Benchmark) -> str:
    """What the values of a benchmark's labels stand for, in a line."""
    classes = dict(zip(benchmark.label_values, benchmark.names, strict=True))
    if benchmark.background:
        classes[0] = "none of them (by the threshold)"
    message = (
        f"{benchmark.name}: labels {shorten([f'{v} = {name}' for v, name in classes.items()])}; "
        f"ignored: {spans(benchmark.ignored_values) or 'none'}"
    )
    if classes.get(0, "").lower() == BACKGROUND_NAME:
        message += (
            f". {classes[0]!r} is looked for as a word, as the others are; to have it where no "
            "other class has a score beyond the threshold, leave it out of the classes and give "
            "--background (background = true)"
        )
    return message


def coding_problems(
    benchmark: Benchmark, seen: Mapping[int, int], labels: Path
) -> Iterator[Problem]:
    """What is odd about the values of all labels together.

    A score that any model or none would have is refused: of one class alone, of labels without a
    pixel that counts, of a mask whose object is ignored, of values that are no class. Classes
    without a pixel are warned of: their IoU is 0 where they are predicted, and otherwise mIoU
    leaves them out.

    Args:
        benchmark: says which values are classes and which are ignored.
        seen: pixels of every value, over all labels.
        labels: their folder.
    """
    classes = dict(zip(benchmark.label_values, benchmark.names, strict=True))
    unknown = seen.keys() - classes.keys() - {*benchmark.ignored_values}
    counted = seen.keys() & classes.keys()
    absent = [name for value, name in classes.items() if value not in counted]
    kind, fatal = "values of the labels", True
    if not seen:
        return
    if unknown:
        what = f"of {spans(unknown)} there is no class"
    elif not counted:
        what = "all of them are ignored, and nothing is left to be scored"
    elif len(classes) == 1:
        what = f"every pixel counts as {benchmark.names[0]!r}, and any model has an mIoU of 100"
    elif counted == {0} and seen.keys() == {0, 255}:
        what = f"255 is ignored, so that only {classes[0]!r} would be scored"
    elif absent:
        kind, fatal = "classes without a labelled pixel", False
        what = (
            f"none is of {shorten([*map(repr, absent)])}; IoU is 0 where one of these is "
            "predicted, and otherwise mIoU leaves it out"
        )
    else:
        return
    total = sum(seen.values())
    shares = shorten([f"{value} ({100 * seen[value] / total:.1f} %)" for value in sorted(seen)])
    advice = "" if benchmark.name in BENCHMARKS else f". {_ADVICE}"
    yield Problem(kind, labels, f"they are {shares}: {what}{advice}", fatal)
