r"""A look at what training is going to see, before it starts.

    python -m tcl_jax.preview --config=configs/tcl.py --output=preview.png \
        --config.data.shards="('data/cc3m/*.tar',)"

Writes a page of the first training images: right as the model gets them, erased rectangles filled
with noise; left the original, on which the part that was cut out is framed; and above the caption
and what else was done. Prints the number of pairs, what of the shards is left out, the first
captions, how their lengths suit the model, and samples that could not be used.
Exit codes: 0 done, 1 failure, 2 bad input.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from tcl_jax.commands import command_parser
from tcl_jax.config_flags import add_config_flag, require_config, show_own_log
from tcl_jax.errors import InputError, run_command
from tcl_jax.files import user_path

MAX_COUNT = 400
"""Images on a page, at most."""

EXAMPLE = "python -m tcl_jax.preview --config=configs/tcl.py --output=preview.png"


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = command_parser("preview", __doc__)
    add_config_flag(p)
    p.add_argument(
        "--count", type=int, default=24, help=f"images on the page, 1 to {MAX_COUNT} (default 24)"
    )
    p.add_argument("--output", metavar="FILE.png", default="preview.png", help="the page")
    return p


def run(argv: Sequence[str] | None = None) -> None:
    """From flags to a page."""
    flags, rest = parser().parse_known_args(argv)
    config = require_config(flags.config, rest, EXAMPLE)
    if not 1 <= flags.count <= MAX_COUNT:
        raise InputError(f"--count={flags.count}: must be 1 to {MAX_COUNT}")
    output = user_path(flags.output)
    if output.suffix.lower() != ".png" or output.is_dir():
        raise InputError(f"--output={flags.output!r}: must name a file that ends in .png")
    # Imported here so that --help and mistakes in flags are answered at once.
    from tcl_jax.pictures.contact_sheet import contact_sheet
    from tcl_jax.pictures.overlays import save_png
    from tcl_jax.training.check import check_config
    from tcl_jax.training.preview import take_preview

    check_config(config)
    preview = take_preview(config, flags.count)
    save_png(output, contact_sheet(preview.cards()))
    print(f"{preview.describe()}\nwritten: {output}")


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"  # a training may have the accelerator
    show_own_log()
    run_command(lambda: run(sys.argv[1:]))
