r"""A web page: drop a photo, type words, see where they are.

    python -m tcl_jax.demo --checkpoint=runs/shapes
    python -m tcl_jax.demo --clip=ViT-B/16 --tcl=official --port=8000
    python -m tcl_jax.demo --model=tips:B/14

Needs `pip install .[demo]`. Only this machine can open the page, unless --host says otherwise;
nobody is asked for a password. Ctrl-C stops it. Exit codes: 0 stopped; 2 bad input, such as a port
that is taken.
"""

from __future__ import annotations

import argparse
import dataclasses
import threading
from collections.abc import Sequence

from tcl_jax.commands import (
    add_model_flags,
    add_threshold_flag,
    command_parser,
    load_model_from,
    threshold_of,
)
from tcl_jax.errors import run_command


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = command_parser("demo", __doc__)
    add_model_flags(p)
    add_threshold_flag(p)
    p.add_argument("--host", default="127.0.0.1", help="address to serve at (default %(default)s)")
    p.add_argument("--port", type=int, default=7860, metavar="N", help="default %(default)s")
    return p


def run(argv: Sequence[str] | None = None) -> None:
    """From flags to a page that is served until Ctrl-C."""
    flags = parser().parse_args(argv)
    # Imported here so that --help and mistakes in flags are answered at once.
    from tcl_jax.demo.answers import Answers
    from tcl_jax.demo.server import check_server, serving

    check_server(flags.host, flags.port)
    model = load_model_from(flags, flags.method)
    if (threshold := threshold_of(model, flags.threshold)) is not None:
        settings = dataclasses.replace(model.settings, threshold=threshold)
        model = dataclasses.replace(model, settings=settings)
    answers = Answers(model, tokenizer_file=flags.tokenizer_file)
    try:
        with serving(answers, flags.host, flags.port) as address:
            print(f"the page is at {address}; Ctrl-C stops it", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        print("stopped")


if __name__ == "__main__":
    run_command(run)
