r"""Embeds the captions of tar shards once, so that training need not compute the text tower.

    python -m tcl_jax.embed_captions --config=configs/tcl.py
    python -m tcl_jax.main --config=configs/tcl.py --workdir=runs/tcl \
        --config.data.caption_cache=True

Takes the same --config.FIELD=VALUE as the training. For each shard of `data.shards`, or of the tar
shards in a mixture, one file is written beside its index (in `data.index_dir`, if that is set): for
CC3M + CC12M and ViT-B/16 15 GB in all, or 29 GB with `model.dtype=float32`. They hold for one text
tower: other weights, another context length or another `model.dtype` have files of their own. The
losses are those of a training without, up to rounding: as by another batch size.

Ctrl-C stops at once, and the same command goes on with the shards that lack their file. Several
processes (--coordinator and so on) share the shards, where they share the folder; where each has a
folder of its own, each makes all. Exit codes: 0 done, 1 failure, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tcl_jax.commands import add_process_flags, command_parser
from tcl_jax.config_flags import add_config_flag, read_config, show_own_log
from tcl_jax.errors import InputError, run_command

EXAMPLE = "python -m tcl_jax.embed_captions --config=configs/tcl.py"


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = command_parser("embed_captions", __doc__)
    add_config_flag(p)
    p.add_argument(
        "--batch_size",
        type=int,
        default=512,
        help="captions that a device computes together (default 512)",
    )
    add_process_flags(p)
    return p


def run(argv: Sequence[str] | None = None) -> None:
    """From flags to files."""
    flags, rest = parser().parse_known_args(argv)
    config = read_config(flags.config, rest, "embed_captions")
    if config is None:
        raise InputError(f"--config is needed, as in\n  {EXAMPLE}")
    if flags.batch_size < 1:
        raise InputError(f"--batch_size={flags.batch_size} must be at least 1")
    # Imported here so that --help and mistakes in flags are answered at once.
    from tcl_jax.parallel.processes import start_processes
    from tcl_jax.training.check import check_config
    from tcl_jax.training.embed_captions import embed

    check_config(config)
    start_processes(flags.coordinator, flags.num_processes, flags.process_id)
    print(embed(config, batch_size=flags.batch_size))


def main() -> None:
    """Entry point."""
    show_own_log()
    run_command(run)


if __name__ == "__main__":
    main()
