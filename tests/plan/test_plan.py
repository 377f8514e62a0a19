"""The arithmetic of a plan: roofline, phases, the report."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from configs.shapes import get_config as shapes_config
from configs.tcl import get_config
from tcl_jax.errors import RunError
from tcl_jax.plan import compiled as compiled_module
from tcl_jax.plan.collectives import Collectives
from tcl_jax.plan.compiled import Compiled, compile_program
from tcl_jax.plan.plan import Plan, PlannedStep, samples_of_phases, with_batch
from tcl_jax.plan.report import page, table, to_json
from tcl_jax.training.chips import Chip

CHIP = Chip(flops=100e12, memory=16 * 2**30, bandwidth=1e12, interconnect=1e11)
OOM = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
    "required for HLO temporaries (16.31G) exceeds available HBM (15.75G). HLO module: jit_step.\n"
    "See elsewhere."
)
FITTING: dict[str, Any] = {
    "arguments": 2 * 2**30,
    "outputs": 2**30,
    "aliased": 2**30,
    "temporary": 5 * 2**30,
    "program": 2**29,
    "flops": 1e12,
    "bytes_accessed": 5e9,
    "exchanged": (Collectives("all-reduce", 3, 4e8, 7e8),),
}


def step(
    name: str = "phase 1", *, executed: float = 1e12, chip: Chip = CHIP, **report: Any
) -> PlannedStep:
    compiled = Compiled(**{**({} if "problem" in report else FITTING), **report})
    return PlannedStep(
        name, "head alone", 64, 16, chip, compiled, 2**29, {"decoder": 10**10}, executed
    )


def plan(*steps: PlannedStep, **fields: Any) -> Plan:
    whole = {
        "topology": "v5e:4x4",
        "kind": "TPU v5 lite",
        "devices": 16,
        "chip": CHIP,
        "batch": 1024,
        "steps": steps,
        "samples": {"phase 1": 6e6, "phase 2": 4e6},
    }
    return Plan(**{**whole, **fields})


# ----------------------------------------------------------------------------------------- roofline


def test_the_slowest_part_bounds_a_step() -> None:
    usual = step()
    assert tuple(usual.roofline.values()) == pytest.approx((10e-3, 5e-3, 7e-3))
    assert usual.bound == "compute" and usual.seconds == pytest.approx(10e-3)
    assert usual.mfu == pytest.approx(64 * 1e10 / 10e-3 / 100e12)
    assert usual.fits is True and usual.peak == 8 * 2**30
    assert step(bytes_accessed=20e9).bound == "memory"
    # What loops do again is not in XLA's counts.
    assert step(executed=4e12).roofline["memory"] == pytest.approx(20e-3)
    unknown = step(chip=Chip())
    assert unknown.bound is unknown.seconds is unknown.mfu is unknown.fits is None


def test_days_are_those_of_both_phases() -> None:
    two = plan(step(), step("phase 2", bytes_accessed=20e9))
    rates = [one.rows_per_second for one in two.steps]
    assert rates == pytest.approx([64 * 16 / 10e-3, 64 * 16 / 20e-3])
    assert two.days == pytest.approx((6e6 * 10e-3 + 4e6 * 20e-3) / 1024 / 86400)
    assert two.fits is True and plan(step(), step("phase 2", chip=Chip())).fits is None


def test_phases_have_the_samples_of_the_recipe() -> None:
    samples = samples_of_phases(get_config())
    assert samples == {"phase 1": 30_000 * 1024, "phase 2": 20_001 * 1024}
    config = shapes_config()
    for start, phases in ((0, ["phase 2"]), (10**6, ["phase 1"])):
        config.train.backbone_from_step = start
        assert list(samples_of_phases(config)) == phases
    assert with_batch(get_config().lock(), 64).train.global_batch_size == 64


# ------------------------------------------------------------------------------------------- report


def test_what_the_compiler_cannot_print_is_unknown_and_not_nothing() -> None:
    silent = plan(step(exchanged=None))
    assert silent.steps[0].roofline["interconnect"] is None
    output = page(silent)
    assert "unknown" in output and "cannot print" in output and "nothing" not in output
    assert to_json(silent)["steps"][0]["compiled"]["exchanged"] is None
    mixed = page(plan(step(exchanged=None), step("phase 2")))
    (line,) = [line for line in mixed.splitlines() if "all-reduce" in line]
    assert line.split()[1:] == ["unknown", "400.0", "(3)"]


def test_a_page_a_table_and_json_say_what_does_not_fit() -> None:
    failed = step("phase 2", problem=OOM.splitlines()[0])
    bad = plan(step(), failed)
    assert bad.fits is False and bad.days is None
    output = page(bad)
    assert "phase 2 does not fit" in output and "(16.31G) exceeds" in output
    assert "DOES NOT FIT" in output
    assert "8.00" in output and "of 16.00" in output and "400.0 (3)" in output
    good = plan(step(), step("phase 2"), topology="v6e:4x4")
    lines = table([bad, good]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "too much" in lines[2] and " NO " in lines[2]
    assert " yes " in lines[3] and "102,400" in lines[3]
    assert "an upper bound of speed, not a promise" in page(good)
    written = to_json(bad)
    assert written["fits"] is False and written["steps"][0]["peak"] == 8 * 2**30
    assert "16.31G" in written["steps"][1]["compiled"]["problem"]


# ------------------------------------------------------------------------------ compiler's reports


def test_only_a_program_that_is_too_large_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = jax.jit(lambda x: x @ x).trace(jax.ShapeDtypeStruct((32, 32), jnp.float32))
    square = compile_program(traced, 1, "here")
    assert square.arguments == square.outputs == 32 * 32 * 4
    assert square.flops == pytest.approx(2 * 32**3, rel=0.1) and not square.problem
    message = OOM

    def refuse(*_: Any) -> None:
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(compiled_module, "_compile", refuse)
    assert compile_program(traced, 1, "here").problem == OOM.splitlines()[0]
    message = "INTERNAL: Mosaic failed"
    with pytest.raises(RunError, match=message):
        compile_program(traced, 1, "here")
