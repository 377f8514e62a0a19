r"""Computes the frozen towers' features of images and captions once, for training that takes these.

    python -m tcl_jax.embed_images --config=configs/talk2dino.py
    python -m tcl_jax.main --config=configs/talk2dino.py --workdir=runs/talk2dino

Takes the same --config.FIELD=VALUE as the training. `data.features` is the folder for the files:
for COCO Captions and DINOv2 ViT-B 2.4 GB. They hold for the pairs, the towers, their resolution and
`model.dtype`; others have files of their own in it. Pairs may come from any `data.source`.

Ctrl-C stops at once, and the same command goes on with the files that are lacking, each of 512
images. Several processes (--coordinator and so on) share the work, where they share the folder;
where each has a folder of its own, each makes all. Exit codes: 0 done, 1 failure, 2 bad input, 130
interrupted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tcl_jax.commands import add_process_flags, command_parser
from tcl_jax.config_flags import add_config_flag, read_config, show_own_log
from tcl_jax.errors import InputError, run_command

EXAMPLE = "python -m tcl_jax.embed_images --config=configs/talk2dino.py"


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = command_parser("embed_images", __doc__)
    add_config_flag(p)
    p.add_argument(
        "--batch_size",
        type=int,
        default=64,
        help="images that a device computes together (default 64)",
    )
    add_process_flags(p)
    return p


def run(argv: Sequence[str] | None = None) -> None:
    """From flags to files."""
    flags, rest = parser().parse_known_args(argv)
    config = read_config(flags.config, rest, "embed_images")
    if config is None:
        raise InputError(f"--config is needed, as in\n  {EXAMPLE}")
    if flags.batch_size < 1:
        raise InputError(f"--batch_size={flags.batch_size} must be at least 1")
    # Imported here so that --help and mistakes in flags are answered at once.
    from tcl_jax.parallel.processes import start_processes
    from tcl_jax.training.check import check_config
    from tcl_jax.training.embed_images import embed

    check_config(config)
    start_processes(flags.coordinator, flags.num_processes, flags.process_id)
    print(embed(config, batch_size=flags.batch_size))


def main() -> None:
    """Entry point."""
    show_own_log()
    run_command(run)


if __name__ == "__main__":
    main()
