"""What a compiler says of a program: memory, FLOPs, bytes and what chips exchange; kept on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRunning
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from tcl_jax.errors import RunError
from tcl_jax.files import short_hash, write_json
from tcl_jax.plan.collectives import Collectives, collectives

FORMAT_VERSION = 1
"""Of the records on disk."""
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_BYTES = r"([\d.]+)([KMGT]?)i?B?"
_TOO_LARGE = (
    re.compile(rf"\({_BYTES}\) exceeds available \w+ \({_BYTES}\)"),
    re.compile(rf"Used {_BYTES} of {_BYTES} hbm"),
)


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
        seconds: that compiling took.
        needed, available: what the compiler says of a program that does not fit; of one that
            fits, None. `needed` is also None if it cannot be read from the message.
        problem: first line of that message; "" if the program fits.
    """

    arguments: int = 0
    outputs: int = 0
    aliased: int = 0
    temporary: int = 0
    program: int = 0
    flops: float = 0.0
    bytes_accessed: float = 0.0
    exchanged: tuple[Collectives, ...] | None = ()
    seconds: float = 0.0
    needed: float | None = None
    available: float | None = None
    problem: str = ""

    @property
    def peak(self) -> int:
        """All of its memory together."""
        return self.arguments + self.outputs - self.aliased + self.temporary + self.program


def compile_program(
    traced: jax.stages.Traced,
    devices: list[jax.Device],
    place: str,
    *,
    cache: Path | None = None,
    tick: Callable[[float], None] = lambda _: None,
) -> Compiled:
    """Compiles a program, or takes what is on record of it.

    Args:
        traced: the program.
        devices: that it is for.
        place: what they are called; part of the record's key.
        cache: folder of the records, None for none.
        tick: called about once a second while it compiles, with the seconds it has taken.

    Raises:
        RunError: if the compiler fails for another reason than memory.
    """
    lowered = traced.lower()
    path = None
    if cache is not None:
        key = [FORMAT_VERSION, lowered.as_text(), place, devices[0].device_kind, *_versions()]
        path = cache / f"{short_hash(key)}.json"
        if (known := _read(path)) is not None:
            return known
    start = time.monotonic()
    try:
        compiled = _in_background(lowered.compile, tick)
    except jax.errors.JaxRuntimeError as error:
        result = _too_large(error, time.monotonic() - start)
    else:
        result = _report(compiled, len(devices), time.monotonic() - start)
    if path is not None:
        with contextlib.suppress(OSError):  # a record only saves time
            write_json(path, dataclasses.asdict(result))
    return result


def _in_background(compile_: Callable[[], Any], tick: Callable[[float], None]) -> Any:
    # The compiler hears no Ctrl-C; here the main thread does.
    pool = ThreadPoolExecutor(1, "compile")
    start = time.monotonic()
    future: Future[Any] = pool.submit(compile_)
    pool.shutdown(wait=False)
    while True:
        try:
            return future.result(timeout=1.0)
        except StillRunning:
            if future.done():  # since, or it raised this error itself
                return future.result()
            tick(time.monotonic() - start)


def _report(compiled: jax.stages.Compiled, devices: int, seconds: float) -> Compiled:
    memory: Any = compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        program=memory.generated_code_size_in_bytes,
        flops=float(cost.get("flops", 0.0)),
        bytes_accessed=float(cost.get("bytes accessed", 0.0)),
        exchanged=_exchanged(compiled, devices),
        seconds=round(seconds, 1),
    )


def _exchanged(compiled: jax.stages.Compiled, devices: int) -> tuple[Collectives, ...] | None:
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError:
        return None
    return collectives(text or "", devices)


def _too_large(error: jax.errors.JaxRuntimeError, seconds: float) -> Compiled:
    text = str(error)
    if not text.startswith("RESOURCE_EXHAUSTED"):
        raise RunError(f"the compiler failed: {text[:2000]}") from error
    match = next((m for pattern in _TOO_LARGE if (m := pattern.search(text))), None)
    needed = available = None
    if match is not None:
        needed, available = (float(match.group(i)) * _UNITS[match.group(i + 1)] for i in (1, 3))
    return Compiled(
        seconds=round(seconds, 1),
        needed=needed,
        available=available,
        problem=text.splitlines()[0],
    )


def _read(path: Path) -> Compiled | None:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        kinds = fields.pop("exchanged")
        exchanged = None if kinds is None else tuple(Collectives(**kind) for kind in kinds)
        return Compiled(**fields, exchanged=exchanged)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _versions() -> list[str]:
    found = []
    for name in ("jax", "jaxlib", "libtpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return found
