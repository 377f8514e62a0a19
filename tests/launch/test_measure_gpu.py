"""launch/measure_gpu.sh: on a CPU, without many packages, and with a stand-in for Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from tests.tiny import tiny_config_file

ROOT = Path(__file__).parent.parent.parent
BLOCKED = (
    "grain", "tensorflow_datasets", "clu", "gradio", "cv2", "tensorboardX", "importlib_resources",
    "ftfy",
)  # fmt: skip
PARTS = ["train", "masks", "trace", "evaluate", "remat_blocks", "remat_activations"]


def measure(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the script."""
    return subprocess.run(
        ["bash", str(ROOT / "launch/measure_gpu.sh"), *flags],
        env={
            **os.environ,
            "PYTHON": sys.executable,
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
            **environment,
        },
        capture_output=True,
        text=True,
    )


@pytest.fixture
def lean(tmp_path: Path) -> dict[str, str]:
    """An environment in which the modules cannot be imported."""
    (tmp_path / "site").mkdir()
    code = f"import sys\nfor name in {BLOCKED}:\n    sys.modules[name] = None\n"
    (tmp_path / "site/sitecustomize.py").write_text(code)
    return {"PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"}


@pytest.mark.slow
def test_steps_and_masks_need_few_packages(lean: dict[str, str], tmp_path: Path) -> None:
    sizes = ["--dtype=float32", "--batch_sizes=2", "--window=32", "--parts=masks,trace"]
    done = measure(f"--config={tiny_config_file(tmp_path)}", *sizes, str(tmp_path / "out"), **lean)
    assert done.returncode == 0, done.stdout + done.stderr
    masks, trace = (
        json.loads((tmp_path / f"out/{name}.json").read_text()) for name in ("masks", "trace")
    )
    cases = [(row["classes"], row["pamr"]) for row in masks["masks"]]
    assert cases == [(20, False), (20, True), (150, False), (150, True)]
    assert masks["load"] == trace["load"], "what it was before the first part"
    assert (trace["steps"][0]["phase"], trace["steps"][0]["batch_size"]) == (2, 2)
    assert sum(row["time_share"] for row in trace["time_by_kind"]) == pytest.approx(1)
    assert "masks: done in" in (tmp_path / "out/parts.txt").read_text()


@pytest.mark.slow
def test_segmenting_needs_few_packages(lean: dict[str, str]) -> None:
    code = """
import numpy as np
from tcl_jax import Segmenter
segmenter = Segmenter.from_torch(clip="builtin:shapes_clip")
side = segmenter.settings.window
result = segmenter.segment(np.zeros((side, side, 3), np.uint8), ["plain red", "striped blue"])
assert result.labels.shape == (side, side)
"""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **lean}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def stand_in(tmp_path: Path) -> dict[str, str]:
    """A Python that notes what of bench it is to run, as the code says it ends."""
    python = tmp_path / "python"
    python.write_text(
        '#!/usr/bin/env bash\nif [ "$1" = -m ]; then echo "$@" >>"$CALLS"; eval "$ENDS"; else '
        'echo "$LACKS"; fi\n'
    )
    python.chmod(0o755)
    return {"PYTHON": str(python), "CALLS": str(tmp_path / "calls"), "ENDS": "", "LACKS": ""}


def test_parts_come_in_order_and_the_official_code_where_it_is_given(
    stand_in: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert measure(OUT=str(out), **stand_in).returncode == 0
    done = (out / "parts.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in done] == PARTS
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    assert {"--batch_sizes=64,256", "--dtype=bfloat16", "--config=configs/tcl.py"} <= {*calls[0]}
    assert {"--windows=448", "--classes=20,150"} <= {*calls[1]} and "--trace" in calls[2]
    assert "--config.train.remat=blocks" in calls[4] and f"--json={out}/train.json" in calls[0]
    more = measure("--against=../tcl", "--parts=masks,against_train", str(out), **stand_in)
    assert more.returncode == 0 and "--against=../tcl" in (tmp_path / "calls").read_text()
    assert [line.split(":")[0] for line in (out / "parts.txt").read_text().splitlines()] == [
        "masks", "against_train",
    ]  # fmt: skip


def test_parts_that_fail_or_that_time_does_not_reach(
    stand_in: dict[str, str], tmp_path: Path
) -> None:
    # As `timeout` ends what takes too long.
    stand_in["ENDS"] = "[ $(wc -l <$CALLS) = 1 ] && exit 1; exit 124"
    done = measure(str(tmp_path / "out"), **stand_in)
    noted = (tmp_path / "out/parts.txt").read_text().splitlines()
    assert done.returncode == 1 and noted[0].startswith("train: failed with exit code 1")
    assert noted[1].startswith("masks: stopped")
    measure("--seconds=9", str(tmp_path / "out"), **stand_in)
    assert (tmp_path / "out/parts.txt").read_text().startswith("train: skipped")


def test_mistakes_and_missing_packages_are_told(stand_in: dict[str, str], tmp_path: Path) -> None:
    for flag in ("--batch=2", "--seconds=x", "--wheels=nowhere", "--parts=train,trian"):
        done = measure(flag, str(tmp_path / "out"), **stand_in)
        assert done.returncode == 2 and flag in done.stderr
    stand_in["LACKS"] = "flax PyYAML"
    done = measure(str(tmp_path / "out"), **stand_in)
    assert done.returncode == 2 and "pip download" in done.stderr
    assert "missing for" in done.stderr and "flax PyYAML" in done.stderr
    (tmp_path / "wheels").mkdir()
    done = measure(f"--wheels={tmp_path}/wheels", str(tmp_path / "out"), **stand_in)
    assert done.returncode == 2 and "flax PyYAML" in done.stderr
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert "pip install" in call and "--no-index --no-deps" in call and "flax PyYAML" in call
