"""launch/slurm.sbatch with stand-ins for srun, scancel and scontrol."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "launch" / "slurm.sbatch"
STAND_INS = {
    # Like srun it kills its task when it gets SIGTERM itself.
    "srun": """
echo srun "$@" >> "$CALLS"
trap 'kill -KILL "$(cat "$CALLS.task")"' TERM
bash -c "$MAIN" & echo $! > "$CALLS.part"
mv "$CALLS.part" "$CALLS.task"
wait $!
""",
    "scancel": 'echo scancel "$@" >> "$CALLS"\nkill -TERM "$(cat "$CALLS.task")"\n',
    "scontrol": 'echo scontrol "$@" >> "$CALLS"\n',
}
SAVES = """trap 'sleep 0.3; echo saved; exit 0' TERM; touch "$CALLS.ready"
for i in $(seq 1500); do sleep 0.02; done"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    for name, lines in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{lines}")
        (tmp_path / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "PYTHON": sys.executable,
        "SLURM_JOB_ID": "7",
        "SLURM_SUBMIT_DIR": str(ROOT),
    }


def start(environment: dict[str, str], folder: Path, *flags: str) -> subprocess.Popen[str]:
    """As SLURM does: a copy of the script, from somewhere else."""
    copy = folder / "slurm_script"
    copy.write_text(SCRIPT.read_text())
    return subprocess.Popen(
        ["bash", str(copy), *flags],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def calls(environment: dict[str, str]) -> list[list[str]]:
    return [shlex.split(line) for line in Path(environment["CALLS"]).read_text().splitlines()]


SRUN = ["srun", "--kill-on-bad-exit=1", "--label", sys.executable, "-m", "tcl_jax.main"]


def test_dry_run_prints_the_command(environment: dict[str, str]) -> None:
    environment = {**environment, "DRY_RUN": "1"}
    del environment["SLURM_JOB_ID"], environment["SLURM_SUBMIT_DIR"]
    command = ["bash", str(SCRIPT), "--workdir=my runs"]
    output = subprocess.check_output(command, env=environment, text=True)
    assert shlex.split(output) == [*SRUN, "--workdir=my runs"]
    assert not Path(environment["CALLS"]).exists()


@pytest.mark.parametrize("lacking", ["SLURM_JOB_ID", "PYTHON"])
def test_what_is_lacking_is_told(lacking: str, environment: dict[str, str], tmp_path: Path) -> None:
    environment["PYTHON"] = str(tmp_path / "none")
    if lacking == "SLURM_JOB_ID":
        del environment[lacking]
    process = start(environment, tmp_path)
    output = process.communicate()[0]
    advice = {"SLURM_JOB_ID": "sbatch launch/slurm.sbatch", "PYTHON": "launch/quickstart.sh"}
    assert process.returncode == 2 and advice[lacking] in output


@pytest.mark.parametrize("code", [0, 2, 137])
def test_exit_code_is_that_of_the_tasks(
    code: int, environment: dict[str, str], tmp_path: Path
) -> None:
    process = start({**environment, "MAIN": f"exit {code}"}, tmp_path, "--config=c")
    assert process.wait() == code
    assert calls(environment) == [[*SRUN, "--config=c"]]


def test_before_the_limit_it_saves_and_is_queued_again(
    environment: dict[str, str], tmp_path: Path
) -> None:
    process = start({**environment, "MAIN": SAVES}, tmp_path)
    while not all(Path(environment["CALLS"] + end).exists() for end in (".task", ".ready")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    output = process.communicate()[0]
    assert process.returncode == 0 and output.startswith("saved\n"), output
    assert calls(environment)[1:] == [
        ["scancel", "--signal=TERM", "7"],
        ["scontrol", "requeue", "7"],
    ]


def test_one_task_for_each_gpu() -> None:
    """As `jax.distributed` expects under SLURM: a task uses the GPU of its local number."""
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)", SCRIPT.read_text(), re.MULTILINE))
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert options["signal"].startswith("B:USR1@")
    assert not {"gpus-per-task", "gpu-bind"} & options.keys()


def test_help_says_how_it_is_used() -> None:
    done = subprocess.run(["bash", str(SCRIPT), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("Trains on the GPUs")
    assert "usage: sbatch" in done.stdout and "not yet on a cluster." in done.stdout
    assert "SBATCH" not in done.stdout and "set -euo" not in done.stdout
