"""`python -m tcl_jax.demo` as a user meets it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tcl_jax.demo.__main__ import run
from tcl_jax.errors import InputError

ROOT = Path(__file__).parent.parent.parent
CLIP = "--clip=builtin:shapes_clip"


def test_a_port_that_is_taken() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"--port={port} cannot be served.*another port"):
            run([CLIP, f"--port={port}"])


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--port=0"], "--port=0 must be"),
        (["--host=192.0.2.1"], "--host=192.0.2.1"),
        (["--max_megabytes=0"], "max_megabytes"),
        (["--max_megabytes=inf"], "max_megabytes=inf must be above 0 and finite"),
        (["--max_words=0"], "max_words"),
        (["--port=1", "--max_megapixels=1e9"], "max_megapixels"),
    ],
)
def test_flags_that_cannot_be_used(flags: list[str], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        run([CLIP, *flags])


def test_without_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match=r"pip install \.\[demo\]"):
        run([CLIP])


@pytest.mark.slow
def test_served_until_interrupted() -> None:
    pytest.importorskip("gradio", reason="gradio is not installed (pip install .[demo])")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tcl_jax.demo", CLIP, f"--port={port}"]
    server = subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        told = server.stdout.readline()
        assert told == f"the page is at http://127.0.0.1:{port}; Ctrl-C stops it\n"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{port}", timeout=20) as answer:
            page = answer.read().decode()
        assert answer.status == 200 and "Segment what you can name" in page
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=60)
    finally:
        server.kill()
    assert (server.returncode, out, err) == (0, "stopped\n", "")
