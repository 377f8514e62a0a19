"""Errors that explain themselves, and how a command ends with them."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import io
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

SIGNAL_ECHO = 1.0
"""Seconds in which a second signal is the same wish: a terminal and a launcher both pass one on."""
PATIENCE = 5.0
"""Seconds that a process has for its own way out, where that may be blocked."""
answers: list[Callable[[int], None]] = []
"""Called by `run_command` at a first Ctrl-C or SIGTERM with its number, in a thread of its own."""
_OF_WHAT_WAS_GIVEN = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
    errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EROFS, errno.ENXIO,
}  # fmt: skip
_OF_DISKS = {errno.ENOSPC, errno.EDQUOT, errno.EIO}


class InputError(ValueError):
    """Bad input: a config, a file or a flag that cannot be used.

    The message is a paragraph for people: what was given, what is wrong with it, what to do.
    """


class RunError(RuntimeError):
    """A run that failed for a reason it can name; the message says what is left and what to do."""


@contextlib.contextmanager
def as_input_error(what: str) -> Iterator[None]:
    """Turns a ValueError or OSError of its body into an `InputError` that begins with `what`.

    For calls whose only cause of such errors is what the user gave, or else the machine: that, as
    `machine_fault` tells it, becomes a `RunError`. A `RunError` stays one.
    """
    try:
        yield
    except RunError:
        raise
    except (ValueError, OSError, MemoryError) as error:
        raise_machine_fault(what, error)
        raise InputError(f"{what}: {error}") from error


def run_command(command: Callable[[], None]) -> None:
    """Runs a command; exits with 2 after bad input (also an OSError that names a file and is not
    the machine's fault), 1 after a failure it can explain, 130 if interrupted.

    A second Ctrl-C or SIGTERM ends it also where it waits in a library, and so does a failure where
    other processes of the run wait for it or it for them.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Names of files and words may have characters that this terminal cannot show.
            stream.reconfigure(errors="backslashreplace")
    if sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)  # where a library crashes, Python's stack is told
    # A command that is told to end tidies up as it does after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _end_at_second_signal()
    try:
        command()
    except (InputError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        _exit(2 if isinstance(error, InputError) else 1)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, MemoryError) as error:
        fault, file = machine_fault(error), getattr(error, "filename", None)
        if fault is None and file is None:
            _leave_soon(1)
            raise
        advice = f"{error}; correct the path or its permissions"
        print(f"error: {advice if fault is None else fault}", file=sys.stderr)
        _exit(2 if fault is None else 1)
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        # At once: a program that XLA is still computing would crash the interpreter's own way out.
        os._exit(130)
    except Exception as error:
        _leave_soon(1)
        # JAX raises a RuntimeError or a ValueError.
        if "Gloo" not in str(error) or not _is_distributed():
            raise
        print(
            f"error: another process of this run has ended or does not answer ({error}). Its log "
            "says why; what was finished is kept, and the same command goes on from there",
            file=sys.stderr,
        )
        sys.exit(1)


def _exit(code: int) -> NoReturn:
    _leave_soon(code)
    sys.exit(code)


def _leave_soon(code: int) -> None:
    """Bounds the exit that follows, in which JAX waits minutes for other processes of the run."""
    if _is_distributed():
        sys.stdout.flush()
        sys.stderr.flush()
        ending = threading.Timer(PATIENCE, os._exit, [code])
        ending.daemon = True
        ending.start()


def _is_distributed() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _end_at_second_signal() -> None:
    """Answers a first signal; ends the process after a second, `PATIENCE` later than Python would.

    Python's own handler waits for the main thread, which may wait in a library, also for a process
    that is gone.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def watch(kept_open: socket.socket) -> None:
        first = None
        while first is None or time.monotonic() - first < SIGNAL_ECHO:
            while (number := reader.recv(1)[0]) not in (signal.SIGINT, signal.SIGTERM):
                pass
            if first is None:
                first = time.monotonic()
                for answer in [*answers]:
                    answer(number)
        time.sleep(PATIENCE)
        try:
            print(
                "ended where it waited, perhaps for another process of the run; what was finished "
                "is kept",
                file=sys.stderr,
                flush=True,
            )
        finally:
            os._exit(130)

    threading.Thread(target=watch, args=[writer], daemon=True).start()


def machine_fault(error: BaseException) -> str | None:
    """What of the machine failed, in words; None where what was given may be to blame.

    Memory, disks, networks and limits of the system are the machine's; a path that is not there or
    not allowed is not, nor is an error without a number, as libraries raise it of damaged files.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, MemoryError):
        return "there is too little memory"
    # As TensorStore and safetensors put it.
    match = re.search(r"os_error_code='(\d+)'|\(os error (\d+)\)", str(error))
    code = error.errno if isinstance(error, OSError) else None
    code = int(match[1] or match[2]) if match else code
    if code is None or code in _OF_WHAT_WAS_GIVEN:
        return None
    file = getattr(error, "filename", None)
    where = "" if file is None else f" ({os.fsdecode(file)})"
    return os.strerror(code) + where + (": is the disk full or gone?" if code in _OF_DISKS else "")


def raise_machine_fault(what: str, error: BaseException) -> None:
    """Raises a `RunError` that begins with `what`, if an error is one that `machine_fault` tells.

    For where other errors of reading are the fault of the file.
    """
    if fault := machine_fault(error):
        raise RunError(f"{what}: {fault}") from error


def unwritten(what: str, error: OSError, advice: str) -> InputError | RunError:
    """What to raise where a file cannot be written; the machine's fault is told from a wrong path.

    Args:
        what: was to be written and where, in words.
        error: of writing.
        advice: what to do.
    """
    kind = RunError if machine_fault(error) else InputError
    return kind(f"{what} ({error.strerror or error}); {advice}")


def why_unwritten(error: BaseException) -> str:
    """Why something could not be written; speaks of the disk only where the disk refused it."""
    reason = machine_fault(error) or first_cause(error)
    return reason if reason.endswith("?") else f"{reason}."


def first_cause(error: BaseException) -> str:
    """The error that others were raised from, in one line: libraries wrap it in their own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}"


def shorten(parts: Sequence[str], most: int = 8) -> str:
    """The first of what a message lists, and how many more there are."""
    more = f" and {len(parts) - most} more" if len(parts) > most else ""
    return ", ".join(parts[:most]) + more
