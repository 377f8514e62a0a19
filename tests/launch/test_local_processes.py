"""launch/local_processes.sh: several processes, one that is killed, and a run that goes on."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tcl_jax.checkpoints.trained import read_trained
from tests.tiny import tiny_config, tiny_config_file

ROOT = Path(__file__).parent.parent.parent
SCRIPT = "launch/local_processes.sh"


def start(*arguments: str, flags: str = "") -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "XLA_FLAGS": flags,
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    return subprocess.Popen(
        ["bash", SCRIPT, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output = process.communicate(timeout=240)[0]
    return process.returncode, output


def run(*arguments: str, flags: str = "") -> tuple[int, str]:
    return finish(start(*arguments, flags=flags))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the first argument is the number of processes, not ''"),
        (["--config=configs/shapes.py"], "not '--config=configs/shapes.py'"),
        (["0"], "not '0'"),
        (["--devices=two", "2"], "--devices=two is not a number of devices"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], message: str) -> None:
    code, output = run(*arguments)
    assert code == 2 and message in output


def test_help_says_how_it_is_used() -> None:
    code, output = run("--help")
    assert code == 0 and output.startswith("usage: ") and "--dry-run prints" in output
    assert "set -euo" not in output


def test_dry_run_prints_commands_that_could_be_run() -> None:
    code, output = run("--devices=2", "--dry-run", "3", "--workdir=my runs")
    assert code == 0
    commands = [shlex.split(line) for line in output.splitlines()]
    assert [command[-2:] for command in commands] == [
        [f"--process_id={i}", "--workdir=my runs"] for i in range(3)
    ]
    assert {tuple(command[:-2]) for command in commands} == {
        (
            "JAX_PLATFORMS=cpu",
            "XLA_FLAGS=--xla_force_host_platform_device_count=2",
            sys.executable,
            *("-m", "tcl_jax.main"),
            commands[0][5],
            "--num_processes=3",
        )
    }
    assert re.fullmatch(r"--coordinator=localhost:\d+", commands[0][5])


def test_bad_input_ends_all_with_its_code(tmp_path: Path) -> None:
    code, output = run("2", "--config=configs/none.py", f"--workdir={tmp_path / 'run'}")
    assert code == 2
    assert re.search(r"^\[[01]\] .*configs/none.py", output, re.MULTILINE)
    assert "ended with code 2; stopping the others" in output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local")
    tiny_config(folder)
    return folder


def training(folder: Path, name: str) -> list[str]:
    """Two processes of two devices each, whose run is not judged."""
    return [
        *("--devices=2", "2", f"--config={tiny_config_file(folder)}"),
        f"--workdir={folder / name}",
        "--config.eval.tasks=()",
        "--config.eval.every=2",
        "--config.train.total_steps=12",
        "--config.train.backbone_from_step=6",
        "--config.train.checkpoint_every=2",
        "--config.train.log_every=1",
    ]


def checkpoint_from(step: int, process: subprocess.Popen[str], workdir: Path) -> None:
    """Returns once a checkpoint of this or a later step is there."""
    deadline = time.monotonic() + 120
    while not any(
        int(path.parent.name) >= step
        for path in (workdir / "checkpoints").glob("*/commit_success.txt")
        if path.parent.name.isdecimal()
    ):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)


def losses(workdir: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["train/total"] for row in rows}


@pytest.mark.slow
def test_one_is_killed_and_the_run_goes_on_to_the_same_bits(folder: Path) -> None:
    flags = os.environ["XLA_FLAGS"]
    code, output = run(*training(folder, "whole"), flags=flags)
    assert code == 0, output
    assert {line[:4] for line in output.splitlines()} == {"[0] ", "[1] "}

    broken = folder / "broken"
    process = start(*training(folder, "broken"), flags=flags)
    assert process.stdout is not None
    numbers = [re.fullmatch(r"\[(\d)\] this is process (\d+)\n", process.stdout.readline())
               for _ in range(2)]  # fmt: skip
    processes = {match[1]: int(match[2]) for match in numbers if match}
    assert sorted(processes) == ["0", "1"]
    checkpoint_from(4, process, broken)
    os.kill(processes["1"], signal.SIGKILL)
    code, output = finish(process)
    assert code == 128 + signal.SIGKILL
    assert "error: process 1 ended with code 137; stopping the others" in output
    with pytest.raises(ProcessLookupError):
        os.kill(processes["0"], 0)
    reached = max(losses(broken))
    assert 4 <= reached < 13

    code, output = run(*training(folder, "broken"), flags=flags)
    assert code == 0, output
    match = re.search(r"^\[0\] .*continuing from step (\d+)", output, re.MULTILINE)
    assert match is not None and 4 <= int(match[1]) <= reached
    assert losses(broken) == losses(folder / "whole") and len(losses(broken)) == 13
    ours, theirs = read_trained(broken), read_trained(folder / "whole")
    assert ours.step == theirs.step == 13
    assert jax.tree.structure(ours.params) == jax.tree.structure(theirs.params)
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


@pytest.mark.slow
def test_sigterm_lets_all_save(folder: Path) -> None:
    arguments = [*training(folder, "stopped"), "--config.train.total_steps=100000"]
    process = start(*arguments, flags=os.environ["XLA_FLAGS"])
    checkpoint_from(2, process, folder / "stopped")
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 0, output
    saved = re.search(r"^\[0\] .*saved at step (\d+)", output, re.MULTILINE)
    assert saved is not None
    assert read_trained(folder / "stopped").step == int(saved[1])
