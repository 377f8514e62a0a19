"""What a compiler says of a program: memory, FLOPs, bytes and collectives."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from absl import logging

from tcl_jax.errors import RunError
from tcl_jax.plan.collectives import Collectives, collectives


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiler's report on a program; memory in bytes on one chip.

    Attributes:
        arguments, outputs, aliased, temporary, program: parts of the memory; outputs that are
            aliased take the place of arguments. All 0 if it does not fit.
        flops: that XLA counts on one chip, the bodies of loops once.
        bytes_accessed: that XLA counts, likewise.
        exchanged: collective operations by kind; None if the compiler cannot print the program
            (libtpu 0.0.52 fails at those it makes for v6e).
        problem: what the compiler says of a program that does not fit, in a line; "" if it fits.
    """

    arguments: int = 0
    outputs: int = 0
    aliased: int = 0
    temporary: int = 0
    program: int = 0
    flops: float = 0.0
    bytes_accessed: float = 0.0
    exchanged: tuple[Collectives, ...] | None = ()
    problem: str = ""

    @property
    def peak(self) -> int:
        """All of its memory together."""
        return self.arguments + self.outputs - self.aliased + self.temporary + self.program


def compile_program(traced: jax.stages.Traced, devices: int, name: str) -> Compiled:
    """Compiles a program for so many devices; `name` is what the log calls it.

    Raises:
        RunError: if the compiler fails for another reason than memory.
    """
    logging.info("compiling %s ...", name)
    try:
        return _report(traced.lower().compile(), devices)
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if not text.startswith("RESOURCE_EXHAUSTED"):
            raise RunError(f"the compiler failed: {text[:2000]}") from error
        return Compiled(problem=text.splitlines()[0])


def _report(compiled: jax.stages.Compiled, devices: int) -> Compiled:
    memory: Any = compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}
    try:
        exchanged = collectives(compiled.as_text() or "", devices)
    except jax.errors.JaxRuntimeError:
        exchanged = None
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        program=memory.generated_code_size_in_bytes,
        flops=float(cost.get("flops", 0.0)),
        bytes_accessed=float(cost.get("bytes accessed", 0.0)),
        exchanged=exchanged,
    )
