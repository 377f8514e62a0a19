"""Two evaluations side by side, and whether they were made alike."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tcl_jax.evaluation.protocol import Field, differences
from tcl_jax.evaluation.report import UNKNOWN, align
from tcl_jax.evaluation.results import read_results
from tcl_jax.pictures.lettering import one_line

INTENDED = ("method", "weights", "architecture")
"""Fields of a fingerprint that one compares on purpose."""
METHODS_OWN = ("kp_weight",)
"""Fields that mean something to TCL alone, and differ with the method."""


def compare(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> str:
    """Scores of two evaluations, their differences, and what else differs between them.

    Args:
        a: results.json, or the folder it lies in.
        b: the same of the other evaluation.

    Returns:
        Text for the terminal. A table of mIoU in per cent of A, of B, and B - A per benchmark, and
        the mean over those that both have a score of. Then whether their protocols are the same:
        method and weights are what one compares, and what only one of the methods has goes with
        them; any other field that differs is warned of with both values, and the differences of
        scores that it concerns end with "*".

    Raises:
        InputError: if one of them cannot be read, see `read_results`.
    """
    contents = read_results(a), read_results(b)
    scores = [
        {name: entry["miou"] for name, entry in content["benchmarks"].items()}
        for content in contents
    ]
    common = [name for name in scores[0] if name in scores[1]]
    differing = differences(
        *(_with_benchmarks(content["fingerprint"], common) for content in contents)
    )
    methods_differ = ("method",) in differing
    intended, belonging, warned = {}, {}, {}
    for field, values in differing.items():
        if field[0] in INTENDED:
            intended[field] = values
        elif methods_differ and (field[0] in METHODS_OWN or None in values):
            belonging[field] = values
        else:
            warned[field] = values
    everywhere = any(field[0] != "benchmarks" for field in warned)
    concerned = set(common) if everywhere else {field[1] for field in warned}

    paragraphs = [
        [f"A: {one_line(str(Path(a)))}", f"B: {one_line(str(Path(b)))}"],
        _table(scores[0], scores[1], concerned),
    ]
    only = [
        f"Only in {letter}: {', '.join(one_line(name) for name in own if name not in other)}."
        for letter, own, other in (("A", *scores), ("B", scores[1], scores[0]))
        if set(own) - set(other)
    ]
    if only:
        paragraphs.append(only)
    if intended:
        paragraphs.append(["Compared:", *_lines(intended)])
    if belonging:
        paragraphs.append(["Goes with the method:", *_lines(belonging)])
    if not common:
        paragraphs.append(["No benchmark is in both, so there is nothing to compare."])
    elif not differing:
        paragraphs.append(["The fingerprints are equal: same method, weights and protocol."])
    elif not warned:
        paragraphs.append(["The protocol is the same, so the scores are comparable."])
    else:
        kept = [name for name in common if name not in concerned]
        what = (
            f"are comparable only for {', '.join(one_line(name) for name in kept)}"
            if kept
            else "are not comparable"
        )
        verdict = f"WARNING: the protocols differ, so the scores {what}. These fields differ:"
        paragraphs.append([verdict, *_lines(warned)])
    return "\n\n".join("\n".join(lines) for lines in paragraphs)


def _with_benchmarks(fingerprint: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A fingerprint that says nothing of other benchmarks."""
    described = fingerprint.get("benchmarks", {})
    return {**fingerprint, "benchmarks": {name: described.get(name, {}) for name in names}}


def _table(
    a: Mapping[str, float | None], b: Mapping[str, float | None], marked: set[str]
) -> list[str]:
    rows = [("mIoU, %", "A", "B", "B - A")]
    pairs = []
    for name in dict.fromkeys([*a, *b]):
        first, second = a.get(name), b.get(name)
        star = "*" if name in marked else ""
        if first is None or second is None:
            gain = UNKNOWN
        else:
            gain = _signed(second - first) + star
            pairs.append((first, second))
        rows.append((name, _cell(first), _cell(second), gain))
    if pairs:
        means = [math.fsum(side) / len(pairs) for side in zip(*pairs, strict=True)]
        star = "*" if marked else ""
        gain = _signed(means[1] - means[0]) + star
        rows.append((f"mean of {len(pairs)}", _cell(means[0]), _cell(means[1]), gain))
    return align(rows)


def _lines(fields: Mapping[Field, tuple[Any, Any]]) -> list[str]:
    lines = []
    for field, (a, b) in fields.items():
        place = field[1:] if field[0] == "benchmarks" else field
        first, second = _words(a), _words(b)
        if min(len(first), len(second)) > 40 and first[:16] != second[:16]:  # hashes
            first, second = f"{first[:16]}...", f"{second[:16]}..."
        lines.append(f"  {one_line(': '.join(place))}: {first} in A, {second} in B")
    return lines


def _words(value: Any) -> str:
    if value is None:
        return "nothing"
    return one_line(value if isinstance(value, str) else json.dumps(value))


def _cell(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.2f}"


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"  # no -0.00
