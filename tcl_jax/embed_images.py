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

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tcl_jax.config_flags import embed_in_advance, show_own_log
from tcl_jax.errors import run_command

if TYPE_CHECKING:
    from ml_collections import ConfigDict

EXAMPLE = "python -m tcl_jax.embed_images --config=configs/talk2dino.py"


def run(argv: Sequence[str] | None = None) -> None:
    """From flags to files."""
    embed_in_advance(argv, __doc__, EXAMPLE, _embed, "images", 64)


def _embed(config: ConfigDict, batch_size: int) -> str:
    from tcl_jax.training.embed_images import embed

    return embed(config, batch_size=batch_size)


if __name__ == "__main__":
    show_own_log()
    run_command(run)
