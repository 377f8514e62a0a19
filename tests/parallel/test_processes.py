"""What processes tell each other, played by one."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import jax
import pytest

from tcl_jax.errors import InputError, RunError
from tcl_jax.parallel import processes
from tcl_jax.parallel.processes import check_same, raise_on_all_processes, start_processes
from tests.devices import process_arguments


def fail(error: Exception) -> int:
    raise error


def test_alone_it_is_the_function() -> None:
    assert raise_on_all_processes(lambda: 7) == 7
    with pytest.raises(RunError, match="^gone$"):
        raise_on_all_processes(lambda: fail(RunError("gone")))


@pytest.mark.parametrize("kind", [InputError, RunError])
def test_all_fail_if_one_does(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []

    def another_that_fails(text: str) -> list[str]:
        texts.append(text)
        return [text, "", texts[0]]

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(processes, "gather_texts", another_that_fails)
    with pytest.raises(kind, match="^no such file$"):
        raise_on_all_processes(lambda: fail(kind("no such file")))
    with pytest.raises(kind, match="^process 2 reports: no such file$"):
        raise_on_all_processes(lambda: 7)
    monkeypatch.setattr(processes, "gather_texts", lambda text: [text, "", ""])
    assert raise_on_all_processes(lambda: 7) == 7


def test_processes_that_see_different_things(monkeypatch: pytest.MonkeyPatch) -> None:
    check_same("images", "3", "Copy them")
    monkeypatch.setattr(processes, "gather_texts", lambda text: [text, text, "2"])
    with pytest.raises(InputError, match="^process 2 sees other images than .* 0: 2 there, 3 here"):
        check_same("images", "3", "Copy them")


def test_a_host_name_without_address_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.socket, "gethostname", lambda: "nowhere.invalid")
    monkeypatch.setattr(processes, "find_devices", lambda: fail(RunError("enforce fail")))
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    with pytest.raises(RunError, match=r"nowhere.invalid does not resolve .*/etc/hosts"):
        start_processes(None, 1, None)


ONE_WAITS = """
import sys, time
from tcl_jax.errors import run_command
from tcl_jax.parallel.processes import any_process, start_processes

def main():
    start_processes("localhost:" + sys.argv[1], 2, int(sys.argv[2]))
    print("joined", flush=True)
    time.sleep(600 if sys.argv[2] == "1" else 0)
    any_process(True)

run_command(main)
"""


@pytest.fixture
def waiting() -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes, the first of which waits for the second, which does not come."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_WAITS, port, index],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for port, _, index in process_arguments(2)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert "joined\n" in iter(process.stdout.readline, "")
        time.sleep(1)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_second_signal_ends_a_process_that_waits(waiting: list[subprocess.Popen[str]]) -> None:
    waiting[0].send_signal(signal.SIGTERM)
    time.sleep(1.5)
    assert waiting[0].poll() is None
    waiting[0].send_signal(signal.SIGTERM)
    output = waiting[0].communicate(timeout=60)[1]
    assert waiting[0].returncode == 130 and "perhaps for another process" in output


def test_it_ends_when_the_other_is_gone(waiting: list[subprocess.Popen[str]]) -> None:
    waiting[1].kill()
    output = waiting[0].communicate(timeout=60)[1]
    assert waiting[0].returncode == 1 and "error: another process of this run has ended" in output
