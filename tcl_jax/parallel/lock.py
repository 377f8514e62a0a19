"""One run at a time in a folder that it writes to for hours."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from absl import logging

from tcl_jax.errors import InputError, as_input_error
from tcl_jax.parallel.processes import raise_on_all_processes

NAME = "running.json"
"""The file in the folder: `host`, `pid` and `since` of the run, and `beat`, its heartbeat."""
BEAT, WATCH = 20.0, 90.0
"""Seconds between two heartbeats, and without one until a run of another machine counts as dead;
mounted object stores show a change after a minute only."""
_TRIES = 100


@contextlib.contextmanager
def alone_in(folder: Path, what: str) -> Iterator[None]:
    """Keeps other runs out of a folder during its body; every process must call it.

    Process 0 makes the file `NAME` and locks it, which no killed run can leave behind. Where
    machines do not see each other's locks, as on mounted object stores, the heartbeat in the file
    tells: if the file is of a run on another machine, its next heartbeat is awaited for `WATCH`
    seconds. Two runs that start there within seconds of each other are not told apart.

    Args:
        folder: made as needed.
        what: it is, for messages.

    Raises:
        InputError: another run is in it, or the file cannot be made; on all processes.
    """
    first = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        raise_on_all_processes(
            lambda: stack.enter_context(_held(folder / NAME, what)) if first else None
        )
        yield


@contextlib.contextmanager
def _held(path: Path, what: str) -> Iterator[None]:
    made = not path.parent.exists()
    with as_input_error(what):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _lock(path)
    own = {"host": socket.gethostname(), "pid": os.getpid(), "since": _now()}
    _write(file, own)
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT):
            _write(file, own)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file), path.stat()):  # and not of a run after it
                path.unlink()
        os.close(file)
        if made:
            with contextlib.suppress(OSError):  # something was written
                path.parent.rmdir()


def _lock(path: Path) -> int:
    """The open file, locked where the file system can; refuses one that another run holds."""
    for _ in range(_TRIES):
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        holder, locked, alive, advice = _read(path), True, False, ""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            alive = True
        except OSError as error:
            logging.info("%s cannot be locked here: %s", path, error)
            locked = False
        if holder and not alive and not (locked and holder["host"] == socket.gethostname()):
            alive, advice = _beats(path, holder), f" (if it is no more, delete {path})"
        with contextlib.suppress(FileNotFoundError):  # its run ended in between
            if not alive and os.path.samestat(os.fstat(file), path.stat()):
                return file
        os.close(file)
        if alive:
            run = "a run" if holder is None else _describe(holder)
            raise InputError(
                f"{run} is writing to it; wait for its end or stop it, or choose another folder"
                + advice
            )
    raise OSError(errno.ESTALE, "changes whenever it is opened", os.fspath(path))


def _beats(path: Path, holder: dict[str, Any]) -> bool:
    logging.warning(
        "%s is of %s, which did not end in order or still runs: waiting up to %.0f seconds for "
        "its heartbeat", path, _describe(holder), WATCH
    )  # fmt: skip
    until = time.monotonic() + WATCH
    while time.monotonic() < until and path.exists():
        time.sleep(min(BEAT, WATCH) / 4)
        if path.exists() and _read(path) != holder:
            return True
    return False


def _describe(holder: dict[str, Any]) -> str:
    return f"a run on {holder['host']}, process {holder['pid']}, since {holder['since']},"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
        return content if {"host", "pid", "since"} <= content.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _write(file: int, own: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a full disk, say, of which the run itself tells
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps({**own, "beat": _now()}).encode(), 0)
        os.fsync(file)


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
