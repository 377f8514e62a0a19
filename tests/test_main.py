"""The command as a user meets it: help, mistakes, interruption, and a whole small run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from huggingface_hub import constants

from tests.devices import free_port
from tests.in_process import Done, run_module
from tests.tiny import tiny_config

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def run(*arguments: str) -> Done:
    """In this process."""
    return run_module(["python", "-m", "tcl_jax.main", *arguments], ROOT)


def train(*arguments: str) -> None:
    done = run(*arguments)
    assert done.code == 0 and "Traceback" not in done.said, done.said


def start(*words: str) -> subprocess.Popen[str]:
    """A process that compiles as tests do (tests/conftest.py), and what they have not compiled."""
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    }
    return subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


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
    done = run("--help")
    assert done.code == 0 and "--workdir" in done.said and "--config" in done.said


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
        (["--config=configs/pairs_clip.py", "--workdir=W"], "no tar shards were given"),
        ([SHAPES, "--workdir=gs://bucket/run"], "workdir 'gs://bucket/run' is an address"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], message: str, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    kept = [a.replace("--workdir=W", f"--workdir={workdir}") for a in arguments]
    done = run(*kept)
    assert done.code == 2, done.said
    assert message in done.said and "Traceback" not in done.said
    assert not workdir.exists()


def test_weights_that_cannot_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    drawn = "--config.data.source=shapes"  # which are there
    done = run("--config=configs/tcl.py", f"--workdir={tmp_path / 'run'}", drawn)
    assert done.code == 2 and "Traceback" not in done.said
    assert "CLIP ViT-B/16 could not be downloaded" in done.said
    assert not (tmp_path / "run").exists()


def losses(workdir: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["train/total"] for row in rows if "train/total" in row}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work directory of a run that nobody stopped, without a process that reads for it."""
    folder = tmp_path_factory.mktemp("whole")
    train(*small(folder, folder / "run", "--config.data.num_workers=0"))
    return folder / "run"


def test_a_whole_run(whole: Path) -> None:
    results = json.loads((whole / "results.json").read_text())
    scores = {"miou", "miou_unseen", "boundary", "threshold"}
    assert set(results["clip"]) == {*scores, "retrieval_at_1"}
    assert set(results["clip+pamr"]) == set(results["tcl"]) == set(results["tcl+pamr"]) == scores
    for name in ("shapes.png", "scene.png"):
        assert (whole / name).read_bytes().startswith(b"\x89PNG")
    assert not list(whole.glob(".*"))
    assert max(losses(whole)) == 13 and np.isfinite(list(losses(whole).values())).all()


def wait_until(done: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not done():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_killed_and_continued_equals_uninterrupted(whole: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    arguments = small(tmp_path, parts)
    process = start(sys.executable, "-m", "tcl_jax.main", *arguments)
    log = parts / "metrics.jsonl"
    wait_until(lambda: log.exists() and max(losses(parts), default=0) >= 7, process)
    process.kill()
    process.communicate()
    assert not (parts / "results.json").exists()
    train(*arguments)
    assert losses(parts) == losses(whole)
    assert (parts / "results.json").read_text() == (whole / "results.json").read_text()


def test_two_processes_train_as_one_does(whole: Path, tmp_path: Path) -> None:
    """Stopped as two processes of two devices and continued as one of one: the same run."""
    free_port()  # or the processes cannot connect
    shared = tmp_path / "shared"
    arguments = small(tmp_path, shared, "--config.eval.tasks=()", "--config.data.num_workers=0")
    process = start("bash", "launch/local_processes.sh", "--devices=2", "2", *arguments)
    wait_until(lambda: any((shared / "checkpoints").glob("[3-9]")), process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and "the same command goes on" in output, output
    train(*arguments)
    ours, theirs = losses(shared), losses(whole)
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose([ours[step] for step in theirs], list(theirs.values()), rtol=1e-3)
