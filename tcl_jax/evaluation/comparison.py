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
METHODS_OWN = ("kp_weight",)
"""Fields that mean something to TCL alone, and differ with the method."""


def compare(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> str:
    """Scores of two evaluations, their differences, and what else differs between them, as text.

    A table of mIoU in per cent of A, of B, and B - A per benchmark, and the mean over those that
    both have a score of. Then whether their protocols are the same: method and weights are what one
    compares, and what only one of the methods has goes with them; any other field that differs is
    warned of with both values, and the differences of scores that it concerns end with "*".

    Args:
        a, b: results.json, or the folder it lies in.

    Raises:
        InputError: if one of them cannot be read, see `read_results`.
    """
    contents = read_results(a), read_results(b)
    scores = [
        {name: entry["miou"] for name, entry in content["benchmarks"].items()}
        for content in contents
    ]
    common = [name for name in scores[0] if name in scores[1]]
    prints = []
    for content in contents:  # without what they say of other benchmarks
        described = content["fingerprint"].get("benchmarks", {})
        shared = {name: described.get(name, {}) for name in common}
        prints.append({**content["fingerprint"], "benchmarks": shared})
    differing = differences(*prints)
    intended: dict[Field, tuple[Any, Any]] = {}
    warned: dict[Field, tuple[Any, Any]] = {}
    for field, values in differing.items():
        goes_along = ("method",) in differing and (field[0] in METHODS_OWN or None in values)
        (intended if field[0] in INTENDED or goes_along else warned)[field] = values
    everywhere = any(field[0] != "benchmarks" for field in warned)
    concerned = set(common) if everywhere else {field[1] for field in warned}

    paragraphs = [
        [f"A: {one_line(str(Path(a)))}", f"B: {one_line(str(Path(b)))}"],
        _table(scores[0], scores[1], concerned),
    ]
    for letter, own, other in (("A", *scores), ("B", *scores[::-1])):
        if only := [one_line(name) for name in own if name not in other]:
            paragraphs.append([f"Only in {letter}: {', '.join(only)}."])
    if intended:
        paragraphs.append(["Compared:", *_lines(intended)])
    if not common:
        paragraphs.append(["No benchmark is in both, so there is nothing to compare."])
    elif not differing:
        paragraphs.append(["The fingerprints are equal: same method, weights and protocol."])
    elif not warned:
        paragraphs.append(["The protocol is the same, so the scores are comparable."])
    else:
        kept = [one_line(name) for name in common if name not in concerned]
        what = f"are comparable only for {', '.join(kept)}" if kept else "are not comparable"
        verdict = f"WARNING: the protocols differ, so the scores {what}. These fields differ:"
        paragraphs.append([verdict, *_lines(warned)])
    return "\n\n".join("\n".join(lines) for lines in paragraphs)


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
        if min(len(first), len(second)) > 40 and first[:16] != second[:16]:  # hashes
            first, second = f"{first[:16]}...", f"{second[:16]}..."
        lines.append(f"  {one_line(': '.join(place))}: {first} in A, {second} in B")
    return lines
