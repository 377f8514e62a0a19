"""How long programs take on the devices, and how much memory they need."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Timing:
    """Mean seconds of a call in each of several rounds of calls in a row."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds of a call in the middle round."""
        return statistics.median(self.seconds)

    @property
    def low(self) -> float:
        """Seconds of a call in the fastest round."""
        return min(self.seconds)


@dataclasses.dataclass(frozen=True)
class Program:
    """What the compiler says of a program, for one device.

    Attributes:
        flops: as XLA counts them, the bodies of loops once.
        bytes: of memory: arguments, results, temporary and code.
        compile_seconds: that compiling it took.
    """

    flops: float
    bytes: int
    compile_seconds: float


def compile_timed(traced: jax.stages.Traced) -> tuple[jax.stages.Compiled, Program]:
    """Compiles a program and says what is known of it."""
    start = time.perf_counter()
    compiled = traced.lower().compile()
    seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    size = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    cost = compiled.cost_analysis() or {}
    return compiled, Program(float(cost.get("flops", 0.0)), int(size), round(seconds, 3))


def time_calls(call: Callable[[], Any], calls: int) -> float:
    """Seconds that calls in a row take; the devices are waited for after the last one alone.

    Args:
        call: starts a program and returns arrays of it.
        calls: how many, at least 1.
    """
    start = time.perf_counter()
    for _ in range(calls):
        result = call()
    jax.block_until_ready(result)
    return time.perf_counter() - start


def time_rounds(run: Callable[[int], float], *, calls: int, rounds: int, warm_up: int) -> Timing:
    """Times rounds of calls after some that do not count.

    Args:
        run: seconds that so many calls take.
        calls: of a round.
        rounds: how many.
        warm_up: calls before.
    """
    run(warm_up)
    return Timing(tuple(run(calls) / calls for _ in range(rounds)))


class PartTimer:
    """Times parts of a program, each compiled and run by itself.

    Args:
        calls, rounds, warm_up: see `time_rounds`.

    Attributes:
        seconds: of a call of each part, in its fastest round.
    """

    def __init__(self, *, calls: int, rounds: int, warm_up: int) -> None:
        self.seconds: dict[str, float] = {}
        self._how = {"calls": calls, "rounds": rounds, "warm_up": warm_up}

    def __call__(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Times a function under a name, and returns its result."""
        compiled = jax.jit(function).lower(*arguments).compile()
        run = partial(time_calls, partial(compiled, *arguments))
        self.seconds[name] = time_rounds(run, **self._how).low
        return compiled(*arguments)


def peak_bytes(devices: Sequence[jax.Device]) -> int | None:
    """Most memory of a device that was ever in use, as it says itself; None where it does not."""
    peaks = []
    for device in devices:
        try:
            peaks.append((device.memory_stats() or {}).get("peak_bytes_in_use"))
        except (NotImplementedError, RuntimeError):
            return None
    known = [peak for peak in peaks if peak is not None]
    return max(known) if known else None
