"""`python -m tcl_jax.demo` as a user meets it; README's test serves the page until Ctrl-C."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tcl_jax.demo.__main__ import run
from tcl_jax.errors import InputError
from tests.devices import free_port

CLIP = "--clip=builtin:shapes_clip"


def test_a_port_that_is_taken() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"--port={port} cannot be served.*another port"):
            run([CLIP, f"--port={port}"])


@pytest.mark.parametrize(
    ("flag", "problem"),
    [("--port=0", "--port=0 must be"), ("--host=192.0.2.1", "--host=192.0.2.1")],
)
def test_flags_that_cannot_be_used(flag: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        run([CLIP, flag])


def test_the_threshold_that_the_page_begins_with(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[dict[str, float]] = []

    @contextlib.contextmanager
    def serving(answers: Any, *_: Any) -> Iterator[str]:
        found.extend(answers.thresholds(pamr) for pamr in (True, False))
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr("tcl_jax.demo.server.serving", serving)
    port = f"--port={free_port()}"
    run([CLIP, "--threshold=0.125", port])
    assert found == [{"maskclip": 0.125}, {"maskclip": 0.5}]  # of masks as the page begins with
    with pytest.raises(InputError, match="no results at 'nowhere'"):
        run([CLIP, "--threshold=best:nowhere", port])


def test_without_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match=r"pip install \.\[demo\]"):
        run([CLIP])
