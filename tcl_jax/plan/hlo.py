"""The text of a compiled program (HLO), read into the instructions of its computations."""

from __future__ import annotations

import dataclasses
import re

ENTRY = "ENTRY"
"""Name of the computation that the program begins with."""
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(")
# Result shapes hold braces and equal signs, so only the name is read.
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of a compiled program.

    Attributes:
        name: unique in its computation.
        shape: of its result, as HLO writes it.
        opcode: HLO's.
        line: the whole text.
    """

    name: str
    shape: str
    opcode: str
    line: str

    def attribute(self, name: str) -> str:
        """The value that stands after `name=`, without quotation marks; "" if there is none."""
        match = re.search(rf'\b{name}=(?:"([^"]*)"|%?([\w.\-]+))', self.line)
        return (match[1] or match[2] or "") if match else ""

    @property
    def is_scalar(self) -> bool:
        """Whether the result is a single number, such as an index."""
        return re.match(r"\w+\[\]", self.shape) is not None


def read_computations(hlo: str) -> dict[str, list[Instruction]]:
    """The instructions of every computation, by its name, or `ENTRY`.

    Args:
        hlo: `jax.stages.Compiled.as_text()`.
    """
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in hlo.splitlines():
        if match := _INSTRUCTION.match(line):
            current.append(Instruction(match[1], match[2], match[3], line))
        elif (match := _COMPUTATION.match(line)) and not line.startswith("HloModule"):
            current = found.setdefault(ENTRY if match[1] else match[2], [])
    return found
