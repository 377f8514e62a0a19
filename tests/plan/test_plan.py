"""The arithmetic of a plan: largest batch, roofline, phases, the report and what is on record."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from configs.shapes import get_config as shapes_config
from configs.tcl import get_config
from tcl_jax.errors import RunError
from tcl_jax.parallel.chips import Chip
from tcl_jax.plan.collectives import Collectives
from tcl_jax.plan import compiled as compiled_module
from tcl_jax.plan.compiled import Compiled, compile_program
from tcl_jax.plan.plan import (
    Plan,
    PlannedStep,
    largest_batch,
    samples_of_phases,
    with_batch,
)
from tcl_jax.plan.report import page, table, to_json
from tcl_jax.plan.roofline import roofline

CHIP = Chip(flops=100e12, memory=16 * 2**30, bandwidth=1e12, interconnect=1e11)
OOM = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
    "required for HLO temporaries (16.31G) exceeds available HBM (15.75G). HLO module: jit_step.\n"
    "See elsewhere."
)

# ------------------------------------------------------------------------------------ largest batch


@pytest.mark.parametrize("limit", [9, 23, 64, 100, 350])
@pytest.mark.parametrize("multiple", [1, 4])
def test_largest_batch_is_found_by_few_programs(limit: int, multiple: int) -> None:
    asked = []

    def peak(rows: int) -> int | None:
        asked.append(rows)
        assert rows % multiple == 0
        return 1000 + 10 * rows if rows <= limit else None

    first = 64
    known = {first: peak(first)}
    found = largest_batch(peak, 1000 + 10 * limit, known, multiple=multiple)
    assert found <= limit and peak(found) is not None
    assert limit - found < 16 * multiple
    assert len(asked) <= 10 and len(set(asked)) >= len(asked) - 1


def test_batches_that_are_not_in_a_straight_line() -> None:
    def peak(rows: int) -> int | None:
        needed = 100 + rows * rows
        return needed if needed <= 40_000 else None

    assert 150 <= largest_batch(peak, 40_000, {64: peak(64)}) <= 199
    assert largest_batch(lambda _: None, 10, {64: None}) == 0


# ----------------------------------------------------------------------------------------- roofline


def report(**fields: Any) -> Compiled:
    whole = {
        "arguments": 2 * 2**30,
        "outputs": 2**30,
        "aliased": 2**30,
        "temporary": 5 * 2**30,
        "program": 2**29,
        "flops": 1e12,
        "bytes_accessed": 5e9,
        "exchanged": (Collectives("all-reduce", 3, 4e8, 7e8),),
        "seconds": 60.0,
    }
    return Compiled(**{**whole, **fields})


def test_the_slowest_part_bounds_a_step() -> None:
    times = roofline(1e12, report(), CHIP)
    assert dataclasses.astuple(times) == pytest.approx((10e-3, 5e-3, 7e-3))
    assert times.bound == "compute" and times.seconds == pytest.approx(10e-3)
    assert roofline(1e12, report(bytes_accessed=20e9), CHIP).bound == "memory"
    # What loops do again is not in XLA's counts.
    assert roofline(4e12, report(), CHIP).memory == pytest.approx(20e-3)
    unknown = roofline(1e12, report(), Chip())
    assert unknown.bound is None and unknown.seconds is None


def step(name: str, **fields: Any) -> PlannedStep:
    compiled = report(**fields)
    times = None if compiled.problem else roofline(1e12, compiled, CHIP)
    return PlannedStep(name, "head alone", 64, 16, compiled, 2**29, {"a": 1e10}, 1e12, times)


def plan(*steps: PlannedStep, **fields: Any) -> Plan:
    samples = {"phase 1": 6e6, "phase 2": 4e6}
    whole = {
        "topology": "v5e:4x4",
        "kind": "TPU v5 lite",
        "devices": 16,
        "chip": CHIP,
        "batch": 1024,
        "steps": steps,
        "samples": samples,
    }
    return Plan(**{**whole, **fields})


def test_days_are_those_of_both_phases() -> None:
    two = plan(step("phase 1"), step("phase 2", bytes_accessed=20e9))
    assert two.images_per_second(two.steps[0]) == pytest.approx(64 * 16 / 10e-3)
    assert two.images_per_second(two.steps[1]) == pytest.approx(64 * 16 / 20e-3)
    assert two.days == pytest.approx((6e6 * 10e-3 + 4e6 * 20e-3) / 1024 / 86400)
    assert two.steps[0].mfu(CHIP) == pytest.approx(64 * 1e10 / 10e-3 / 100e12)
    assert two.fits is True and two.steps[0].peak == 8 * 2**30
    assert dataclasses.replace(two, chip=Chip()).fits is None


def test_what_the_compiler_cannot_print_is_unknown_and_not_nothing() -> None:
    silent = plan(step("phase 1", exchanged=None))
    times = silent.steps[0].roofline
    assert times is not None and times.interconnect is None and times.compute == 10e-3
    told = page(silent)
    assert "in all" in told and "unknown" in told and "cannot print" in told
    assert to_json(silent)["steps"][0]["collectives"] is None
    mixed = page(plan(step("phase 1", exchanged=None), step("phase 2")))
    (line,) = [line for line in mixed.splitlines() if "all-reduce" in line]
    assert line.split()[1:] == ["unknown", "400.0", "(3)"]


def test_a_page_a_table_and_json_say_what_does_not_fit() -> None:
    needed, available = 16.31 * 2**30, 15.75 * 2**30
    failed = step("phase 2", problem=OOM.splitlines()[0], needed=needed, available=available)
    bad = plan(step("phase 1"), failed, largest=56)
    assert bad.fits is False and bad.days is None
    told = page(bad)
    assert "phase 2 does not fit: needs 16.31 GiB, and 15.75 GiB are free" in told
    assert "DOES NOT FIT" in told and "56 images a chip, 896 in all" in told
    assert "8.00" in told and "of 16.00" in told and "400.0 (3)" in told
    good = plan(step("phase 1"), step("phase 2"), topology="v6e:4x4")
    lines = table([bad, good]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "> 16.31" in lines[2] and " NO " in lines[2] and "56" in lines[2]
    assert " yes " in lines[3] and "102,400" in lines[3] and "not tried" in lines[3]
    assert "an upper bound of speed, not a promise" in page(good)
    written = to_json(bad)
    assert written["fits"] is False and written["steps"][1]["memory"]["needed"] == needed
    assert written["steps"][0]["memory"]["peak"] == 8 * 2**30


def test_phases_have_the_samples_of_the_recipe() -> None:
    samples = samples_of_phases(get_config())
    assert samples == {"phase 1": 30_000 * 1024, "phase 2": 20_001 * 1024}
    config = shapes_config()
    config.train.backbone_from_step = 0
    assert list(samples_of_phases(config)) == ["phase 2"]
    config.train.backbone_from_step = 10**6
    assert list(samples_of_phases(config)) == ["phase 1"]
    other = with_batch(get_config().lock(), 64)
    assert other.train.global_batch_size == 64 and get_config().train.global_batch_size == 1024


# ------------------------------------------------------------------------------ compiler's reports


def program() -> jax.stages.Traced:
    return jax.jit(lambda x: x @ x).trace(jax.ShapeDtypeStruct((32, 32), jnp.float32))


def test_a_report_is_kept_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = jax.devices()
    first = compile_program(program(), devices, "here", cache=tmp_path)
    assert first.arguments == first.outputs == 32 * 32 * 4
    assert first.flops == pytest.approx(2 * 32**3, rel=0.1) and not first.problem
    (record,) = tmp_path.iterdir()

    def fail(*_: Any) -> None:
        raise AssertionError("compiled again")

    with monkeypatch.context() as patched:
        patched.setattr(compiled_module, "_in_background", fail)
        assert compile_program(program(), devices, "here", cache=tmp_path) == first
        with pytest.raises(AssertionError, match="compiled again"):
            compile_program(program(), devices, "there", cache=tmp_path)
    record.write_text("torn")
    again = compile_program(program(), devices, "here", cache=tmp_path)
    assert dataclasses.replace(again, seconds=first.seconds) == first


@pytest.mark.parametrize(
    ("message", "needed", "available"),
    [
        (OOM, 16.31, 15.75),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.86G of 15.75G hbm. "
         "Exceeded hbm capacity by 5.11G.", 20.86, 15.75),
        ("RESOURCE_EXHAUSTED: something else", None, None),
    ],
)  # fmt: skip
def test_a_program_that_is_too_large_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, message: str, needed: float | None, available: float | None
) -> None:
    def refuse(*_: Any) -> None:
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(compiled_module, "_in_background", refuse)
    found = compile_program(program(), jax.devices(), "here")
    assert found.problem == message.splitlines()[0]
    assert found.needed == (None if needed is None else pytest.approx(needed * 2**30))
    assert found.available == (None if available is None else pytest.approx(available * 2**30))


def test_other_failures_of_the_compiler_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed")

    monkeypatch.setattr(compiled_module, "_in_background", refuse)
    with pytest.raises(RunError, match="the compiler failed: INTERNAL: Mosaic failed"):
        compile_program(program(), jax.devices(), "here")
