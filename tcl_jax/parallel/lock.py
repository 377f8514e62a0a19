"""One run at a time in a folder that it writes to for hours."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from tcl_jax.errors import InputError, as_input_error


@contextlib.contextmanager
def alone_in(folder: Path, what: str) -> Iterator[None]:
    """Keeps other runs out of a folder during its body; every process must call it.

    Process 0 locks the folder, as long as it lives. Runs on other machines see that lock only where
    the file system has it for all of them; mounted object stores have none.

    Args:
        folder: made as needed, and deleted at the end if nothing was written to it.
        what: it is, for messages.

    Raises:
        InputError: another run is in it, or it cannot be made; on all processes.
    """
    import jax  # here, for those who need no more than `locked`

    from tcl_jax.parallel.processes import raise_on_all_processes

    first = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        raise_on_all_processes(lambda: stack.enter_context(locked(folder, what)) if first else None)
        yield


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """`alone_in` for one process, without JAX."""
    made = not folder.exists()
    with as_input_error(what):
        folder.mkdir(parents=True, exist_ok=True)
        place = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(place)
        raise InputError(
            f"{what}: another run is writing to it; wait for its end or stop it, or choose another "
            "folder"
        ) from error
    except OSError as error:
        logging.info("%s cannot be locked here: %s", folder, error)
    try:
        yield
    finally:
        os.close(place)
        if made:
            with contextlib.suppress(OSError):  # something was written
                folder.rmdir()
