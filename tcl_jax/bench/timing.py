"""A compiled program on the devices: how long its calls take, and how much memory it needs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax

from tcl_jax.training.chips import mfu


class Runner:
    """A program that is compiled and called again and again.

    Args:
        arguments: of a call, on the devices.
        carried: number of first results that are the first arguments of the next call.
    """

    def __init__(self, traced: jax.stages.Traced, arguments: Sequence[Any], carried: int = 0):
        start = time.perf_counter()
        self._lowered = traced.lower()
        self.compiled = self._lowered.compile()
        self.compile_seconds = time.perf_counter() - start
        self._arguments, self._carried = [*arguments], carried

    def __call__(self) -> Any:
        """Starts a call; returns its results, on the devices."""
        results = self.compiled(*self._arguments)
        if self._carried:
            self._arguments[: self._carried] = results[: self._carried]
        return results

    def run(self, calls: int) -> float:
        """Seconds of `calls` calls in a row; the devices are waited for once, at the end."""
        start = time.perf_counter()
        for _ in range(calls):
            results = self()
        jax.block_until_ready(results)
        return time.perf_counter() - start

    def recompile(self, **options: str) -> None:
        """Compiles the program again, with options of XLA."""
        self.compiled = self._lowered.compile(compiler_options=options)


def measure_in_turn(
    runners: Sequence[Runner],
    devices: Sequence[jax.Device],
    *,
    calls: int,
    rounds: int,
    warm_up: int,
    images: int,
    flops: Sequence[float],
) -> list[dict[str, Any]]:
    """Times rounds of calls after some that do not count, and says what the programs need.

    A round of each program follows one of the others, so that whatever else the machine does slows
    down all of them.

    Args:
        calls: of a round.
        rounds: how many; the median counts.
        images: that a call computes.
        flops: of an image by formula, of each program; see `models.flops`.

    Returns:
        Of each program `seconds` of a call in the median round, and `rounds`, those of each; where
        there are several, `ratio` of the times to the first's in the same round (the median),
        `lowest` and `highest`; `images_per_second`; `mfu`, None where the devices' peak is not
        known; `image_flops`, as given; `program_bytes` of one device: arguments, results, temporary
        memory and code; `peak_bytes`, the most of a device in use since the process began, None
        where it does not say; `compile_seconds`.
    """
    for runner in runners:
        runner.run(warm_up)
    every = [[runner.run(calls) / calls for runner in runners] for _ in range(rounds)]
    rows = []
    for k, (runner, own) in enumerate(zip(runners, flops, strict=True)):
        times = [one[k] for one in every]
        seconds, ratios = statistics.median(times), [one[k] / one[0] for one in every]
        memory: Any = runner.compiled.memory_analysis()
        compared = {
            "ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios),
        }  # fmt: skip
        rows.append({
            "seconds": seconds,
            "rounds": times,
            **(compared if len(runners) > 1 else {}),
            "images_per_second": images / seconds,
            "mfu": mfu(own * images, seconds, devices),
            "image_flops": own,
            "program_bytes": memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
            + memory.generated_code_size_in_bytes,
            "peak_bytes": peak_bytes(devices),
            "compile_seconds": runner.compile_seconds,
        })  # fmt: skip
    return rows


def peak_bytes(devices: Sequence[jax.Device]) -> int | None:
    """Most memory of a device that was in use since the process began; None if it does not say."""
    try:
        peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in devices]
    except (NotImplementedError, RuntimeError):
        return None
    return max((peak for peak in peaks if peak is not None), default=None)
