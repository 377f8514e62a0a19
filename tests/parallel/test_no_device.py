"""A machine whose accelerator JAX cannot use: every command says that, and blames no file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from tcl_jax.checkpoints.model import write_model
from tests.in_process import run_module

ROOT = Path(__file__).parent.parent.parent
COMMANDS = (
    "segment --checkpoint={model} --image=README.md --text=cat --output={out}",
    "evaluate --checkpoint={model} --output={out}",
    "convert inspect {model}",
    "convert clip builtin:shapes_clip {out}",
    "export --checkpoint={model} --output={out}",
    "demo --checkpoint={model}",
    "main --config=configs/shapes.py --workdir={out}",
    "embed_captions --config=configs/shapes.py --config.model.variant=ViT-B/16",
    "plan --config=configs/shapes.py --topology=local",
    "bench train --config=configs/shapes.py",
    "bench masks --config=configs/shapes_clip.py",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_busy_accelerator_is_told(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object) -> None:
        raise RuntimeError("Unable to initialize backend 'tpu': in use by process 77")

    model = tmp_path / "model"
    write_model(model, {"clip": {"x": jax.numpy.zeros(3)}}, {})
    monkeypatch.setattr(jax, "devices", busy)
    words = command.format(model=model, out=tmp_path / "out").split()
    done = run_module([sys.executable, "-m", f"tcl_jax.{words[0]}", *words[1:]], ROOT)
    assert (done.code, "in use by process 77" in done.said) == (1, True), done.said
    assert "Traceback" not in done.said
    assert not (tmp_path / "out").exists()


def test_a_platform_that_is_not_there() -> None:
    words = [sys.executable, "-m", "tcl_jax.convert", "clip", "builtin:shapes_clip", "nowhere"]
    environment = {**os.environ, "JAX_PLATFORMS": "tpu", "TPU_SKIP_MDS_QUERY": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "JAX_PLATFORMS='tpu'" in done.stderr
    assert "Traceback" not in done.stderr
