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

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tcl_jax.config_flags import embed_in_advance, show_own_log
from tcl_jax.errors import run_command

if TYPE_CHECKING:
    from ml_collections import ConfigDict

EXAMPLE = "python -m tcl_jax.embed_captions --config=configs/tcl.py"


def run(argv: Sequence[str] | None = None) -> None:
    """From flags to files."""
    embed_in_advance(argv, __doc__, EXAMPLE, _embed, "captions", 512)


def _embed(config: ConfigDict, batch_size: int) -> str:
    from tcl_jax.training.embed_captions import embed

    return embed(config, batch_size=batch_size)


if __name__ == "__main__":
    show_own_log()
    run_command(run)
