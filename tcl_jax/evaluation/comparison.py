"""Two evaluations side by side, and whether they were made alike."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tcl_jax.evaluation.protocol import Field, differences
from tcl_jax.evaluation.report import UNKNOWN, align
from tcl_jax.evaluation.results import read_results
from tcl_jax.pictures.lettering import one_line

INTENDED = ("method", "weights", "architecture")
"""Fields of a fingerprint that one compares on purpose."""
METHODS_OWN = ("kp_weight", "cleaning")
"""Fields that mean something to one method alone, and differ with the method."""


def compare(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> str:
    """Scores of two evaluations, their differences, and what else differs between them, as text.

    A table of mIoU in per cent of A, of B, and B - A per benchmark, and the mean over those that
    both have a score of. Then what one compares, method and weights and what goes with them, and a
    warning of every other field that differs, with both values; the differences of scores that it
    concerns end with "*".

    Args:
        a, b: results.json, or the folder it lies in.

    Raises:
        InputError: if one of them cannot be read, see `read_results`.
    """
    contents = read_results(a), read_results(b)
    first, second = (
        {name: entry["miou"] for name, entry in content["benchmarks"].items()}
        for content in contents
    )
    common = [name for name in first if name in second]
    prints = [_of_benchmarks(content["fingerprint"], common) for content in contents]
    for name in common:  # what is of a benchmark alone in one holds for all in the other
        mine = [one["benchmarks"][name] for one in prints]
        for one, own in zip(prints, mine, strict=True):
            lacking = {*mine[0], *mine[1]} - own.keys()
            own.update({field: one[field] for field in lacking & one.keys()})
    intended: dict[Field, tuple[Any, Any]] = {}
    warned: dict[Field, tuple[Any, Any]] = {}
    differing = differences(*prints)
    for field, values in differing.items():
        goes_along = ("method",) in differing and (field[-1] in METHODS_OWN or None in values)
        (intended if field[0] in INTENDED or goes_along else warned)[field] = values
    everywhere = any(field[0] != "benchmarks" for field in warned)
    concerned = {name for name in common if everywhere or any(name in field for field in warned)}

    lines = [f"A: {one_line(str(Path(a)))}", f"B: {one_line(str(Path(b)))}", ""]
    lines += [*_table(first, second, concerned), ""]
    if intended:
        lines += ["Compared:", *_lines(intended), ""]
    if warned:
        lines += ["WARNING: the protocols differ, so scores with * are not comparable:"]
        return "\n".join([*lines, *_lines(warned)])
    return "\n".join([*lines, "The protocol is the same, so the scores are comparable."])


def _of_benchmarks(fingerprint: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """The same without what it says of other benchmarks."""
    described = fingerprint.get("benchmarks", {})
    return {**fingerprint, "benchmarks": {name: dict(described.get(name, {})) for name in names}}


def _table(
    a: Mapping[str, float | None], b: Mapping[str, float | None], marked: set[str]
) -> list[str]:
    """Rows of benchmarks, and of the mean over those with two scores."""
    pairs = {name: (a.get(name), b.get(name)) for name in {**a, **b}}
    whole = [(x, y) for x, y in pairs.values() if x is not None and y is not None]
    if whole:
        mean = f"mean of {len(whole)}"
        first, second = (math.fsum(side) / len(whole) for side in zip(*whole, strict=True))
        pairs[mean] = first, second
        marked = marked | {mean} if marked else marked
    rows: list[tuple[str, ...]] = [("mIoU, %", "A", "B", "B - A")]
    for name, (one, other) in pairs.items():
        gain = UNKNOWN
        if one is not None and other is not None:
            gain = f"{round(other - one, 2) + 0.0:+.2f}" + "*" * (name in marked)  # no -0.00
        cells = (UNKNOWN if value is None else f"{value:.2f}" for value in (one, other))
        rows.append((name, *cells, gain))
    return align(rows)


def _lines(fields: Mapping[Field, tuple[Any, Any]]) -> list[str]:
    lines = []
    for field, values in fields.items():
        place = field[1:] if field[0] == "benchmarks" else field
        first, second = (
            "nothing" if v is None else one_line(v if isinstance(v, str) else json.dumps(v))
            for v in values
        )
        lines.append(f"  {one_line(': '.join(place))}: {first} in A, {second} in B")
    return lines
