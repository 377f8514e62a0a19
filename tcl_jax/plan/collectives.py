"""What chips exchange in a compiled program, read from its text (HLO)."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from tcl_jax.plan.hlo import ENTRY, Instruction, read_computations

KINDS = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}
"""Bits of an element whose type does not end with their number."""

_CALLS = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation|"
    r"(?:branch|called)_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_NAME = re.compile(r"%?([\w.\-]+)")
_ARRAY = re.compile(r"([a-z]+\d*\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collectives:
    """All collective operations of one kind in a run of a program, on one chip.

    Attributes:
        kind: one of `KINDS`.
        count: number of operations, those in loops as often as they run.
        bytes: of their results (of the input, for reduce-scatter).
        sent: bytes that a chip sends if they run as rings, the least possible.
    """

    kind: str
    count: int
    bytes: float
    sent: float


def collectives(hlo: str, devices: int) -> tuple[Collectives, ...]:
    """The collective operations of a compiled program, summed by kind, the largest first.

    The TPU compiler repeats an operation's text in all fusions that hide parts of it: texts of the
    same channel, shape and source count as one operation.

    Args:
        hlo: `jax.stages.Compiled.as_text()`.
        devices: that run it; taken for the group of an operation whose groups cannot be read.
    """
    computations = read_computations(hlo)
    times = _times(computations)
    operations: dict[tuple[Any, ...], Collectives] = {}
    for name, instructions in computations.items():
        for one in instructions:
            if (kind := one.opcode.removesuffix("-start")) not in KINDS:
                continue
            if (group := _group_size(one.line, devices)) == 1:
                continue
            size = _result_bytes(one.shape, kind, started=one.opcode != kind)
            size *= group if kind == "reduce-scatter" else 1
            runs = times.get(name, 1)
            sent = runs * size * _sent_share(kind, group)
            new = Collectives(kind, runs, runs * size, sent)
            channel = one.attribute("channel_id")
            same = (channel, one.shape.split("{")[0], one.attribute("op_name"))
            key = (kind, *(same if channel else (name, one.name)))
            operations[key] = max(operations.get(key, new), new, key=lambda found: found.bytes)
    sums = []
    for kind in KINDS:
        if ones := [one for one in operations.values() if one.kind == kind]:
            columns = ((one.count, one.bytes, one.sent) for one in ones)
            sums.append(Collectives(kind, *map(sum, zip(*columns, strict=True))))
    return tuple(sorted(sums, key=lambda one: -one.bytes))


def _sent_share(kind: str, group: int) -> float:
    """Bytes that a chip sends in a ring of so many, as a share of the operation's bytes."""
    if kind in ("collective-permute", "collective-broadcast"):
        return 1.0
    return (2 if kind == "all-reduce" else 1) * (group - 1) / group


def _times(computations: Mapping[str, list[Instruction]]) -> dict[str, int]:
    """How often each computation runs in a run of the program."""
    times: dict[str, int] = {}

    def visit(name: str, runs: int) -> None:
        if runs <= times.get(name, 0):
            return
        times[name] = runs
        for one in computations[name]:
            trips = _trips(one, computations) if one.opcode == "while" else 1
            for called in _CALLS.findall(one.line):
                for inner in _NAME.findall(called):
                    if inner in computations:
                        visit(inner, runs * trips)

    if ENTRY in computations:
        visit(ENTRY, 1)
    return times


def _trips(loop: Instruction, computations: Mapping[str, list[Instruction]]) -> int:
    """Trips of a loop: what the compiler says, or the bound that its condition counts up to."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.line):
        return int(known[1])
    condition = computations.get(loop.attribute("condition"), [])
    bounds = [re.search(r"= s\d+\[\]\S* constant\((\d+)\)", one.line) for one in condition]
    numbers = [int(bound[1]) for bound in bounds if bound]
    return max(numbers[0], 1) if len(numbers) == 1 else 1


def _result_bytes(shape: str, kind: str, *, started: bool) -> float:
    """Bytes of the result; one that is started also holds its operands and, maybe, its state."""
    arrays = [_bytes(dtype, dimensions) for dtype, dimensions in _ARRAY.findall(shape)]
    if started and kind in ("all-gather", "collective-permute") and len(arrays) > 1:
        large = [size for size in arrays if size > 4] or arrays
        return sum(large[len(large) // 2 :])
    return sum(arrays)


def _bytes(dtype: str, dimensions: str) -> float:
    digits = re.search(r"\d+", dtype)
    bits = BITS.get(dtype, int(digits.group()) if digits else 0)
    return math.prod(int(n) for n in dimensions.split(",") if n) * bits / 8


def _group_size(line: str, devices: int) -> int:
    """Chips that take part together: as a list, as an array's shape, or as axes of a mesh."""
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(match.group(1).split(","))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match.group(1))
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match.group(1)))
        return math.prod(int(sizes.get(axis, 1)) for axis in re.findall(r"'(\w+)'", match.group(2)))
    return devices
