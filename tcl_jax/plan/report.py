"""Plans for people, in one table, and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from tcl_jax.plan.plan import Plan, PlannedStep

GIB = 2**30
UNKNOWN = "unknown"
CAVEAT = (
    "Times are what the chips could do at best, with computing, memory and links all at their\n"
    "peaks at once: an upper bound of speed, not a promise. Reading and augmenting images,\n"
    "evaluations and checkpoints come on top. MFU counts the FLOPs of the method's formulas; it\n"
    "passes 100% where this implementation needs fewer."
)
DERIVED = (
    "fits", "method_flops", "roofline", "bound", "seconds", "mfu", "images_per_second", "days",
)  # fmt: skip
"""Properties of a step that are written as JSON with its fields."""


def page(plans: Sequence[Plan]) -> str:
    """A column for each phase on each topology, a row for each figure, and notes."""
    columns = [(plan, step) for plan in plans for step in plan.steps]
    lines: list[list[str]] = []

    def row(title: str, cell: Callable[[PlannedStep], str]) -> None:
        lines.append([title, *(cell(step) for _, step in columns)])

    def memory(title: str, size: Callable[[PlannedStep], float]) -> None:
        row(title, lambda s: "-" if s.compiled.problem else _number(size(s), GIB))

    lines.append(["", *(plan.topology for plan, _ in columns)])
    row("", lambda s: s.name)
    row("chips", lambda s: str(s.chips))
    row("images a chip", lambda s: f"{s.images:g}")
    memory("parameters, moments, batch: GiB", lambda s: s.compiled.arguments)
    memory("results in new memory: GiB", lambda s: s.compiled.outputs - s.compiled.aliased)
    memory("temporary: GiB", lambda s: s.compiled.temporary)
    memory("program: GiB", lambda s: s.compiled.program)
    memory("together: GiB", lambda s: s.compiled.peak)
    row("a chip has: GiB", lambda s: _number(s.chip.memory, GIB))
    row("fits", lambda s: {True: "yes", False: "NO", None: UNKNOWN}[s.fits])
    row("TFLOP of the method, by formula", lambda s: _number(s.method_flops, 1e12))
    row("TFLOP computed", lambda s: _number(s.executed, 1e12))
    for kind in dict.fromkeys(c.kind for _, s in columns for c in s.compiled.exchanged or ()):
        row(f"{kind}: MB (operations)", lambda s, kind=kind: _exchanged(kind, s))  # type: ignore[misc]
    for part in ("compute", "memory", "interconnect"):
        row(f"{part}, at least: ms", lambda s, part=part: _number(s.roofline[part], 1e-3))  # type: ignore[misc]
    row("bound by", lambda s: s.bound or UNKNOWN)
    row("images a second, all chips", lambda s: _number(s.images_per_second))
    row("MFU", lambda s: UNKNOWN if s.mfu is None else f"{s.mfu:.0%}")
    row("days", lambda s: _number(s.days))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    ]
    return "\n".join([*table, "", *(note for plan in plans for note in _notes(plan)), CAVEAT])


def to_json(plan: Plan) -> dict[str, Any]:
    """All figures in bytes, seconds and FLOPs of a chip, by name."""
    fields = dataclasses.asdict(plan)
    for step, written in zip(plan.steps, fields["steps"], strict=True):
        del written["chip"]
        written |= {name: getattr(step, name) for name in DERIVED}
        written["peak"] = step.compiled.peak
    return fields


def _notes(plan: Plan) -> list[str]:
    lines = [f"{plan.topology}: {plan.devices} x {plan.kind}, global batch {plan.batch:,}"]
    for step in plan.steps:
        parts = sorted(step.parts.items(), key=lambda part: -part[1])
        listed = ", ".join(f"{name} {flops / 1e9:.3g}" for name, flops in parts)
        lines.append(f"  GFLOP of an image in {step.name}, by formula: {listed}")
        if step.compiled.problem:
            lines.append(f"  {step.name} does not fit; the compiler says {step.compiled.problem}")
        if step.compiled.exchanged is None:
            lines.append(f"  what {step.name} exchanges is unknown: the compiler cannot print it")
    return lines


def _exchanged(kind: str, step: PlannedStep) -> str:
    if step.compiled.exchanged is None:
        return UNKNOWN
    found = [one for one in step.compiled.exchanged if one.kind == kind]
    return f"{found[0].bytes / 1e6:,.1f} ({found[0].count})" if found else "-"


def _number(value: float | None, unit: float = 1.0) -> str:
    """Four digits, or all before the point."""
    if value is None:
        return UNKNOWN
    value /= unit
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
