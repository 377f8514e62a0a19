r"""Measures how fast parts of the method are on this machine.

    python -m tcl_jax.bench input
    python -m tcl_jax.bench input --config=configs/tcl.py \
        --config.data.shards="('data/cc3m/*.tar',)" --json=input.json
    python -m tcl_jax.bench train --batch_sizes=64,256 --json=train.json
    python -m tcl_jax.bench masks --classes=20,150 --json=masks.json
    python -m tcl_jax.bench evaluate --classes=20,150 --json=evaluate.json

`input`: images per second of one core for the making of training images, stage by stage, beside
the bare loop (Pillow decodes, crops and resizes), where the time goes, and how the whole scales
with worker processes. Without a config, or where its shards are not there, it draws pictures that
cost as much as photographs. Takes about a minute.

`train`: time of a training step in both phases, images per second, MFU (the method's own FLOPs by
formula over time and the device's peak), memory, and the time of the parts. `masks`: the same of a
window's masks, with and without PAMR. `evaluate`: images per second of judging made-up images from
file to counts, and what devices and host need of it. All take ViT-B/16 unless --variant, --config
or weights say otherwise, and random weights unless they are given, so that nothing is downloaded.

`train` and `masks` can measure the official PyTorch code beside this, with the same weights and
batch on the same device, in alternation, and give ratios of times, once the float32 results of both
agree. The code and a Python with its packages (PyTorch, torchvision, mmcv 1, omegaconf, einops,
termcolor, ftfy, regex, setuptools below 70) are the user's:

    git clone https://github.com/kakaobrain/tcl ../tcl
    python -m tcl_jax.bench train --batch_sizes=64,256 --dtype=bfloat16 \
        --against=../tcl --against_python=../tcl_env/bin/python --json=train.json
    python -m tcl_jax.bench masks --classes=20,150 --dtype=bfloat16 \
        --against=../tcl --against_python=../tcl_env/bin/python --json=masks.json

Exit codes: 0 done, 1 failure, or results that differ from the official code's, 2 bad input.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tcl_jax.bench.evaluate import bench_evaluate
from tcl_jax.bench.masks import bench_masks
from tcl_jax.bench.subject import BUSY
from tcl_jax.bench.train import bench_train
from tcl_jax.commands import command_parser
from tcl_jax.config_flags import add_config_flag, read_config, show_own_log
from tcl_jax.errors import InputError, run_command
from tcl_jax.files import write_json

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from tcl_jax.bench.input_speed import InputSpeed, Spread
    from tcl_jax.data.random_erasing import RandomErasing
    from tcl_jax.data.rows import Source
    from tcl_jax.data.transforms import Chain

DRAWN_PICTURES = 128


def input_parser() -> argparse.ArgumentParser:
    """The flags of `input`."""
    p = command_parser("bench input", __doc__)
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
    return p


def bench_input(argv: Sequence[str]) -> None:
    """From flags to the speed of the input."""
    flags, rest = input_parser().parse_known_args(argv)
    config = read_config(flags.config, rest, "bench input")
    # Imported here so that --help and mistakes in flags are answered at once.
    from tcl_jax.bench.input_speed import default_worker_counts, measure
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
            tell=lambda line: print(f"{line} ...", file=sys.stderr, flush=True),
        )
    print(describe(speed))
    if flags.json is not None:
        write_json(flags.json, {"data": told, **dataclasses.asdict(speed)})


def _model_sizes(config: ConfigDict | None) -> tuple[int, int]:
    """Side of the images in pixels, and tokens of a text."""
    from tcl_jax.models.clip import choose_sizes

    variant, sizes = "ViT-B/16", {}
    if config is not None:
        variant, sizes = config.model.variant, config.model.sizes.to_dict()
    clip = choose_sizes(variant, sizes)
    return clip.resolution, clip.context_length


def _augmentation(config: ConfigDict | None, size: int) -> tuple[Chain, RandomErasing | None]:
    """The config's; the paper's where there is none."""
    from tcl_jax.data.rand_augment import RandAugment
    from tcl_jax.data.random_erasing import RandomErasing
    from tcl_jax.data.sources import make_erasing, make_transform
    from tcl_jax.data.transforms import Chain, HorizontalFlip, RandomResizedCrop

    if config is None:
        return Chain((RandomResizedCrop(size), HorizontalFlip(), RandAugment())), RandomErasing()
    transform = make_transform(config.data, size)
    assert isinstance(transform, Chain)
    return transform, make_erasing(config.data)


@contextlib.contextmanager
def _open_source(config: ConfigDict | None, size: int) -> Iterator[tuple[Source, str]]:
    """The config's data, or drawn pictures as long as the body runs; and what they are."""
    from tcl_jax.data.made_photos import HEIGHT, QUALITY, WIDTH, write_photos
    from tcl_jax.data.shard_names import find_shards
    from tcl_jax.data.sources import make_source
    from tcl_jax.data.tar_source import TarSource

    reason = ""
    if config is not None:
        if config.data.source != "tar" or find_shards(tuple(config.data.shards)).shards:
            source = make_source(config.data, size)
            yield source, f"{len(source)} pairs of {source!r}"
            return
        reason = f"; no shards are at {', '.join(config.data.shards)}"
    with tempfile.TemporaryDirectory(prefix="tcl_bench_") as folder:
        shard = Path(folder) / "drawn.tar"
        write_photos(shard, DRAWN_PICTURES)
        told = f"{DRAWN_PICTURES} drawn pictures, {WIDTH} x {HEIGHT}, JPEG quality {QUALITY}"
        yield TarSource([str(shard)], index_dir=folder), told + reason


