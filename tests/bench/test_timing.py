"""Rounds of calls, and what the compiler says of a program."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tcl_jax.bench import timing
from tcl_jax.bench.timing import Timing, compile_timed, peak_bytes, time_calls, time_rounds


def test_rounds_come_after_the_warm_up_and_are_divided_by_their_calls() -> None:
    asked: list[int] = []
    seconds = iter((100.0, 8.0, 4.0, 12.0))

    def run(calls: int) -> float:
        asked.append(calls)
        return next(seconds)

    found = time_rounds(run, calls=4, rounds=3, warm_up=2)
    assert asked == [2, 4, 4, 4]
    assert found == Timing((2.0, 1.0, 3.0)) and (found.median, found.low) == (2, 1)


def test_the_devices_are_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(timing.jax, "block_until_ready", order.append)
    assert time_calls(lambda: order.append("call") or "result", 3) >= 0
    assert order == ["call"] * 3 + ["result"]


def test_a_program_is_described() -> None:
    shape = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    compiled, program = compile_timed(jax.jit(lambda x, y: x @ y).trace(shape, shape))
    assert program.flops == pytest.approx(2 * 64**3, rel=0.05)
    assert program.bytes >= 3 * 64 * 64 * 4 and program.compile_seconds >= 0
    assert compiled(jnp.ones((64, 64)), jnp.ones((64, 64)))[0, 0] == 64


def test_the_fullest_device_counts() -> None:
    def device(stats: Any) -> Any:
        return SimpleNamespace(memory_stats=lambda: stats)

    full = [device({"peak_bytes_in_use": size}) for size in (3, 7, 5)]
    assert peak_bytes(full) == 7
    assert peak_bytes([device(None)]) is None
