"""The command as a user meets it: a plan for this machine, one for TPUs elsewhere, mistakes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tcl_jax.errors import InputError
from tcl_jax.plan import __main__ as plan
from tests.in_process import run_module

ROOT = Path(__file__).parent.parent.parent
TCL = f"--config={ROOT / 'configs/tcl.py'}"
SHAPES = f"--config={ROOT / 'configs/shapes.py'}"
SMALL = {
    "model.weights": "'there/is/none.safetensors'",
    "model.variant": "custom",
    "model.sizes.embed_dim": 16,
    "model.sizes.resolution": 32,
    "model.sizes.patch_size": 8,
    "model.sizes.text_width": 64,
    "model.sizes.context_length": 32,
    "model.sizes.vision_width": 64,
    "model.sizes.vision_layers": 2,
    "model.sizes.text_layers": 1,
    "train.global_batch_size": 8,
}
FLAGS = [SHAPES, *(f"--config.{name}={value}" for name, value in SMALL.items())]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What the command prints and writes of this machine."""
    folder = tmp_path_factory.mktemp("plan")
    file = folder / "out/plan.json"
    told = list[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("absl.logging.info", lambda message, *values: told.append(message % values))
        words = ["python", "-m", "tcl_jax.plan", *FLAGS, "--topology=local", f"--json={file}"]
        done = run_module(words, ROOT)
    assert done.code == 0, done.said
    assert "compiling local, phase 1 at 8 a chip ..." in told
    (written,) = json.loads(file.read_text())
    return done.said, written


def test_a_plan_for_this_machine_needs_no_weights(local: tuple[str, dict[str, Any]]) -> None:
    shown, written = local
    assert (written["kind"], written["devices"], written["batch"]) == ("cpu", 1, 8)
    first, second = written["steps"]
    assert (first["name"], second["name"]) == ("phase 1", "phase 2")
    assert (first["samples"], second["samples"]) == (80 * 8, 161 * 8)
    for step in written["steps"]:
        assert step["images"] == 8 and step["compiled"]["exchanged"] == []
        assert step["fits"] is step["mfu"] is step["days"] is None
    assert "local: 1 x cpu, global batch 8" in shown and "unknown" in shown


def test_figures_of_a_plan_agree_with_each_other(local: tuple[str, dict[str, Any]]) -> None:
    shown, written = local
    first, second = written["steps"]
    for step in written["steps"]:
        memory, executed = step["compiled"], step["executed"]
        # The decoder's convolutions take a part of the multiplications.
        assert 0.2 * step["method_flops"] < executed < step["method_flops"]
        assert step["method_flops"] == pytest.approx(8 * sum(step["parts"].values()))
        # One tile of texts, so that no loop hides anything; elementwise operations on top.
        assert executed < memory["flops"] < 1.4 * executed
        assert step["peak"] == (
            memory["arguments"] + memory["outputs"] - memory["aliased"] + memory["temporary"]
            + memory["program"]
        )  # fmt: skip
        assert f"{step['peak'] / 2**30:.4g}" in shown
    assert second["executed"] > first["executed"]
    assert second["compiled"]["temporary"] >= first["compiled"]["temporary"]
    # The state is donated.
    assert first["compiled"]["aliased"] > 0.9 * first["compiled"]["outputs"]


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed"
)
def test_tpus_are_compared_without_any(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    done = subprocess.run(
        [sys.executable, "-m", "tcl_jax.plan", *FLAGS, "--topology=v5e:2x2,v4:2x2x1",
         "--batch_per_chip=2", "--config.train.backbone_from_step=0", f"--json={file}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    v5e, v4 = json.loads(file.read_text())
    for found, kind, gibibytes in ((v5e, "TPU v5 lite", 16), (v4, "TPU v4", 32)):
        assert (found["kind"], found["devices"]) == (kind, 4)
        assert found["batch"] == 8 and found["chip"]["memory"] == gibibytes * 2**30
        (step,) = found["steps"]
        assert step["fits"] is True
        assert step["name"] == "phase 2" and 0 < step["mfu"] < 1 and step["bound"]
        assert step["peak"] < 2**30 and step["days"] > 0
        kinds = {kind["kind"]: kind for kind in step["compiled"]["exchanged"]}
        # Every learned parameter's gradient is summed over the chips, the texts are gathered.
        assert kinds["all-gather"]["bytes"] >= 8 * 16 * 2
        assert kinds["all-reduce"]["bytes"] > 4 * 9 * 64 * 64 * 2
        assert kinds["all-reduce"]["sent"] == pytest.approx(1.5 * kinds["all-reduce"]["bytes"])
    rows = {line[:30].strip(): line[30:].split() for line in done.stdout.splitlines()}
    assert rows["fits"] == ["yes", "yes"] and len(rows["MFU"]) == 2
    assert done.stdout.splitlines()[0].split() == ["v5e:2x2", "v4:2x2x1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config is needed"),
        ([TCL], "--topology"),
        ([TCL, "--topology=,"], "--topology"),
        ([TCL, "--topology=local", "--batch_per_chip=0"], "--batch_per_chip=0"),
        ([TCL, "--topolgy=local"], "topolgy"),
        ([TCL, "--topology=local", "--config.train.total_steps=0"], "train.total_steps=0"),
        ([*FLAGS, "--topology=local", "--config.train.accumulation_steps=3"], "does not divide"),
    ],
)
def test_mistakes_are_explained(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("compiled something")

    monkeypatch.setattr("tcl_jax.plan.plan.compile_program", fail)
    with pytest.raises(InputError, match=message):
        plan.run(arguments)
