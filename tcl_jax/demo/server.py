"""Serving the page until it is told to stop."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import tempfile
from collections.abc import Iterator

from tcl_jax.demo.answers import Answers
from tcl_jax.demo.examples import draw_examples, knows_shapes
from tcl_jax.errors import InputError

QUEUE = 64
"""Questions that may wait; further ones are told that the page is busy."""


def check_server(host: str, port: int) -> None:
    """Whether the page can be served there.

    Raises:
        InputError: if gradio is not installed, the port is taken or the host is none of this
            machine's.
    """
    # Not imported before `serving` has said where its files go.
    if importlib.util.find_spec("gradio") is None:
        raise InputError(
            "the page needs gradio, which is not installed; get it with `pip install .[demo]`"
        )
    if not 1 <= port <= 65535:
        raise InputError(f"--port={port} must be from 1 to 65535")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise InputError(
            f"--host={host} --port={port} cannot be served: {error.strerror or error}; choose "
            f"another port, as in --port={port % 65535 + 1}, or stop what uses it"
        ) from error


@contextlib.contextmanager
def serving(answers: Answers, host: str, port: int) -> Iterator[str]:
    """Serves the page as long as the body runs; gives its address.

    Uploads and files to download lie in a temporary folder, which goes with the server. See
    `check_server` for what must be there.
    """
    with tempfile.TemporaryDirectory(prefix="tcl_jax_demo_") as folder:
        # Old files of its own folder are deleted by gradio; the examples must stay.
        passing, lasting = os.path.join(folder, "passing"), os.path.join(folder, "examples")
        os.mkdir(passing)
        # gradio reads these when it is imported and when a component is made.
        os.environ |= {"GRADIO_TEMP_DIR": passing, "GRADIO_ANALYTICS_ENABLED": "False"}
        from tcl_jax.demo.page import CSS, HEAD, build_page, theme

        plain = knows_shapes(answers.settings, answers.origin)
        page = build_page(answers, draw_examples(lasting, plain=plain), passing)
        page.queue(max_size=QUEUE, default_concurrency_limit=4)
        try:
            page.launch(
                server_name=host,
                server_port=port,
                share=False,
                inbrowser=False,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size=answers.max_bytes,
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
