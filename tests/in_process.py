"""Commands run here rather than in a process that would have to import JAX."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcl_jax.errors import run_command


@dataclasses.dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    said: str


@contextlib.contextmanager
def as_before() -> Iterator[None]:
    """Undoes what commands change in their process."""
    kept = dict(os.environ), [*sys.path], signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept[0])
        sys.path[:] = kept[1]
        signal.signal(signal.SIGTERM, kept[2])
        signal.set_wakeup_fd(-1)  # or the command's watch would end the tests


def run_module(words: list[str], folder: Path) -> Done:
    """`python -m MODULE ...` in a folder: its exit code, and what it wrote to both outputs."""
    assert words[1] == "-m", f"Python is started with {words[1]!r}; teach it to run_module"
    name, arguments = words[2], words[3:]
    if (found := importlib.util.find_spec(name)) and found.submodule_search_locations:
        name += ".__main__"
    module = importlib.import_module(name)
    said = io.StringIO()
    with (
        as_before(),
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        patch.chdir(folder)
        patch.setattr(sys, "argv", [str(module.__file__), *arguments])
        try:
            run_command(lambda: module.run(arguments))
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except Exception:  # as Python itself would end
            code = 1
            traceback.print_exc(file=said)
    return Done(code, said.getvalue())
