"""One run at a time in a folder: refused while another lives, let in once it is dead."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcl_jax.errors import InputError
from tcl_jax.parallel import lock
from tcl_jax.parallel.lock import NAME, alone_in

HOLDER = """
import pathlib, sys, time
from tcl_jax.parallel.lock import alone_in
with alone_in(pathlib.Path(sys.argv[1]), "it"):
    print("in", flush=True)
    time.sleep(300)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process in the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "in\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_refused_until_the_first_is_killed(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(InputError) as error, alone_in(tmp_path, "workdir 'x'"):
        pass
    for part in ("workdir 'x'", socket.gethostname(), f"process {holder.pid}", "since 20"):
        assert part in str(error.value)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / NAME).exists()
    with alone_in(tmp_path, "it"):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
        with pytest.raises(InputError), alone_in(tmp_path, "it"):
            pass
    assert not any(tmp_path.iterdir())


def test_what_a_run_made_goes_with_it_but_not_the_file_of_a_later_run(tmp_path: Path) -> None:
    with alone_in(tmp_path / "new", "it"):
        (tmp_path / "new" / NAME).unlink()  # by hand
        later = contextlib.ExitStack()
        later.enter_context(alone_in(tmp_path / "new", "it"))
    assert (tmp_path / "new" / NAME).exists()
    later.close()
    assert not (tmp_path / "new" / NAME).exists()
    with alone_in(tmp_path / "newer", "it"):
        assert (tmp_path / "newer" / NAME).exists()
    assert not (tmp_path / "newer").exists()  # made for the lock alone


@pytest.mark.parametrize("locks", [True, False])
@pytest.mark.parametrize("alive", [True, False])
def test_a_run_of_another_machine_is_known_by_its_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool, alive: bool
) -> None:
    """Whose lock is not seen here, whether or not there are locks at all."""
    monkeypatch.setattr(lock, "WATCH", 1.0)
    monkeypatch.setattr(lock, "BEAT", 0.1)
    if not locks:
        monkeypatch.setattr(lock.fcntl, "flock", lambda *_: os.close(-1))  # an OSError
    path, over = tmp_path / NAME, threading.Event()

    def beat(number: int) -> None:
        there = {"host": "elsewhere", "pid": 7, "since": "2026-01-01", "beat": number}
        path.write_text(json.dumps(there))

    def live() -> None:
        for number in range(1000):
            if over.wait(0.05):
                return
            beat(number)

    beat(-1)
    other = threading.Thread(target=live)
    if alive:
        other.start()
        with pytest.raises(InputError, match="a run on elsewhere, process 7, since 2026-01-01"):
            alone_in(tmp_path, "it").__enter__()
        over.set()
        other.join()
    else:
        with alone_in(tmp_path, "it"):
            assert json.loads(path.read_text())["host"] == socket.gethostname()
        assert not path.exists()
