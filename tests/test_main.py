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
        "train.backbone_from_step": 6,
        "train.log_every": 1,
        "train.checkpoint_every": 1,
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


MISTAKES = [
    ([], "--config and --workdir are needed"),
    (["--config=configs/none.py"], "configs/none.py"),
    (["--confg=configs/shapes.py"], "confg"),
    (["--config=configs/shapes.py", "--workdir=W", "train"], "are not flags"),
    (
        ["--config=configs/shapes.py", "--workdir=W", "--config.train.totl_steps=3"],
        "totl_steps",
    ),
    (
        ["--config=configs/tcl.py", "--workdir=W"],
        "CLIP ViT-B/16 could not be downloaded from the Hugging Face hub",
    ),
]
MISTAKES_FOUND_LATE = [
    (
        ["--config=configs/shapes.py", "--workdir=W", "--config.train.total_steps=0"],
        "train.total_steps=0 must be positive",
    ),
    (
        ["--config=configs/shapes.py", "--workdir=W", "--config.model.sizes.text_width=128"],
        "model.sizes.text_width=128, and the weights have 64",
    ),
    (
        ["--config=configs/shapes.py", "--workdir=W", "--config.train.accumulation_steps=3"],
        "train.global_batch_size=32 does not divide",
    ),
    (
        ["--config=configs/shapes.py", "--workdir=setup.py"],
        "is a file; choose another directory",
    ),
    (
        ["--config=configs/shapes.py", "--workdir=gs://bucket/run"],
        "workdir 'gs://bucket/run' is an address, and a folder is needed",
    ),
]
"""After what takes seconds to import, which is why one process answers them all."""


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes_are_explained(arguments: list[str], message: str, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    result = run(*(a.replace("--workdir=W", f"--workdir={workdir}") for a in arguments))
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not workdir.exists()


@pytest.mark.parametrize(("arguments", "message"), MISTAKES_FOUND_LATE)
def test_mistakes_found_late_are_explained(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    kept = [a.replace("--workdir=W", f"--workdir={workdir}") for a in arguments]
    done = run_module(["python", "-m", "tcl_jax.main", *kept], ROOT)
    assert done.code == 2, done.said
    assert message in done.said
    assert "Traceback" not in done.said
    assert not workdir.exists()


def test_a_mistake_of_one_process_ends_all(tmp_path: Path) -> None:
    flags = [f"--coordinator=localhost:{free_port()}", "--num_processes=2"]
    weights = ["builtin:shapes_clip", str(tmp_path / "none.safetensors")]
    processes = [
        subprocess.Popen(
            command(
                *("--config=configs/shapes.py", f"--workdir={tmp_path / 'run'}", *flags),
                *(f"--process_id={index}", f"--config.model.weights={weights[index]}"),
            ),
            cwd=ROOT,
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], errors
    assert "error: process 1 reports: weights" in errors[0] and "none.safetensors" in errors[0]
    assert "error: weights" in errors[1] and not any("Traceback" in error for error in errors)
    assert not (tmp_path / "run").exists()


def losses(workdir: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["train/total"] for row in rows if "train/total" in row}


def stop_at(step: int, number: signal.Signals, arguments: list[str], workdir: Path) -> int:
    """Starts the run, sends the signal once the step is logged, and returns the exit code."""
    with (workdir.parent / "log").open("w") as log:
        process = subprocess.Popen(
            command(*arguments), cwd=ROOT, env=quick(), stderr=log, stdout=log
        )
    deadline = time.time() + 240
    while process.poll() is None and time.time() < deadline:
        if (workdir / "metrics.jsonl").exists() and max(losses(workdir), default=0) >= step:
            process.send_signal(number)
            break
        time.sleep(0.02)
    return process.wait(timeout=120)


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


def test_stopped_killed_and_continued_equals_uninterrupted(whole: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    arguments = small(tmp_path, parts)
    assert stop_at(3, signal.SIGTERM, arguments, parts) == 0
    assert "saved at step" in (tmp_path / "log").read_text()
    assert not (parts / "results.json").exists()
    assert stop_at(7, signal.SIGKILL, arguments, parts) == -signal.SIGKILL
    run_quick(*arguments)
    assert losses(parts) == losses(whole)
    assert (parts / "results.json").read_text() == (whole / "results.json").read_text()


def test_two_processes_train_as_one_does(whole: Path, tmp_path: Path) -> None:
    """Interrupted as two processes of two devices and continued as one of two: the same run."""
    shared, unjudged = tmp_path / "shared", "--config.eval.tasks=()"
    flags = [f"--coordinator=localhost:{free_port()}", "--num_processes=2"]
    processes = [
        subprocess.Popen(
            command(*small(tmp_path, shared, unjudged, *flags, f"--process_id={index}")),
            cwd=ROOT,
            env=quick(devices=2),
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    deadline = time.monotonic() + 240
    while not any((shared / "checkpoints").glob("[3-9]")):
        assert time.monotonic() < deadline
        assert [p.poll() for p in processes] == [None, None], [p.communicate() for p in processes]
        time.sleep(0.2)
    processes[1].send_signal(signal.SIGTERM)
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert "the same command goes on" in errors[0]
    run_quick(*small(tmp_path, shared, unjudged), devices=2)
    ours, theirs = losses(shared), losses(whole)
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose([ours[step] for step in theirs], list(theirs.values()), rtol=1e-3)
