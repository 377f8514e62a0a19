"""launch/local_processes.sh: what it starts, and how signals and failures reach all of it.

A real training by it is in tests/test_main.py.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def start(*arguments: str) -> subprocess.Popen[str]:
    python = os.environ.get("STAND_IN", sys.executable)
    return subprocess.Popen(
        ["bash", "launch/local_processes.sh", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHON": python, "XLA_FLAGS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output = process.communicate()[0]
    return process.returncode, output


def run(*arguments: str) -> tuple[int, str]:
    return finish(start(*arguments))


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


def start_and_wait(*arguments: str) -> tuple[subprocess.Popen[str], dict[str, int]]:
    """The script, and its processes' ids by their numbers."""
    process = start(*arguments)
    assert process.stdout is not None
    seen = "".join(process.stdout.readline() for _ in range(4))
    assert "[0] ready\n" in seen and "[1] ready\n" in seen
    found = re.findall(r"\[(\d)\] this is process (\d+)\n", seen)
    return process, {number: int(pid) for number, pid in found}


@pytest.mark.usefixtures("waiting")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_all_and_their_save_is_waited_for(number: signal.Signals) -> None:
    process, _ = start_and_wait("2")
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as from a terminal
    else:
        process.send_signal(number)
    code, output = finish(process)
    assert code == 0 and set(output.splitlines()) == {"[0] saved", "[1] saved"}


@pytest.mark.usefixtures("waiting")
def test_a_second_signal_kills() -> None:
    process, _ = start_and_wait("2", "--stubborn")
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    assert {process.stdout.readline() for _ in range(2)} == {"[0] saved\n", "[1] no\n"}
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 128 + signal.SIGKILL and "process 1 ended with code 137" in output


@pytest.mark.usefixtures("waiting")
def test_one_that_dies_ends_the_others() -> None:
    process, pids = start_and_wait("2")
    os.kill(pids["1"], signal.SIGKILL)
    code, output = finish(process)
    assert code == 128 + signal.SIGKILL and "[0] saved" in output
    assert "error: process 1 ended with code 137; stopping the others" in output
    with pytest.raises(ProcessLookupError):
        os.kill(pids["0"], 0)
