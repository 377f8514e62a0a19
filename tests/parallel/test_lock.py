"""One run at a time in a folder: refused while another lives, let in once it is dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tcl_jax.errors import InputError
from tcl_jax.parallel import lock
from tcl_jax.parallel.lock import alone_in

HOLDER = """
import pathlib, sys, time
from tcl_jax.parallel.lock import alone_in
with alone_in(pathlib.Path(sys.argv[1]), "it"):
    print("in", flush=True)
    time.sleep(300)
"""


def test_a_second_run_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "in\n"
    try:
        with (
            pytest.raises(InputError, match="workdir 'x': another run"),
            alone_in(tmp_path, "workdir 'x'"),
        ):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with alone_in(tmp_path, "it"), pytest.raises(InputError), alone_in(tmp_path, "it"):
        pass
    with alone_in(tmp_path, "it"):
        pass


def test_a_folder_that_it_made_goes_if_nothing_is_in_it(tmp_path: Path) -> None:
    for written in (False, True):
        with alone_in(tmp_path / "new", "it"):
            if written:
                (tmp_path / "new/x").touch()
        assert (tmp_path / "new").exists() == written


def test_without_locks_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock.fcntl, "flock", lambda *_: os.close(-1))  # an OSError
    with alone_in(tmp_path, "it"), alone_in(tmp_path, "it"):
        pass
