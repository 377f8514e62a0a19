"""launch/tpu_vm.sh with a stand-in for gcloud whose hosts are folders of this machine."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MAIN = """#!/usr/bin/env bash
host="$(basename ~)"
echo "$*" >> "$FAKE/started.$host"
plan="$(head -1 "$FAKE/main.$host")"
sed -i 1d "$FAKE/main.$host"
echo "this is main on $host"
case "$plan" in
wait) trap 'echo saved; exit 0' TERM ;;
slow) trap 'sleep 1; echo saved; exit 0' TERM ;;
*) exit "$plan" ;;
esac
for i in $(seq 1500); do sleep 0.02; done
"""
FLAGS = ("--", "--config=configs/tcl.py", "--workdir=bucket/my runs")


class Cloud:
    """What the stand-in is told, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "cloud"
        (folder / "bin").mkdir()
        self.folder.mkdir()
        (folder / "bin" / "gcloud").symlink_to(ROOT / "tests" / "launch" / "fake_gcloud.sh")
        self.file("main", MAIN).chmod(0o755)
        self.file("calls", "")
        self.environment = {
            **os.environ,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "FAKE": str(self.folder),
            "CHECKOUT": str(ROOT),
        }

    def file(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def plan(self, lives: list[str], host0: list[str], host1: list[str]) -> None:
        for name, lines in (("lives", lives), ("main.host0", host0), ("main.host1", host1)):
            self.file(name, "".join(f"{line}\n" for line in lines))

    @contextmanager
    def begun(self, command: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """The script as it runs, in a session of its own; it ends with the block."""
        with subprocess.Popen(
            ["bash", "launch/tpu_vm.sh", command, "--name=tcl", "--poll=0", *arguments],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, command: str, *arguments: str) -> tuple[int, str]:
        with self.begun(command, *arguments) as process:
            output, _ = process.communicate()
        return process.returncode, output

    def calls(self) -> list[list[str]]:
        lines = (self.folder / "calls").read_text().splitlines()
        return [call for call in map(shlex.split, lines) if call[0] != "config"]

    def verbs(self) -> list[str]:
        """What was asked for besides how things are."""
        verbs = [call[3] for call in self.calls()]
        commands = [call[6] if call[3] == "ssh" else "" for call in self.calls()]
        asked = [
            verb if not command else command.split("tpu_host.sh ")[-1].split()[0]
            for verb, command in zip(verbs, commands, strict=True)
        ]
        return [verb for verb in asked if verb not in ("describe", "status")]

    def started(self, host: str) -> list[str]:
        return (self.folder / f"started.{host}").read_text().splitlines()


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    cloud = Cloud(tmp_path)
    yield cloud
    cloud.run("delete")


def eventually(cloud: Cloud, wanted: str) -> str:
    end = time.monotonic() + 120
    while (output := cloud.run("status")[1]).count(wanted) < 2:
        assert time.monotonic() < end, output
        time.sleep(0.05)
    return output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name=tcl"], "no command"),
        (["fly", "--name=tcl"], "fly"),
        (["create", "--name=My_TPU"], "'My_TPU'"),
        (["create", "--name=tcl", "--typo=3"], "--typo=3"),
        (["create", "train", "--name=tcl"], "create and train"),
        (["run", "--name=tcl", "--poll=soon"], "--poll"),
        (["run", "--name=tcl"], "--config=FILE --workdir=FOLDER"),
        (["train", "--name=tcl", "--", "--config=c", "--workdir=gs://b/w"], "gs://"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], message: str) -> None:
    command = ["bash", "launch/tpu_vm.sh", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr and done.stdout == ""


@pytest.mark.parametrize("unset", ["project", "zone"])
def test_project_and_zone_are_needed(cloud: Cloud, unset: str) -> None:
    cloud.environment[f"FAKE_{unset.upper()}"] = ""
    code, output = cloud.run("create")
    assert code == 2 and f"no {unset}: give --{unset}=" in output
    assert cloud.calls() == []


def test_dry_run_prints_the_commands_and_runs_none(cloud: Cloud) -> None:
    options = ["--dry-run", "--zone=z", "--project=p", "--spot", "--queued", "--bucket=runs"]
    code, output = cloud.run("run", *options, *FLAGS)
    assert code == 0 and cloud.calls() == []
    commands = [shlex.split(line) for line in output.splitlines() if "left out" not in line]
    assert [command[:5] for command in commands if command[0] == "gcloud"] == [
        ["gcloud", "compute", "tpus", "queued-resources", "create"],
        ["gcloud", "compute", "tpus", "tpu-vm", "scp"],
        ["gcloud", "compute", "tpus", "tpu-vm", "ssh"],
        ["gcloud", "compute", "tpus", "tpu-vm", "ssh"],
    ]
    assert {"--node-id=tcl", "--spot", "--zone=z", "--project=p"} < set(commands[0])
    assert commands[1][:2] == ["git", "archive"]
    installed, started = (command[7].removeprefix("--command=") for command in commands[3:])
    assert installed.endswith("tpu_host.sh install runs")
    assert shlex.split(started)[2:] == ["start", *FLAGS[1:]]


def test_queued_resource_is_waited_for_and_asked_for_again(cloud: Cloud) -> None:
    lives = ["WAITING_FOR_RESOURCES PROVISIONING ACTIVE ACTIVE SUSPENDED", "ACTIVE"]
    cloud.plan(lives, ["wait", "0"], ["wait", "0"])
    code, output = cloud.run("run", "--queued", "--spot", *FLAGS)
    assert code == 0 and output.count("is not ready yet") == 2, output
    once = ["create", "scp", "install", "start"]
    assert cloud.verbs() == [*once, "delete", *once]
    changes = [call for call in cloud.calls() if call[3] in ("create", "delete")]
    assert {call[2] for call in changes} == {"queued-resources"}
    assert "--force" in changes[1]


def test_capacity_is_asked_for_again_only_while_running(cloud: Cloud) -> None:
    cloud.plan(["READY"], ["0"], ["0"])
    cloud.file("refusals", "no\n")
    code, output = cloud.run("create")
    assert code == 1 and "no more capacity" in output and "tcl could not be made" in output
    cloud.file("refusals", "no\nno\n")
    assert cloud.run("run", "--restarts=1", *FLAGS)[0] == 1


def test_preempted_it_is_asked_for_until_it_is_there_and_goes_on(cloud: Cloud) -> None:
    lives = ["CREATING READY READY PREEMPTED DENIED PREEMPTED", "READY"]
    cloud.plan(lives, ["wait", "0"], ["wait", "0"])
    cloud.file("refusals", "\n" + "no\n" * 3)
    code, output = cloud.run("run", "--restarts=1", "--delete-after", *FLAGS)
    assert code == 0 and "the training has ended" in output, output
    assert output.count("tcl could not be made; trying again in 0 s") == 3
    assert output.count("gcloud could not say how tcl is; asking again in 0 s") == 1
    once = ["create", "scp", "install", "start"]
    assert cloud.verbs() == [*once, "delete", *["create"] * 3, *once, "delete"]
    command = "-m tcl_jax.main --config=configs/tcl.py --workdir=bucket/my runs"
    assert cloud.started("host0") == cloud.started("host1") == [command] * 2
    first, *others = [call for call in cloud.calls() if call[3] == "create"]
    assert others == [first] * 4
    assert {"--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite"} < set(first)
    assert {"--zone=zone", "--project=project"} < set(first) and "--spot" not in first


def test_ctrl_c_ends_the_waiting(cloud: Cloud) -> None:
    """Also where gcloud answers it with a failure like any other, which would be tried again."""
    cloud.file("refusals", "slow\n" * 9)
    with cloud.begun("run", "--poll=60", *FLAGS) as process:
        assert process.stdout is not None
        assert any("Create request issued" in line for line in process.stdout)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(20) == 130
    assert cloud.verbs() == ["create"]


def test_what_gcloud_cannot_say_is_no_absence(cloud: Cloud) -> None:
    cloud.file("answers", "DENIED\n")
    code, output = cloud.run("create")
    assert code == 1 and "PERMISSION_DENIED: you may not" in output
    assert cloud.verbs() == []


def test_failure_on_one_host_starts_all_again(cloud: Cloud) -> None:
    cloud.plan(["READY"], ["wait", "0"], ["1", "0"])
    code, output = cloud.run("run", *FLAGS)
    assert code == 0 and "main failed on a host (code 1)" in output, output
    assert cloud.verbs() == ["create", *["scp", "install", "start"] * 2]
    assert len(cloud.started("host0")) == len(cloud.started("host1")) == 2
    log = (cloud.folder / "host0" / "tcl_jax_main.log").read_text().splitlines()
    assert log == ["this is main on host0", "saved", "this is main on host0"]


@pytest.mark.parametrize(
    ("failure", "starts", "message"),
    [(1, 2, "main failed 2 times"), (2, 1, "main refused its input")],
)
def test_failures_are_not_repeated_for_ever_and_bad_input_never(
    cloud: Cloud, failure: int, starts: int, message: str
) -> None:
    cloud.plan(["READY"], [str(failure)] * 9, [str(failure)] * 9)
    code, output = cloud.run("run", "--restarts=1", *FLAGS)
    assert code == failure and message in output
    assert len(cloud.started("host0")) == starts


def test_a_host_that_does_not_answer_is_asked_again(cloud: Cloud) -> None:
    cloud.plan(["READY"], ["0"], ["0"])
    silent = cloud.file("silent.host1", "no\nno\n")
    code, output = cloud.run("run", "--delete-after", *FLAGS)
    assert code == 0 and "the training has ended" in output, output
    assert silent.read_text() == ""  # not before it had answered
    assert cloud.verbs() == ["create", "scp", "install", "start", "delete"]


def test_step_by_step(cloud: Cloud) -> None:
    """main goes on when the command that started it has ended, and stop lets it save."""
    cloud.plan(["READY"], ["wait"], ["wait"])
    for command in ("create", "create", "install"):
        assert cloud.run(command)[0] == 0
    assert cloud.verbs() == ["create", "scp", "install"]  # one that is there is kept
    assert cloud.run("train", *FLAGS)[0] == 0
    assert eventually(cloud, "main is running").startswith("READY\n")
    assert cloud.run("stop")[0] == 0
    eventually(cloud, "main ended with code 0; it was told to stop")
    for host in ("host0", "host1"):
        assert "saved" in (cloud.folder / host / "tcl_jax_main.log").read_text()


def test_what_was_stopped_by_hand_is_kept_until_it_is_started(cloud: Cloud) -> None:
    cloud.plan(["READY"], ["slow", "0"], ["wait", "0"])
    with cloud.begun("run", "--delete-after", *FLAGS) as process:
        eventually(cloud, "main is running")
        with cloud.begun("stop") as stopping:
            output, _ = process.communicate()
            log = (cloud.folder / "host0" / "tcl_jax_main.log").read_text()
            assert stopping.wait(60) == 0
    assert process.returncode == 143 and "saved" in log, output
    assert "the training was stopped, and tcl is kept; to go on, give this command" in output
    once = ["scp", "install", "start"]
    assert cloud.verbs() == ["create", *once, "stop"]
    code, output = cloud.run("run", "--delete-after", *FLAGS)
    assert code == 0 and "the training has ended" in output, output
    assert cloud.verbs() == ["create", *once, "stop", *once, "delete"]


def test_a_host_that_goes_down_does_not_count_as_done(cloud: Cloud) -> None:
    cloud.plan(["READY"], ["wait"], ["wait"])
    for command in ("create", "install"):
        assert cloud.run(command)[0] == 0
    assert cloud.run("train", *FLAGS)[0] == 0
    eventually(cloud, "main is running")
    for host in ("host0", "host1"):
        main, attendant = (cloud.folder / host / "tcl_jax_main.pid").read_text().split()
        # A real main takes its time to save: here it must not have ended before the other is told.
        for process in (attendant, main):
            os.kill(int(process), signal.SIGTERM)
    eventually(cloud, "main ended with code 143")
