"""The arithmetic of a plan: roofline, phases, the report."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from configs.shapes import get_config as shapes_config
from configs.tcl import get_config
from tcl_jax.errors import RunError
from tcl_jax.plan.collectives import Collectives
from tcl_jax.plan.compiled import Compiled, compile_program
from tcl_jax.plan.plan import Plan, PlannedStep, samples_of_phases, with_batch
from tcl_jax.plan.report import page, to_json
from tcl_jax.training.chips import Chip

CHIP = Chip(flops=100e12, memory=16 * 2**30, bandwidth=1e12, interconnect=1e11)
OOM = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
    "required for HLO temporaries (16.31G) exceeds available HBM (15.75G). HLO module: jit_step.\n"
    "See elsewhere."
)
FITTING: dict[str, Any] = {
    "arguments": 2 * 2**30, "outputs": 2**30, "aliased": 2**30, "temporary": 5 * 2**30,
    "program": 2**29, "flops": 1e12, "bytes_accessed": 5e9,
    "exchanged": (Collectives("all-reduce", 3, 4e8, 7e8),),
}  # fmt: skip


def step(
    name: str = "phase 1",
    *,
    executed: float = 1e12,
    chip: Chip = CHIP,
    samples: float = 6e6,
    **report: Any,
) -> PlannedStep:
    compiled = Compiled(**{**({} if "problem" in report else FITTING), **report})
    return PlannedStep(name, 64, 16, chip, compiled, {"decoder": 10**10}, executed, samples)


def plan(*steps: PlannedStep, topology: str = "v5e:4x4") -> Plan:
    return Plan(topology, "TPU v5 lite", 16, CHIP, 1024, steps)


# ----------------------------------------------------------------------------------------- roofline


def test_the_slowest_part_bounds_a_step() -> None:
    usual = step()
    assert tuple(usual.roofline.values()) == pytest.approx((10e-3, 5e-3, 7e-3))
    assert usual.bound == "compute" and usual.seconds == pytest.approx(10e-3)
    assert usual.mfu == pytest.approx(64 * 1e10 / 10e-3 / 100e12)
    assert usual.fits is True and usual.compiled.peak == 7.5 * 2**30
    assert usual.images_per_second == pytest.approx(64 * 16 / 10e-3)
    assert usual.days == pytest.approx(6e6 * 10e-3 / 1024 / 86400)
    assert step(bytes_accessed=20e9).bound == "memory"
    # What loops do again is not in XLA's counts.
    assert step(executed=4e12).roofline["memory"] == pytest.approx(20e-3)
    unknown = step(chip=Chip())
    assert unknown.bound is unknown.seconds is unknown.mfu is unknown.fits is unknown.days is None


def test_phases_have_the_samples_of_the_recipe() -> None:
    assert samples_of_phases(get_config()) == {1: 30_000 * 1024, 2: 20_001 * 1024}
    config = shapes_config()
    for start, phases in ((0, [2]), (10**6, [1])):
        config.train.backbone_from_step = start
        assert list(samples_of_phases(config)) == phases
    assert with_batch(get_config().lock(), 64).train.global_batch_size == 64


# ------------------------------------------------------------------------------------------- report


def rows(shown: str) -> dict[str, list[str]]:
    """Cells of a page by the title of their row."""
    lines = [line.split("  ") for line in shown.split("\n\n")[0].splitlines()]
    return {line[0].strip(): [cell.strip() for cell in line[1:] if cell] for line in lines}


def test_what_the_compiler_cannot_print_is_unknown_and_not_nothing() -> None:
    silent = plan(step(exchanged=None), step("phase 2"))
    assert silent.steps[0].roofline["interconnect"] is None
    shown = page([silent])
    assert rows(shown)["all-reduce: MB (operations)"] == ["unknown", "400.0 (3)"]
    assert "phase 1" in shown and "cannot print" in shown
    assert to_json(silent)["steps"][0]["compiled"]["exchanged"] is None


def test_a_page_and_json_say_what_does_not_fit() -> None:
    bad = plan(step(), step("phase 2", problem=OOM.splitlines()[0]))
    good = plan(step(), topology="v6e:4x4")
    shown = page([bad, good])
    found = rows(shown)
    assert found["fits"] == ["yes", "NO", "yes"]
    assert found["together: GiB"] == ["7.5", "-", "7.5"]
    assert found["images a second, all chips"] == ["102,400", "unknown", "102,400"]
    assert "phase 2 does not fit" in shown and "(16.31G) exceeds" in shown
    assert "an upper bound of speed, not a promise" in shown
    written = to_json(bad)["steps"]
    assert (written[0]["fits"], written[1]["fits"]) == (True, False)
    assert written[0]["peak"] == 7.5 * 2**30 and "16.31G" in written[1]["compiled"]["problem"]


# ------------------------------------------------------------------------------ compiler's reports


def test_only_a_program_that_is_too_large_is_no_failure() -> None:
    traced = jax.jit(lambda x: x @ x).trace(jax.ShapeDtypeStruct((32, 32), jnp.float32))
    square = compile_program(traced, 1, "here")
    assert square.arguments == square.outputs == 32 * 32 * 4
    assert square.flops == pytest.approx(2 * 32**3, rel=0.1) and not square.problem

    class Refused:
        """Stands in for a program that the compiler does not take."""

        def __init__(self, message: str) -> None:
            self.message = message

        def lower(self) -> None:
            raise jax.errors.JaxRuntimeError(self.message)

    refused: Any = Refused(OOM)
    assert compile_program(refused, 1, "here").problem == OOM.splitlines()[0]
    refused.message = "INTERNAL: Mosaic failed"
    with pytest.raises(RunError, match=refused.message):
        compile_program(refused, 1, "here")
