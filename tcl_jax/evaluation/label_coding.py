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
    told = f"{benchmark.name}: labels {', '.join(listed[:_LISTED])}{more}; ignored: {ignored}"
    if classes.get(0, "").lower() == BACKGROUND_NAME:
        told += (
            f". {classes[0]!r} is looked for as a word, as the others are; to have it where no "
            "other class has a score beyond the threshold, leave it out of the classes and give "
            "--background (background = true)"
        )
    return told


def coding_problems(
    benchmark: Benchmark, seen: Mapping[int, int], labels: Path
) -> Iterator[Problem]:
    """What the values of all labels together tell.

    A score that any model or none would have is refused: of one class alone, of labels without a
    pixel that counts, of a mask whose thing is ignored, of values that are no class. Classes that
    no pixel is of are told of: their IoU is 0 where they are predicted, else mIoU leaves them out.

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
        advice = (
            ""
            if benchmark.name in BENCHMARKS
            else ". ".join(_advice(benchmark, {*seen}, unknown, counted))
        )
        detail = f"they are {_describe(seen)}: {what}" + (f". {advice}" if advice else "")
        yield Problem(kind, labels, detail, fatal)


def _describe(seen: Mapping[int, int]) -> str:
    total, common = sum(seen.values()), sorted(seen)[:_LISTED]
    shares = [f"{value} ({100 * seen[value] / total:.1f} %)" for value in common]
    return ", ".join(shares) + (f" and {len(seen) - _LISTED} more" * (len(seen) > _LISTED))


def _advice(
    benchmark: Benchmark, seen: set[int], unknown: set[int], counted: set[int]
) -> Iterator[str]:
    """Which flags or keys of the TOML file fit the values."""
    count, plain = len(benchmark.classes), benchmark.values is None
    top = max(seen - {*benchmark.ignore}, default=0)
    name = benchmark.classes[0][0]
    if 0 in unknown and not benchmark.background:
        yield "If 0 is none of the classes, give --background (background = true)"
    if seen == _BINARY and plain and count == 1:
        yield (
            f"For a mask that is 255 where {name!r} is, write the line `255: {name}` into the file "
            "of classes (values = [255] in TOML) and give --background (background = true)"
        )
    elif seen == _BINARY and 0 not in unknown:
        yield "They look like a mask of one class; the benchmark needs the class of every pixel"
    elif max(seen) > 255 and top > 2 * count:
        yield "They look like numbers of instances; the benchmark needs the class of every pixel"
    elif not counted:
        pass
    elif plain and top == count and not benchmark.background and not benchmark.reduce_zero_label:
        first = "" if 0 in seen else ", as they seem to count from 1"
        if 0 in seen:
            yield "If 0 is none of the classes, give --background (background = true)"
        yield ("If 0 is not to count, give --reduce_zero_label (reduce_zero_label = true)" + first)
    elif plain and benchmark.background and (0 not in seen or top == count - 1):
        yield "If there is no background, leave --background out" + (
            "" if 0 in seen else " and give --reduce_zero_label, as 0 does not occur"
        )
    elif plain and benchmark.reduce_zero_label and 0 in seen and top == count - 1:
        yield "If 0 is the first class, leave --reduce_zero_label out"
    elif plain and count > 1 and 0 not in seen and not unknown and not benchmark.reduce_zero_label:
        yield "If they count from 1, give --reduce_zero_label (reduce_zero_label = true)"
    if unknown and len(unknown) <= _FEW:
        values = ",".join(map(str, sorted(unknown | {*benchmark.ignore})))
        yield f"If {spans(unknown)} is not to count, give --ignore={values} (ignore = [{values}])"
    if unknown and seen != _BINARY and max(seen) <= 255:
        yield "For classes of other values, write these into the file of classes, as `7: name`"
