r"""Turns tar shards into a data set of tensorflow-datasets, stored as ArrayRecord.

    python -m tcl_jax.tfds_builder --name=cc3m --data_dir=/data/tfds \
        --shards='data/cc3m/{00000..00331}.tar'
    python -m tcl_jax.main --config=configs/tcl.py --workdir=runs/tcl --config.data.source=tfds \
        --config.data.tfds.name=image_text_pairs/cc3m --config.data.tfds.data_dir=/data/tfds \
        --config.data.tfds.text=text

One shard becomes one file; images stay the bytes they are, and nothing is shuffled, since training
reads in any order. Needs as much free space as the shards take, and no TensorFlow. Any program can
read the result with tfds.data_source; a bucket holds it as well once the folder is copied there and
mounted. Exit codes: 0 done, 1 failure, 2 bad input.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from tcl_jax.commands import command_parser
from tcl_jax.config_flags import show_own_log
from tcl_jax.errors import run_command


def run(argv: Sequence[str] | None = None) -> None:
    """From flags to files."""
    p = command_parser("tfds_builder", __doc__)
    p.add_argument(
        "--shards", action="extend", nargs="+", required=True, help="paths or patterns of tar files"
    )
    p.add_argument("--name", required=True, help="of the data set, as cc3m")
    p.add_argument("--data_dir", required=True, metavar="DIR")
    p.add_argument("--index_dir", metavar="DIR", help="where index files of the shards go")
    p.add_argument(
        "--caption_field", default="", help="of KEY.json; default: as data.caption_field"
    )
    p.add_argument("--allow_missing", action="store_true", help="go on without missing shards")
    flags = p.parse_args(argv)
    # Imported here so that --help and mistakes in flags are answered at once.
    from tcl_jax.data.tfds_writer import prepare

    folder = prepare(
        flags.shards,
        name=flags.name,
        data_dir=flags.data_dir,
        allow_missing=flags.allow_missing,
        index_dir=flags.index_dir,
        caption_field=flags.caption_field,
    )
    print(
        f"{folder} is read with --config.data.source=tfds "
        f"--config.data.tfds.name=image_text_pairs/{flags.name} "
        f"--config.data.tfds.data_dir={shlex.quote(flags.data_dir)} --config.data.tfds.text=text"
    )


if __name__ == "__main__":
    show_own_log()
    run_command(run)
