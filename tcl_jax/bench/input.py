"""`bench input`: from flags to the speed of making training images."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tcl_jax.bench.subject import tell_stage
from tcl_jax.commands import command_parser
from tcl_jax.config_flags import add_config_flag, read_config
from tcl_jax.errors import InputError
from tcl_jax.files import write_json

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from tcl_jax.data.random_erasing import RandomErasing
    from tcl_jax.data.training_examples import Source
    from tcl_jax.data.transforms import Compose

DRAWN_PICTURES = 128


def bench_input(argv: Sequence[str], doc: str | None) -> None:
    """`bench input`: images per second of one core, stage by stage, and of worker processes."""
    p = command_parser("bench input", doc)
    add_config_flag(p)
    p.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help="how long to measure the stages together, and each number of workers (default 10)",
    )
    p.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="most worker processes; 0: measure none; default: as many as there are cores",
    )
    p.add_argument("--json", metavar="FILE", help="also write all figures as JSON")
    flags, rest = p.parse_known_args(argv)
    config = read_config(flags.config, rest, "bench input")

    from tcl_jax.bench.input_speed import default_worker_counts, measure
    from tcl_jax.bench.report import input_tables
    from tcl_jax.data.tokenizer import ClipTokenizer
    from tcl_jax.parallel.cores import available_cores

    workers = available_cores() if flags.workers is None else flags.workers
    if workers < 0:
        raise InputError(f"--workers={workers}: must be at least 0")
    size, length = _model_sizes(config)
    transform, erasing = _augmentation(config, size)
    with _open_source(config, size) as (source, told):
        print(f"data: {told}", flush=True)
        speed = measure(
            source,
            transform=transform,
            erasing=erasing,
            tokenizer=ClipTokenizer(length),
            seconds=flags.seconds,
            worker_counts=default_worker_counts(workers) if workers else (),
            tell=tell_stage,
        )
    print(input_tables(speed))
    if flags.json is not None:
        write_json(flags.json, {"data": told, **dataclasses.asdict(speed)})


def _model_sizes(config: ConfigDict | None) -> tuple[int, int]:
    """Side of the images in pixels, and tokens of a text."""
    from tcl_jax.models.clip import VARIANTS
    from tcl_jax.training.build import clip_config

    clip = VARIANTS["ViT-B/16"] if config is None else clip_config(config)
    return clip.resolution, clip.context_length


def _augmentation(config: ConfigDict | None, size: int) -> tuple[Compose, RandomErasing | None]:
    """The config's; the paper's where there is none."""
    from tcl_jax.data.rand_augment import RandAugment
    from tcl_jax.data.random_erasing import RandomErasing
    from tcl_jax.data.sources import make_erasing, make_transform
    from tcl_jax.data.transforms import Compose, HorizontalFlip, RandomResizedCrop

    if config is None:
        return Compose((RandomResizedCrop(size), HorizontalFlip(), RandAugment())), RandomErasing()
    transform = make_transform(config.data, size)
    assert isinstance(transform, Compose)
    return transform, make_erasing(config.data)


@contextlib.contextmanager
def _open_source(config: ConfigDict | None, size: int) -> Iterator[tuple[Source, str]]:
    """The config's data, or drawn pictures as long as the body runs; and what they are."""
    from tcl_jax.data.made_photos import HEIGHT, QUALITY, WIDTH, write_photos
    from tcl_jax.data.shard_names import find_shards
    from tcl_jax.data.sources import make_source
    from tcl_jax.data.tar_source import TarSource
    from tcl_jax.data.training_examples import Incomplete

    reason = ""
    if config is not None:
        if config.data.source != "tar" or find_shards(tuple(config.data.shards)).shards:
            source = make_source(config.data, size)
            told = f"{len(source)} pairs of {source!r}"
            if isinstance(source, Incomplete) and source.left_out:
                told += f"; left out: {source.left_out}"
            yield source, told
            return
        reason = f"; no shards are at {', '.join(config.data.shards)}"
    with tempfile.TemporaryDirectory(prefix="tcl_bench_") as folder:
        shard = Path(folder) / "drawn.tar"
        write_photos(shard, DRAWN_PICTURES)
        told = f"{DRAWN_PICTURES} drawn pictures, {WIDTH} x {HEIGHT}, JPEG quality {QUALITY}"
        yield TarSource([str(shard)], index_dir=folder), told + reason
