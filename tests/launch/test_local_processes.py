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
from tests.devices import free_port

ROOT = Path(__file__).parent.parent.parent
SCRIPT = "launch/local_processes.sh"


def start(*arguments: str, flags: str = "") -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PYTHON": os.environ.get("STAND_IN", sys.executable),
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
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output = process.communicate()[0]
    return process.returncode, output


def run(*arguments: str, flags: str = "") -> tuple[int, str]:
    return finish(start(*arguments, flags=flags))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "number of processes"),
        (["--config=configs/shapes.py"], "--config=configs/shapes.py"),
        (["--devices=two", "2"], "--devices=two"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], message: str) -> None:
    code, output = run(*arguments)
    assert code == 2 and message in output


def test_help_says_how_it_is_used() -> None:
    code, output = run("--help")
    assert code == 0 and "usage: bash launch/local" in output and "--dry-run prints" in output
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


def training(folder: Path, name: str) -> list[str]:
    """Two processes of two devices that train a CLIP for seven steps and do not judge it."""
    config = folder / "tiny_run.py"
    config.write_text(
        "from tests.tiny import tiny_clip_config\n\n\ndef get_config():\n"
        "    return tiny_clip_config().unlock()\n"
    )
    return [
        *("--devices=2", "2", f"--config={config}"),
        f"--workdir={folder / name}",
        "--config.eval.tasks=()",
        "--config.eval.every=2",
        "--config.train.total_steps=6",
        "--config.train.checkpoint_every=2",
        "--config.train.log_every=1",
    ]


def checkpoint_from(step: int, process: subprocess.Popen[str], workdir: Path) -> None:
    """Returns once a checkpoint of this or a later step is there."""
    while not any(
        int(path.parent.name) >= step
        for path in (workdir / "checkpoints").glob("*/commit_success.txt")
        if path.parent.name.isdecimal()
    ):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def losses(workdir: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["train/total"] for row in rows}


STAND_IN = """#!/bin/sh
case "$*" in *socket*) exec {python} "$@" ;; esac
trap 'sleep 0.5; echo saved; exit 0' TERM
case "$*" in *--process_id=1*--stubborn*) trap 'echo no' TERM ;; esac
echo ready
for i in $(seq 600); do sleep 0.05; done
"""


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of Python a script that waits for SIGTERM and takes its time to save."""
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN.format(python=sys.executable))
    stand_in.chmod(0o755)
    monkeypatch.setenv("STAND_IN", str(stand_in))


def start_and_wait(*arguments: str) -> subprocess.Popen[str]:
    process = start(*arguments)
    assert process.stdout is not None
    seen = {process.stdout.readline() for _ in range(4)}
    assert {"[0] ready\n", "[1] ready\n"} < seen
    return process


@pytest.mark.usefixtures("waiting")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_all_and_their_save_is_waited_for(number: signal.Signals) -> None:
    process = start_and_wait("2")
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as from a terminal
    else:
        process.send_signal(number)
    code, output = finish(process)
    assert code == 0 and set(output.splitlines()) == {"[0] saved", "[1] saved"}


@pytest.mark.usefixtures("waiting")
def test_a_second_signal_kills() -> None:
    process = start_and_wait("2", "--stubborn")
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    assert {process.stdout.readline() for _ in range(2)} == {"[0] saved\n", "[1] no\n"}
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 128 + signal.SIGKILL and "process 1 ended with code 137" in output


@pytest.mark.slow
def test_one_is_killed_and_the_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    free_port()  # or the processes cannot connect
    flags = os.environ["XLA_FLAGS"]
    code, output = run(*training(tmp_path, "whole"), flags=flags)
    assert code == 0, output
    assert {line[:4] for line in output.splitlines()} == {"[0] ", "[1] "}

    broken = tmp_path / "broken"
    process = start(*training(tmp_path, "broken"), flags=flags)
    assert process.stdout is not None
    numbers = [re.fullmatch(r"\[(\d)\] this is process (\d+)\n", process.stdout.readline())
               for _ in range(2)]  # fmt: skip
    processes = {match[1]: int(match[2]) for match in numbers if match}
    assert sorted(processes) == ["0", "1"]
    checkpoint_from(2, process, broken)
    os.kill(processes["1"], signal.SIGKILL)
    code, output = finish(process)
    assert code == 128 + signal.SIGKILL
    assert "error: process 1 ended with code 137; stopping the others" in output
    with pytest.raises(ProcessLookupError):
        os.kill(processes["0"], 0)
    reached = max(losses(broken))
    assert 2 <= reached < 7

    code, output = run(*training(tmp_path, "broken"), flags=flags)
    assert code == 0, output
    match = re.search(r"^\[0\] .*continuing from step (\d+)", output, re.MULTILINE)
    assert match is not None and 2 <= int(match[1]) <= reached
    assert losses(broken) == losses(tmp_path / "whole") and len(losses(broken)) == 7
    ours, theirs = read_trained(broken), read_trained(tmp_path / "whole")
    assert ours.step == theirs.step == 7
    assert jax.tree.structure(ours.params) == jax.tree.structure(theirs.params)
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
