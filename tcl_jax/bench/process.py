"""The official PyTorch code in a process of its own, asked one thing at a time.

Both PyTorch and the official code are the user's. `tcl_jax/bench/original.py` is what the process
runs; its class `Original` has the requests.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tcl_jax.errors import InputError, RunError
from tcl_jax.files import user_path

ADAPTER = Path(__file__).parent / "original.py"
MARK = Path("models/tcl/tcl.py")
"""A file that every checkout of the official code has."""
_SHOWN_LINES = 12


class OriginalFailed(RunError):
    """The official code, or its Python, could not do what it was asked."""


def find_checkout(path: str) -> Path:
    """The folder of a checkout, absolute.

    Raises:
        InputError: if there is none at `path`.
    """
    root = user_path(path).absolute()
    if not (root / MARK).is_file():
        raise InputError(
            f"--against={path!r} is no checkout of the official code: it has no {MARK}. Get it "
            "with `git clone https://github.com/kakaobrain/tcl` and give its folder"
        )
    return root


class OriginalProcess:
    """Starts the process; a context manager that ends it.

    Args:
        path: the checkout of the official code.
        python: the Python that has its packages.
        device: "cpu" or "cuda".

    Raises:
        InputError: there is no checkout at `path`, or `python` cannot be started.
    """

    def __init__(self, path: str, python: str, device: str) -> None:
        root = find_checkout(path)
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        command = [os.path.expanduser(python), str(ADAPTER), f"--path={root}", f"--device={device}"]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                encoding="utf-8",
            )
        except OSError as error:
            self._log.close()
            raise InputError(
                f"--against_python={python!r} cannot be started ({error.strerror}); give the "
                "Python of an environment with PyTorch and what else the official code imports"
            ) from error

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Sends a request, the name of a method of `Original`, and waits for its answer.

        Raises:
            OriginalFailed: it failed, and waits for other requests; or the process ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        try:
            answer = json.loads(line)
        except ValueError as error:
            code = self._process.wait() if not line else None
            how = f"ended with exit code {code}" if not line else f"answered {line.strip()[:200]!r}"
            self._log.seek(0)
            last = "".join(f"\n  {x}" for x in self._log.read().splitlines()[-_SHOWN_LINES:])
            raise OriginalFailed(
                f"the official code's process {how} when asked to {do}. Its last lines:{last}"
            ) from error
        if "ok" not in answer:
            raise OriginalFailed(f"the official code failed at {do}: {answer['error']}")
        result: dict[str, Any] = answer["ok"]
        return result

    def __enter__(self) -> OriginalProcess:
        """Returns itself."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Ends the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=20)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()
