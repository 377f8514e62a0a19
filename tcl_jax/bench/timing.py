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
        traced: the program.
        arguments: of a call, on the devices.
        carried: number of first results that are the first arguments of the next call.

    Attributes:
        compiled: the program.
        compile_seconds: that compiling took.
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

    def measure(
        self,
        devices: Sequence[jax.Device],
        *,
        calls: int,
        rounds: int,
        warm_up: int,
        images: int,
        flops: float,
    ) -> dict[str, Any]:
        """Times rounds of calls after some that do not count, and says what the program needs.

        Args:
            devices: on which it runs.
            calls: of a round.
            rounds: how many; the median counts.
            warm_up: calls before.
            images: that a call computes.
            flops: of an image by formula, see `models.flops`.

        Returns:
            `seconds` of a call in the median round, and `rounds`, those of each;
            `images_per_second`; `mfu`, None where the devices' peak is not known; `image_flops`,
            as given; `program_bytes` of one device: arguments, results, temporary memory and code;
            `peak_bytes`, the most of a device in use since the process began, None where it does
            not say; `compile_seconds`.
        """
        self.run(warm_up)
        times = [self.run(calls) / calls for _ in range(rounds)]
        seconds = statistics.median(times)
        memory: Any = self.compiled.memory_analysis()
        return {
            "seconds": seconds,
            "rounds": times,
            "images_per_second": images / seconds,
            "mfu": mfu(flops * images, seconds, devices),
            "image_flops": flops,
            "program_bytes": memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
            + memory.generated_code_size_in_bytes,
            "peak_bytes": peak_bytes(devices),
            "compile_seconds": self.compile_seconds,
        }


def peak_bytes(devices: Sequence[jax.Device]) -> int | None:
    """Most memory of a device that was in use since the process began; None if it does not say."""
    try:
        peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in devices]
    except (NotImplementedError, RuntimeError):
        return None
    return max((peak for peak in peaks if peak is not None), default=None)
