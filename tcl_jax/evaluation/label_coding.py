"""Whether the values of a benchmark's labels are those that it says, before anything is scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from tcl_jax.data.words import BACKGROUND_NAME
from tcl_jax.evaluation.benchmark import BENCHMARKS, Benchmark, spans
from tcl_jax.evaluation.examples import Problem

_LISTED = 8
_FEW = 3
_BINARY = {0, 255}


def describe_values(benchmark: Benchmark) -> str:
    """What the values of a benchmark's labels stand for, in a line."""
    classes = dict(zip(benchmark.label_values, benchmark.names, strict=True))
    if benchmark.background:
        classes[0] = "none of them (by the threshold)"
    listed = [f"{value} = {name}" for value, name in classes.items()]
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    ignored = spans(benchmark.ignored_values) or "none"
    message = f"{benchmark.name}: labels {', '.join(listed[:_LISTED])}{more}; ignored: {ignored}"
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
    pixel that counts, of a mask whose thing is ignored, of values that are no class. Classes
    without a pixel are warned of: their IoU is 0 where they are predicted, and otherwise mIoU
    leaves them out.

    Args:
        benchmark: says which values are classes and which are ignored.
        seen: pixels of every value, over all labels.
        labels: their folder.
    """
    classes = dict(zip(benchmark.label_values, benchmark.names, strict=True))
    ignored = {*benchmark.ignored_values}
    unknown, counted = seen.keys() - classes.keys() - ignored, seen.keys() & classes.keys()
    absent = [name for value, name in classes.items() if value not in counted]
    what, kind, fatal = None, "values of the labels", True
    if not seen:
        return
    if unknown:
        what = f"of {spans(unknown)} there is no class"
    elif not counted:
        what = "all of them are ignored, and nothing is left to be scored"
    elif len(classes) == 1:
        what = f"every pixel counts as {benchmark.names[0]!r}, and any model has an mIoU of 100"
    elif counted == {0} and seen.keys() == _BINARY:
        what = f"255 is ignored, so that only {classes[0]!r} would be scored"
    elif absent:
        kind, fatal = "classes without a labelled pixel", False
        more = f" and {len(absent) - _LISTED} more" if len(absent) > _LISTED else ""
        only = f"all that counts is {classes[min(counted)]!r}, and " if len(counted) == 1 else ""
        what = (
            f"{only}none is of {', '.join(map(repr, absent[:_LISTED]))}{more}; IoU is 0 where one "
            "of these is predicted, and otherwise mIoU leaves it out"
        )
    if what is not None:
        detail = f"they are {_describe(seen)}: {what}"
        if benchmark.name not in BENCHMARKS:
            detail += f". {_advice(benchmark, {*seen}, unknown)}"
        yield Problem(kind, labels, detail, fatal)


def _describe(seen: Mapping[int, int]) -> str:
    total, common = sum(seen.values()), sorted(seen)[:_LISTED]
    shares = [f"{value} ({100 * seen[value] / total:.1f} %)" for value in common]
    return ", ".join(shares) + (f" and {len(seen) - _LISTED} more" * (len(seen) > _LISTED))


def _advice(benchmark: Benchmark, seen: set[int], unknown: set[int]) -> str:
    """The flags and TOML keys that say what label values mean, as far as they may help."""
    if max(seen) > 255 and max(seen - {*benchmark.ignore}, default=0) > 2 * len(benchmark.classes):
        return "They look like numbers of instances; the benchmark needs the class of every pixel"
    ways = []
    if benchmark.background:
        ways.append("if there is no background, leave --background out")
    elif 0 in seen:
        ways.append("if 0 is none of the classes, give --background (background = true)")
    if benchmark.reduce_zero_label:
        ways.append("if 0 is the first class, leave --reduce_zero_label out")
    else:
        ways.append(
            "if 0 does not count and 1 is the first class, give --reduce_zero_label "
            "(reduce_zero_label = true)"
        )
    if unknown and len(unknown) <= _FEW:
        values = ",".join(map(str, sorted(unknown | {*benchmark.ignore})))
        ways.append(
            f"if {spans(unknown)} does not count, give --ignore={values} (ignore = [{values}])"
        )
    ways.append(
        f"if classes have other values, write `{max(seen)}: {benchmark.classes[0][0]}` and the "
        "like into the file of classes (values in TOML)"
    )
    return "What they mean can be said: " + "; ".join(ways)
