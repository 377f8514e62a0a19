"""Whose fault an error is, and how a command ends with it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from tcl_jax.errors import InputError, RunError, as_input_error, machine_fault, run_command
from tests.in_process import as_before


def failing(number: int, file: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), file)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (failing(errno.ENOSPC, "a.png"), "(a.png): is the disk full"),
        (failing(errno.EMFILE, "a.png"), "(a.png)"),
        (MemoryError(), "too little memory"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "is the disk full"),
        (ValueError("Error writing [os_error_code='122']"), "is the disk full"),
        (failing(errno.ENOENT, "a.png"), None),
        (failing(errno.EACCES, "a.png"), None),
        (OSError("broken data stream when reading image file"), None),
        (ValueError("no"), None),
    ],
)
def test_the_machine_or_what_was_given(error: Exception, message: str | None) -> None:
    assert (machine_fault(error) is None) == (message is None)
    assert message is None or message in str(machine_fault(error))
    if not isinstance(error, RuntimeError):
        kind = RunError if message else InputError
        with pytest.raises(kind, match="^photos: "), as_input_error("photos"):
            raise error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (failing(errno.ENOENT, "gone"), 2),
        (failing(errno.ENOSPC), 1),
        (failing(errno.EMFILE, "many"), 1),
        (MemoryError(), 1),
        (InputError("typo"), 2),
        (RunError("lost"), 1),
    ],
)
def test_exit_codes(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise error

    assert ended(command) == code
    assert capsys.readouterr().err.startswith("error: ")


def ended(command: Callable[[], None]) -> int | str | None:
    with as_before(), pytest.raises(SystemExit) as ending:
        run_command(command)
    return ending.value.code
