"""A plan for people: a page for one topology, a table for several; and as JSON."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from tcl_jax.plan.plan import Plan, PlannedStep

GIB = 2**30
UNKNOWN = "unknown"
_LABEL, _COLUMN = 34, 16

CAVEAT = (
    "The roofline is what the chips could do at best, with computing, memory and links all at\n"
    "their peaks at once: an upper bound of speed, not a promise. Reading and augmenting images,\n"
    "evaluations and checkpoints come on top. MFU counts the FLOPs of the method's\n"
    "formulas; it passes 100% where this implementation needs fewer."
)
DERIVED = ("peak", "fits", "method_flops", "roofline", "bound", "seconds", "mfu", "rows_per_second")
"""Properties of a step that are written as JSON with its fields."""


def page(plan: Plan) -> str:
    """All that is known of a run on a topology."""
    steps, chip = plan.steps, plan.chip

    def row(title: str, cell: Callable[[PlannedStep], str]) -> str:
        return (title.ljust(_LABEL) + "".join(cell(s).rjust(_COLUMN) for s in steps)).rstrip()

    def memory(title: str, size: Callable[[PlannedStep], float]) -> str:
        return row(title, lambda s: "-" if s.compiled.problem else f"{size(s) / unit:,.2f}")

    large = max((step.peak or GIB for step in steps), default=GIB) >= GIB
    unit, unit_name = (GIB, "GiB") if large else (2**20, "MiB")
    lines = [
        f"{plan.topology}: {plan.devices} x {plan.kind}; {_figures(plan)}",
        f"global batch {plan.batch:,}, {plan.batch / plan.devices:g} images a chip",
        "",
        row("", lambda s: s.name),
        row("images (windows) a chip", lambda s: f"{s.rows:g}"),
        "",
        f"memory of a chip, {unit_name}",
        memory("  parameters, moments, batch", lambda s: s.compiled.arguments + s.resident),
        memory("  results in new memory", lambda s: s.compiled.outputs - s.compiled.aliased),
        memory("  temporary", lambda s: s.compiled.temporary),
        memory("  program", lambda s: s.compiled.program),
        row("  together", lambda s: _needed(s, unit)),
    ]
    if chip.memory is not None:
        verdicts = {True: "fits", False: "DOES NOT FIT", None: UNKNOWN}
        lines.append(row(f"  of {chip.memory / unit:,.2f}", lambda s: verdicts[s.fits]))
    lines += [
        f"  {step.name} does not fit; the compiler says\n    {step.compiled.problem}"
        for step in steps
        if step.compiled.problem
    ]
    flops, name = 1e12, "TFLOP"
    if max(step.method_flops for step in steps) < flops:
        flops, name = 1e9, "GFLOP"
    lines += [
        "",
        "work of a chip",
        row(f"  {name} of the method, by formula", lambda s: _number(s.method_flops, flops)),
        row(f"  {name} computed, loops counted", lambda s: _number(s.executed, flops)),
        row(f"  {name} by XLA, loops once", lambda s: _number(s.compiled.flops or None, flops)),
        row(
            "  GB accessed by XLA, loops once",
            lambda s: _number(s.compiled.bytes_accessed or None, 1e9),
        ),
        "",
        "exchanged by a chip, MB (operations)",
    ]
    exchanged = [step.compiled.exchanged for step in steps]
    if None in exchanged:
        lines.append("  unknown where it says so: the compiler cannot print its program")
    kinds = list(dict.fromkeys(c.kind for found in exchanged for c in found or ()))
    lines += [row(f"  {kind}", functools.partial(_exchanged, kind)) for kind in kinds]
    if not kinds:
        lines.append(f"  {UNKNOWN}" if None in exchanged else "  nothing")
    lines.append("")
    if chip.flops is None:
        lines.append(
            "least time: unknown, as this kind of device is not in the table of peak rates"
        )
    else:
        lines += [
            "least time, ms",
            row("  computing", lambda s: _number(s.roofline["compute"], 1e-3)),
            row("  memory (estimate)", lambda s: _number(s.roofline["memory"], 1e-3)),
            row("  links to other chips", lambda s: _number(s.roofline["interconnect"], 1e-3)),
            row("  bound by", lambda s: s.bound or UNKNOWN),
            row("  images/s, all chips", lambda s: _number(s.rows_per_second, digits=0)),
            row("  MFU at most", lambda s: _share(s.mfu)),
        ]
    return "\n".join([*lines, "", *_notes(plan)])


def table(plans: Sequence[Plan]) -> str:
    """Topologies side by side, a line each."""
    head = ("topology", "chips", "batch", "a chip", "GiB needed", "of", "fits", "bound by",
            "images/s", "MFU", "days")  # fmt: skip
    rows = [head, *(_cells(plan) for plan in plans)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def to_json(plan: Plan) -> dict[str, Any]:
    """All figures in bytes, seconds and FLOPs of a chip, by name."""
    fields = dataclasses.asdict(plan) | {"fits": plan.fits, "days": plan.days}
    for step, written in zip(plan.steps, fields["steps"], strict=True):
        del written["chip"]
        written |= {name: getattr(step, name) for name in DERIVED}
    return fields


def _figures(plan: Plan) -> str:
    chip = plan.chip
    known = (
        (chip.memory, GIB, "GiB"),
        (chip.flops, 1e12, "TFLOP/s"),
        (chip.bandwidth, 1e9, "GB/s to memory"),
        (chip.interconnect, 1e9, "GB/s to other chips"),
    )
    parts = [f"{value / unit:,.4g} {name}" for value, unit, name in known if value is not None]
    return "each " + ", ".join(parts) if parts else "memory and speed unknown"


def _exchanged(kind: str, step: PlannedStep) -> str:
    if step.compiled.exchanged is None:
        return UNKNOWN
    found = [one for one in step.compiled.exchanged if one.kind == kind]
    return f"{found[0].bytes / 1e6:,.1f} ({found[0].count})" if found else "-"


def _notes(plan: Plan) -> list[str]:
    lines = [f"{step.name}: {step.title}" for step in plan.steps]
    if plan.training:
        last = plan.training[-1]
        parts = sorted(last.parts.items(), key=lambda part: -part[1])
        listed = ", ".join(f"{name} {flops / 1e9:.3g}" for name, flops in parts)
        lines.append(f"GFLOP of an image in {last.name}, by formula: {listed}")
    if plan.days is not None:
        samples = sum(plan.samples.values())
        count = f"{samples / 1e6:.1f} M" if samples >= 1e5 else f"{samples:,.0f}"
        lines += [f"{count} samples of training: {plan.days:.2f} days at the least", "", CAVEAT]
    return lines


def _cells(plan: Plan) -> tuple[str, ...]:
    largest = max(plan.training, key=lambda step: (step.peak is None, step.peak or 0))
    slowest = max(plan.training, key=lambda step: step.seconds or 0.0)
    return (
        plan.topology,
        f"{plan.devices:,}",
        f"{plan.batch:,}",
        f"{plan.batch / plan.devices:g}",
        _needed(largest),
        _number(plan.chip.memory, GIB),
        {True: "yes", False: "NO", None: UNKNOWN}[plan.fits],
        slowest.bound or UNKNOWN,
        _number(slowest.rows_per_second, digits=0),
        _share(slowest.mfu),
        _number(plan.days),
    )


def _needed(step: PlannedStep, unit: int = GIB) -> str:
    return "too much" if step.peak is None else f"{step.peak / unit:,.2f}"


def _number(value: float | None, unit: float = 1.0, digits: int = 2) -> str:
    return UNKNOWN if value is None else f"{value / unit:,.{digits}f}"


def _share(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0%}"
