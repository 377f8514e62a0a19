"""The command as a user meets it: help, mistakes, interruption, and a whole small run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.devices import free_port
from tests.in_process import run_module
from tests.tiny import tiny_config

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tcl_jax.main", *arguments]


def environment(devices: int = 1) -> dict[str, str]:
    """Compiled as for users, and with nothing to download."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "HF_HUB_OFFLINE": "1"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


def small(folder: Path, workdir: Path, *more: str) -> list[str]:
    """Arguments of a run of 13 steps on a random CLIP of the test's size."""
    config = tiny_config(folder)
    fields = {
        "model.weights": config.model.weights,
        "data.num_examples": 100,
        "data.num_workers": 1,
        "train.global_batch_size": 8,
        "train.total_steps": 12,
        "train.backbone_from_step": 100,  # one program to compile
        "train.log_every": 1,
        "train.checkpoint_every": 2,
        "train.keep_latest": 3,
        "eval.every": 6,
        "eval.num_scenes": 128,
    }
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    return ["--config=configs/shapes.py", f"--workdir={workdir}", *overrides, *more]


def test_help_names_the_flags() -> None:
    result = run("--help")
    assert result.returncode == 0, result.stderr
    assert "--workdir" in result.stdout and "--config" in result.stdout


SHAPES = "--config=configs/shapes.py"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config and --workdir are needed"),
        (["--config=configs/none.py"], "configs/none.py"),
        ([SHAPES, "--workdir=W", "--config.train.totl_steps=3"], "totl_steps"),
        ([SHAPES, "--workdir=W", "--config.train.total_steps=0"], "train.total_steps=0"),
        ([SHAPES, "--workdir=W", "--config.model.sizes.text_width=128"], "text_width=128"),
        ([SHAPES, "--workdir=W", "--config.train.accumulation_steps=3"], "global_batch_size=32"),
        ([SHAPES, "--workdir=setup.py"], "is a file; choose another directory"),
        ([SHAPES, "--workdir=gs://bucket/run"], "workdir 'gs://bucket/run' is an address"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], message: str, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    kept = [a.replace("--workdir=W", f"--workdir={workdir}") for a in arguments]
    done = run_module(["python", "-m", "tcl_jax.main", *kept], ROOT)
    assert done.code == 2, done.said
    assert message in done.said and "Traceback" not in done.said
    assert not workdir.exists()


def test_weights_that_cannot_be_downloaded(tmp_path: Path) -> None:
    result = run("--config=configs/tcl.py", f"--workdir={tmp_path / 'run'}")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "CLIP ViT-B/16 could not be downloaded" in result.stderr
    assert not (tmp_path / "run").exists()


def losses(workdir: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["train/total"] for row in rows if "train/total" in row}


def quick(devices: int = 1) -> dict[str, str]:
    """Compiled as tests are (tests/conftest.py), and what is the same only once."""
    count = environment(devices)["XLA_FLAGS"]
    return {
        **environment(devices),
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {count}",
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }


def run_quick(*arguments: str, devices: int = 1) -> str:
    done = subprocess.run(
        command(*arguments), cwd=ROOT, env=quick(devices), capture_output=True, text=True
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work directory of a run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    run_quick(*small(folder, folder / "run"))
    return folder / "run"


def test_a_whole_run(whole: Path) -> None:
    results = json.loads((whole / "results.json").read_text())
    assert set(results["clip"]) == {"miou", "miou_unseen", "retrieval_at_1"}
    assert set(results["tcl"]) == {"miou", "miou_unseen"}
    for name in ("shapes.png", "scene.png"):
        assert (whole / name).read_bytes().startswith(b"\x89PNG")
    assert not list(whole.glob(".*"))
    assert max(losses(whole)) == 13 and np.isfinite(list(losses(whole).values())).all()


def kill_at(step: int, arguments: list[str], workdir: Path) -> None:
    """Starts the run and kills it once the step is logged."""
    process = subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        env=quick(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    deadline = time.monotonic() + 240
    while not (workdir / "metrics.jsonl").exists() or max(losses(workdir), default=0) < step:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()


def test_killed_and_continued_equals_uninterrupted(whole: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    arguments = small(tmp_path, parts)
    kill_at(7, arguments, parts)
    assert not (parts / "results.json").exists()
    run_quick(*arguments)
    assert losses(parts) == losses(whole)
    assert (parts / "results.json").read_text() == (whole / "results.json").read_text()


def test_two_processes_train_as_one_does(whole: Path, tmp_path: Path) -> None:
    """Stopped as two processes of two devices and continued as one of two: the same run."""
    free_port()  # or the processes cannot connect
    shared = tmp_path / "shared"
    more = ("--config.eval.tasks=()", "--config.data.num_workers=0")
    process = subprocess.Popen(
        ["bash", "launch/local_processes.sh", "--devices=2", "2", *small(tmp_path, shared, *more)],
        cwd=ROOT,
        env={**quick(), "PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 240
    while not any((shared / "checkpoints").glob("[3-9]")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and "the same command goes on" in output, output
    run_quick(*small(tmp_path, shared, *more), devices=2)
    ours, theirs = losses(shared), losses(whole)
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose([ours[step] for step in theirs], list(theirs.values()), rtol=1e-3)
