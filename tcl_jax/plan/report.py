"""A plan for people: a page for one topology, a table for several; and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tcl_jax.plan.plan import Plan, PlannedStep

GIB = 2**30
UNKNOWN = "unknown"
_LABEL, _COLUMN = 34, 16

CAVEAT = (
    "The roofline is what the chips could do at best, with computing, memory and links all at\n"
    "their peaks at once: an upper bound of speed, not a promise. Reading and augmenting images,\n"
    "evaluations and checkpoints come on top. MFU takes the plain method's FLOPs; it passes 100%\n"
    "where the forms computed here need fewer."
)


def page(plan: Plan) -> str:
    """All that is known of a run on a topology."""
    share = plan.batch / plan.devices
    lines = [
        f"{plan.topology}: {plan.devices} x {plan.kind}; {_figures(plan)}",
        f"global batch {plan.batch:,}, {share:g} images a chip",
        "",
        _row("", [step.name for step in plan.steps]),
        _row("images (windows) a chip", [f"{step.rows:g}" for step in plan.steps]),
        "",
        f"memory of a chip, {_memory_unit(plan)[0]}",
        *_memory(plan),
        "",
        "work of a chip",
        *_work(plan),
        "",
        "exchanged by a chip, MB (operations)",
        *_exchanged(plan),
        "",
        *_times(plan),
        "",
        *_notes(plan),
    ]  # fmt: skip
    return "\n".join(lines)


def table(plans: Sequence[Plan]) -> str:
    """Topologies side by side, a line each."""
    head = ("topology", "chips", "batch", "a chip", "GiB needed", "of", "fits", "bound by",
            "images/s", "MFU", "days", "largest a chip")  # fmt: skip
    rows = [head, *(_cells(plan) for plan in plans)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def to_json(plan: Plan) -> dict[str, Any]:
    """All figures in bytes, seconds and FLOPs of a chip, by name."""
    return {
        "topology": plan.topology,
        "device_kind": plan.kind,
        "devices": plan.devices,
        "chip": vars(plan.chip),
        "global_batch_size": plan.batch,
        "fits": plan.fits,
        "days_at_roofline": plan.days,
        "largest_batch_per_chip": plan.largest,
        "samples": plan.samples,
        "steps": [_step_to_json(plan, step) for step in plan.steps],
    }


def _step_to_json(plan: Plan, step: PlannedStep) -> dict[str, Any]:
    report, times = step.compiled, step.roofline
    return {
        "name": step.name,
        "title": step.title,
        "rows_per_chip": step.rows,
        "chips": step.chips,
        "fits": step.fits(plan.chip),
        "memory": {
            "arguments": report.arguments,
            "outputs": report.outputs,
            "aliased": report.aliased,
            "temporary": report.temporary,
            "program": report.program,
            "resident": step.resident,
            "peak": step.peak,
            "needed": report.needed,
            "available": report.available,
        },
        "flops": {
            "method": step.method_flops,
            "executed": step.executed,
            "xla": report.flops,
            "method_per_row": step.parts,
        },
        "bytes_accessed": report.bytes_accessed,
        "collectives": None if report.exchanged is None else list(map(vars, report.exchanged)),
        "roofline_seconds": None if times is None else vars(times),
        "bound": None if times is None else times.bound,
        "rows_per_second": plan.images_per_second(step),
        "mfu": step.mfu(plan.chip),
        "compile_seconds": report.seconds,
        "problem": report.problem,
    }


# --------------------------------------------------------------------------------- parts of a page


def _figures(plan: Plan) -> str:
    chip = plan.chip
    known = (
        (chip.memory, GIB, "GiB"),
        (chip.flops, 1e12, "TFLOP/s"),
        (chip.bandwidth, 1e9, "GB/s to memory"),
        (chip.interconnect, 1e9, "GB/s to other chips"),
    )
    told = [f"{value / unit:,.4g} {name}" for value, unit, name in known if value is not None]
    return "each " + ", ".join(told) if told else "memory and speed unknown"


def _memory_unit(plan: Plan) -> tuple[str, int]:
    largest = max((step.peak or GIB for step in plan.steps), default=GIB)
    return ("GiB", GIB) if largest >= GIB else ("MiB", 2**20)


def _memory(plan: Plan) -> list[str]:
    _, unit = _memory_unit(plan)

    def part(title: str, size: Callable[[PlannedStep], float]) -> str:
        return _row(
            title,
            ["-" if s.compiled.problem else f"{size(s) / unit:,.2f}" for s in plan.steps],
            indent=2,
        )

    lines = [
        part("parameters, moments, batch", lambda s: s.compiled.arguments + s.resident),
        part("results in new memory", lambda s: s.compiled.outputs - s.compiled.aliased),
        part("temporary", lambda s: s.compiled.temporary),
        part("program", lambda s: s.compiled.program),
        _row("together", [_needed(step, unit) for step in plan.steps], indent=2),
    ]
    if plan.chip.memory is not None:
        verdicts = [_verdict(plan, step) for step in plan.steps]
        lines.append(_row(f"of {plan.chip.memory / unit:,.2f}", verdicts, indent=2))
    lines += [
        f"  {step.name} does not fit: needs {_gib(step.compiled.needed)} GiB, and "
        f"{_gib(step.compiled.available)} GiB are free for it; the compiler says\n"
        f"    {step.compiled.problem}"
        for step in plan.steps
        if step.compiled.problem
    ]
    return lines


def _work(plan: Plan) -> list[str]:
    name, unit = "TFLOP", 1e12
    if max(step.method_flops for step in plan.steps) < unit:
        name, unit = "GFLOP", 1e9

    def row(title: str, value: Callable[[PlannedStep], float | None], unit: float) -> str:
        cells = ["-" if (v := value(s)) is None else f"{v / unit:,.2f}" for s in plan.steps]
        return _row(title, cells, indent=2)

    return [
        row(f"{name} of the method, by formula", lambda s: s.method_flops, unit),
        row(f"{name} computed, loops counted", lambda s: s.executed, unit),
        row(f"{name} by XLA, loops once", lambda s: s.compiled.flops or None, unit),
        row("GB accessed by XLA, loops once", lambda s: s.compiled.bytes_accessed or None, 1e9),
    ]


def _exchanged(plan: Plan) -> list[str]:
    told = [step.compiled.exchanged for step in plan.steps]
    kinds = dict.fromkeys(kind.kind for exchanged in told for kind in exchanged or ())
    lines = []
    if None in told:
        lines.append("  unknown where it says so: the compiler cannot print its program")
        kinds = kinds or {"in all": None}
    for kind in kinds:
        cells = []
        for exchanged in told:
            if exchanged is None:
                cells.append(UNKNOWN)
                continue
            mine = [found for found in exchanged if found.kind == kind]
            cells.append(f"{mine[0].bytes / 1e6:,.1f} ({mine[0].count})" if mine else "-")
        lines.append(_row(kind, cells, indent=2))
    return lines or ["  nothing"]


def _times(plan: Plan) -> list[str]:
    if plan.chip.flops is None:
        return ["least time: unknown, as this kind of device is not in the table of peak rates"]

    def row(title: str, name: str) -> str:
        times = [None if s.roofline is None else getattr(s.roofline, name) for s in plan.steps]
        return _row(title, ["-" if t is None else f"{1e3 * t:,.2f}" for t in times], indent=2)

    rates = [plan.images_per_second(step) for step in plan.steps]
    shares = [step.mfu(plan.chip) for step in plan.steps]
    bounds = [step.roofline.bound if step.roofline else None for step in plan.steps]
    return [
        "least time, ms",
        row("computing", "compute"),
        row("memory (estimate)", "memory"),
        row("links to other chips", "interconnect"),
        _row("bound by", [bound or "-" for bound in bounds], indent=2),
        _row("images/s, all chips", [_count(rate) for rate in rates], indent=2),
        _row("MFU at most", ["-" if s is None else f"{s:.0%}" for s in shares], indent=2),
    ]


def _notes(plan: Plan) -> list[str]:
    lines = [f"{step.name}: {step.title}" for step in plan.steps]
    train = [step for step in plan.steps if step.name in plan.samples]
    if train:
        parts = sorted(train[-1].parts.items(), key=lambda part: -part[1])
        listed = ", ".join(f"{name} {flops / 1e9:.3g}" for name, flops in parts)
        lines.append(f"GFLOP of an image in {train[-1].name}, by formula: {listed}")
    if plan.largest is not None:
        lines.append(
            f"largest batch that compiles and fits: {plan.largest} images a chip, "
            f"{plan.largest * plan.devices:,} in all"
            if plan.largest
            else "not even the smallest batch fits"
        )
    if plan.days is not None:
        samples = _samples(sum(plan.samples.values()))
        lines += [f"{samples} samples of training: {plan.days:.2f} days at the least", "", CAVEAT]
    return lines


def _cells(plan: Plan) -> tuple[str, ...]:
    train = [step for step in plan.steps if step.name in plan.samples]
    worst = max(train, key=lambda s: (s.peak is None, s.peak or 0))
    slowest = max(
        train, key=lambda s: (s.roofline.seconds or 0.0) if s.roofline is not None else 0.0
    )
    rate, share = plan.images_per_second(slowest), slowest.mfu(plan.chip)
    bound = slowest.roofline.bound if slowest.roofline else None
    return (
        plan.topology,
        f"{plan.devices:,}",
        f"{plan.batch:,}",
        f"{plan.batch / plan.devices:g}",
        _needed(worst),
        _gib(plan.chip.memory),
        {True: "yes", False: "NO", None: UNKNOWN}[plan.fits],
        bound or UNKNOWN,
        _count(rate),
        UNKNOWN if share is None else f"{share:.0%}",
        UNKNOWN if plan.days is None else f"{plan.days:.2f}",
        "not tried" if plan.largest is None else str(plan.largest),
    )


# ----------------------------------------------------------------------------------------- numbers


def _needed(step: PlannedStep, unit: int = GIB) -> str:
    if step.peak is not None:
        return f"{step.peak / unit:,.2f}"
    return "too much" if step.compiled.needed is None else f"> {step.compiled.needed / unit:,.2f}"


def _verdict(plan: Plan, step: PlannedStep) -> str:
    return {True: "fits", False: "DOES NOT FIT", None: UNKNOWN}[step.fits(plan.chip)]


def _row(title: str, cells: Sequence[str], indent: int = 0) -> str:
    label = (" " * indent + title).ljust(_LABEL)
    return (label + "".join(cell.rjust(_COLUMN) for cell in cells)).rstrip()


def _gib(size: float | None) -> str:
    return UNKNOWN if size is None else f"{size / GIB:.2f}"


def _count(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"


def _samples(count: float) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,.0f}"
