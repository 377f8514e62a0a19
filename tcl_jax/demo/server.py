"""Serving the page until it is told to stop."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator

from tcl_jax.demo.answers import Answers
from tcl_jax.demo.examples import draw_examples, knows_shapes
from tcl_jax.errors import InputError

QUEUE = 64
"""Questions that may wait; further ones are told that the page is busy."""


def check_gradio() -> None:
    """Whether the packages of the page are there.

    Raises:
        InputError: if they are not.
    """
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"the page needs gradio, which cannot be imported ({error}); "
            "install it with `pip install .[demo]`"
        ) from error


def check_address(host: str, port: int) -> None:
    """Whether a server can listen there.

    Raises:
        InputError: if the port is taken or the host is none of this machine's.
    """
    if not 1 <= port <= 65535:
        raise InputError(f"--port={port} must be from 1 to 65535")
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(infos[0][0], socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(infos[0][4])
    except OSError as error:
        raise InputError(
            f"--host={host} --port={port} cannot be served: {error.strerror or error}; choose "
            f"another port, as in --port={port % 65535 + 1}, or stop what uses it"
        ) from error


@contextlib.contextmanager
def serving(answers: Answers, host: str, port: int) -> Iterator[str]:
    """Serves the page as long as the body runs; gives its address.

    Uploads and files to take away lie in a temporary folder, which goes with the server.

    Raises:
        InputError: if gradio is missing or the address cannot be used.
    """
    check_address(host, port)
    with tempfile.TemporaryDirectory(prefix="tcl_jax_demo_") as folder:
        # gradio reads these when it is imported or a component is made.
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        check_gradio()
        from tcl_jax.demo.page import CSS, HEAD, build_page, theme

        plain = knows_shapes(answers.settings, answers.origin)
        page = build_page(answers, draw_examples(folder, plain=plain), folder)
        page.queue(max_size=QUEUE, default_concurrency_limit=4)
        try:
            page.launch(
                server_name=host,
                server_port=port,
                share=False,
                inbrowser=False,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size=answers.limits.max_bytes,
                ssr_mode=False,
                enable_monitoring=False,
                footer_links=[],
                theme=theme(),
                css=CSS,
                head=HEAD,
            )
            yield f"http://{host}:{port}"
        finally:
            page.close(verbose=False)