# ------------------------------------------------------------------------------------ for people


def describe(speed: InputSpeed) -> str:
    """The figures as text."""
    pipeline = speed.stages[-1]
    lines = [
        f"images: {speed.images} measured, {speed.mean_megapixels:.2f} megapixels and "
        f"{speed.mean_bytes / 1000:.0f} kB on average, made {speed.image_size} x "
        f"{speed.image_size}",
        f"machine: {speed.cores} cores, load {speed.load:.1f} before the start",
    ]
    if speed.load > BUSY * speed.cores:
        lines.append("  others are using it: figures by the clock come out too low")
    lines += [
        "",
        "one process: images a second of CPU time, median (lowest to highest round)",
        f"  {'stage, with those above it':28}{'per CPU second':>24}{'of bare loop':>14}"
        f"{'by the clock':>14}",
    ]
    for stage in speed.stages:
        lines.append(
            f"  {stage.name:28}{_spread(stage.images_per_cpu_second):>24}"
            f"{stage.of_bare_loop.median:>13.0%} {stage.images_per_second.median:>13.0f}"
        )
    lines += ["", "where the CPU time of the full pipeline goes"]
    for part, share in speed.shares.items():
        milliseconds = 1000 * share / pipeline.images_per_cpu_second.median
        lines.append(f"  {part:28}{share:>6.1%}  {milliseconds:.3f} ms an image")
    if speed.scaling:
        lines += ["", "worker processes: images a second by the clock"]
        lines += [
            f"  {scaling.workers:<4}{_spread(scaling.images_per_second):>24}"
            f"  {scaling.of_linear.median:.2f} x linear"
            for scaling in speed.scaling
        ]
    return "\n".join(lines)


def _spread(spread: Spread) -> str:
    return f"{spread.median:.0f} ({spread.low:.0f} to {spread.high:.0f})"


# -------------------------------------------------------------------------------------- the command

COMMANDS: Mapping[str, Callable[[Sequence[str]], None]] = {
    "input": bench_input,
    "train": lambda argv: bench_train(argv, __doc__),
    "masks": lambda argv: bench_masks(argv, __doc__),
    "evaluate": lambda argv: bench_evaluate(argv, __doc__),
}


def run(argv: Sequence[str]) -> None:
    """Chooses what to measure by the first argument."""
    if argv and argv[0] in ("-h", "--help"):
        print(f"{__doc__}\nThe flags: python -m tcl_jax.bench {'|'.join(COMMANDS)} --help")
        return
    if not argv or argv[0] not in COMMANDS:
        raise InputError(
            (f"there is no benchmark {argv[0]!r}" if argv else "say what is to be measured")
            + f": one of {', '.join(COMMANDS)}, as in\n  python -m tcl_jax.bench input"
        )
    COMMANDS[argv[0]](argv[1:])


def main() -> None:
    """Entry point."""
    show_own_log()
    run_command(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    main()
