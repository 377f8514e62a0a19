r"""Packs images with captions into tar shards for training, with their indexes.

    python -m tcl_jax.pack photos --captions=captions.csv shards --held_out=0.02
    python -m tcl_jax.pack photos shards              # a .txt beside each image, or metadata.csv
    python -m tcl_jax.pack val2017 --captions=captions_val2017.json shards     # COCO's captions
    python -m tcl_jax.pack saved_dataset shards       # of Hugging Face's datasets, or its Parquet

FILE is CSV, TSV, JSONL or JSON (objects, COCO's captions, captions by the names of images), or
Parquet. Columns are found by their usual names, as file_name and caption; several rows of an image
are its captions, one of which is drawn each time. Names may have folders, backslashes, another
letter case, no suffix, or leading folders from where the list was made. Images stay the bytes they
are; each is decoded once, and equal ones become one with the captions of all.

OUT/train has the shards to train on, OUT/held_out those that are held out, and OUT/pack.json all
that was left out, with reasons. The same input gives the same shards; what is stopped goes on from
its last whole shard by the same command. Exit codes: 0 done, 1 failure, 2 bad input, 130
interrupted.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from typing import Any

from tcl_jax.commands import command_parser, share
from tcl_jax.config_flags import config_flag, require_config, show_own_log
from tcl_jax.errors import InputError, run_command, shorten

CONFIG = "configs/pairs_clip.py"
"""Of the command that comes next."""
CONTEXTS = (48, 64, 77)
"""Tokens that texts may have where that config's are too few; published CLIPs have 77."""
FEW = 100
"""Fewer held-out images than that find their captions by chance too often."""


def run(argv: Sequence[str] | None = None) -> None:
    """From flags to shards."""
    p = command_parser("pack", __doc__)
    p.add_argument("images", metavar="IMAGES", help="a folder of images, or a data set with them")
    p.add_argument("out", metavar="OUT", help="a folder for the shards, new or of the same command")
    p.add_argument("--captions", metavar="FILE", help="with the names of images and their captions")
    p.add_argument("--image_column", metavar="NAME", default="", help="which one has the images")
    p.add_argument("--caption_column", metavar="NAME", default="", help="which one has captions")
    p.add_argument(
        "--held_out", metavar="N|SHARE", type=_number_or_share, default=0,
        help="so many images, or as 0.02 a share of them, go to OUT/held_out",
    )  # fmt: skip
    p.add_argument(
        "--shard_pairs", metavar="N", type=int, default=10_000,
        help="most images of a shard, which has no more than 1 GiB besides (default 10000)",
    )  # fmt: skip
    flags = p.parse_args(argv)
    if flags.shard_pairs < 1:
        raise InputError(f"--shard_pairs={flags.shard_pairs}: must be at least 1")
    for address in (flags.images, flags.captions or "", flags.out):
        if "://" in address:
            raise InputError(f"{address}: it must be on this machine; copy it from or to the store")
    # Imported here so that --help and mistakes in flags are answered at once.
    from tcl_jax.data.pair_lists import list_pairs
    from tcl_jax.data.tar_writer import pack

    pairs = list_pairs(flags.images, flags.captions, flags.image_column, flags.caption_column)
    report = pack(pairs, flags.out, held_out=flags.held_out, shard_pairs=flags.shard_pairs)
    _tell(report, flags.out)


def _number_or_share(text: str) -> int | float:
    try:
        return int(text) if text.isdigit() else share(text)
    except ValueError as error:
        message = f"{text!r} is neither a number of images nor a share, such as 0.02"
        raise argparse.ArgumentTypeError(message) from error


def _tell(report: dict[str, Any], out: str) -> None:
    from tcl_jax.data.tar_writer import HELD_OUT, REPORT, TRAIN

    for part, pairs in report["pairs"].items():
        shards = sum(
            x["pairs"] > 0 for name, x in report["shards"].items() if name.startswith(part)
        )
        if shards:
            print(f"{os.path.join(out, part)}: {pairs:,} images in {shards} tar shard(s)")
    (low, high), tokens = report["shorter_side"], report["tokens"]
    print(
        f"{report['captions']:,} captions, {report['bytes'] / 2**20:,.1f} MiB, shorter sides of "
        f"{low} to {high} pixels"
    )
    print(
        f"tokens of a caption, start and end included: {tokens['mean']:.1f} on average, "
        f"{tokens['longest']} at most, 99 % have no more than {tokens['longest_of_99_percent']}"
    )
    for kind, found in report["left_out"].items():
        first = [f"{x['image']} ({x['why']})" if x["why"] else x["image"] for x in found["images"]]
        print(f"{kind.replace('_', ' ')}: {found['count']:,}: {shorten(first, 3)}")
    if report["left_out"]:
        print(f"all of these are in {os.path.join(out, REPORT)}")
    held_out = report["pairs"][HELD_OUT]
    if not held_out:
        print("none is held out to judge by; --held_out=0.02 does that, into a new folder")
    elif held_out < FEW:
        print(f"{held_out} are few to judge by; --held_out=N holds out more, into a new folder")
    parts = {"data": TRAIN, "eval": HELD_OUT} if held_out else {"data": TRAIN}
    words = [config_flag(f"{k}.shards", (os.path.join(out, part),)) for k, part in parts.items()]
    config = require_config(CONFIG, [], "python -m tcl_jax.pack")
    if 0 < (few := report["pairs"][TRAIN]) < config.train.global_batch_size:
        # A power of two, which divides over most numbers of devices.
        words.append(config_flag("train.global_batch_size", 1 << (few.bit_length() - 1)))
    if (most := tokens["longest_of_99_percent"]) > config.model.sizes.context_length:
        context = next((n for n in CONTEXTS if n >= most), CONTEXTS[-1])
        words.append(config_flag("model.sizes.context_length", context))
    print(
        "next, a CLIP of these pairs:\n"
        f"  python -m tcl_jax.main --config={CONFIG} --workdir=runs/pairs_clip {shlex.join(words)}"
    )


if __name__ == "__main__":
    show_own_log()
    run_command(run)
