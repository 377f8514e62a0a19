"""`bench input`: how fast training images are made, beside the bare loop that any reader needs.

One process is measured by its CPU time, which other programs on the machine do not change much;
several worker processes by the clock. Stages take turns, a batch at a time, so that a slow moment
of the machine hits all of them alike; figures are medians over the rounds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcl_jax.bench.report import Report, say
from tcl_jax.commands import command_parser
from tcl_jax.config_flags import add_config_flag, read_config
from tcl_jax.errors import InputError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from tcl_jax.data.pipeline import BatchIterator
    from tcl_jax.data.training_examples import Source

BATCH_SIZE = 64
"""Images of a turn and of a batch, as the paper has on each of its GPUs."""
DRAWN_PICTURES = 128
_LEAST_ROUNDS, _WORKER_ROUNDS = 5, 3
_WARM_UP = 4  # batches of each worker, as many as may have been made ahead while others started


def bench_input(argv: Sequence[str], doc: str | None, load: float) -> None:
    """`bench input`: images per second of one process, stage by stage, and of worker processes."""
    p = command_parser("bench input", doc)
    add_config_flag(p)
    p.add_argument(
        "--seconds", type=float, default=10.0,
        help="how long to measure the stages together, and each number of workers (default 10)",
    )  # fmt: skip
    p.add_argument(
        "--workers", type=int, metavar="N",
        help="most worker processes; 0: measure none; default: as many as there are cores",
    )  # fmt: skip
    p.add_argument("--json", metavar="FILE", help="also write all figures as JSON")
    flags, rest = p.parse_known_args(argv)
    config = read_config(flags.config, rest, "bench input")

    if config is None:
        raise InputError("give the data and its augmentation by --config=FILE, as configs/tcl.py")

    from tcl_jax.data.pipeline import make_iterator
    from tcl_jax.data.sources import make_erasing, make_transform
    from tcl_jax.parallel.cores import available_cores
    from tcl_jax.training.build import abstract_experiment

    most = available_cores() if flags.workers is None else flags.workers
    if most < 0:
        raise InputError(f"--workers={most}: must be at least 0")
    if not 0 < flags.seconds < float("inf"):
        raise InputError(f"--seconds={flags.seconds}: must be a positive number of seconds")
    experiment = abstract_experiment(config)
    size = experiment.method.resolution
    how: dict[str, Any] = {
        "transform": make_transform(config.data, size),
        "erasing": make_erasing(config.data),
        "tokenizer": experiment.objective.text_encoder.tokenizer(),
        "global_batch_size": BATCH_SIZE,
    }
    with _open_source(config, size) as (source, about):
        report = Report("input", load, flags.json, "cpu", data=about, image_size=size)
        say("measuring the stages in one process")
        for row in measure_stages(source, how, flags.seconds):
            report.add("stages", row)

        def start(workers: int) -> BatchIterator:
            # Other images each time, from all over the source.
            seed = time.time_ns() % 2**32
            return make_iterator(source, **how, seed=seed, num_workers=workers)

        powers = (2**k for k in range(most.bit_length()) if 2**k < most)
        for row in measure_workers(start, [*powers, most] if most else [], flags.seconds):
            report.add("workers", row)
    report.print_tables()


@contextlib.contextmanager
def _open_source(config: ConfigDict, size: int) -> Iterator[tuple[Source, str]]:
    """The config's data, or drawn pictures as long as the body runs; and what they are."""
    from tcl_jax.bench.photos import HEIGHT, QUALITY, WIDTH, write_photos
    from tcl_jax.data.shard_names import find_shards
    from tcl_jax.data.sources import make_source
    from tcl_jax.data.tar_source import TarSource
    from tcl_jax.data.training_examples import Incomplete

    if config.data.source != "tar" or find_shards(tuple(config.data.shards)).shards:
        source = make_source(config.data, size)
        about = f"{len(source)} pairs of {source!r}"
        if isinstance(source, Incomplete) and source.left_out:
            about += f"; left out: {source.left_out}"
        yield source, about
        return
    with tempfile.TemporaryDirectory(prefix="tcl_bench_") as folder:
        shard = Path(folder) / "drawn.tar"
        write_photos(shard, DRAWN_PICTURES)
        yield (
            TarSource([str(shard)], index_dir=folder),
            f"{DRAWN_PICTURES} drawn pictures, {WIDTH} x {HEIGHT}, JPEG quality {QUALITY}; no "
            f"shards are at {', '.join(config.data.shards)}",
        )


@dataclasses.dataclass(frozen=True)
class _Sample:
    """Examples of a source whose images can be decoded, one batch of them, over and over."""

    source: Source
    indexes: list[int]

    def __len__(self) -> int:
        return BATCH_SIZE

    def __getitem__(self, place: int) -> Mapping[str, Any]:
        return self.source[self.indexes[place % len(self.indexes)]]


def _take_sample(source: Source) -> _Sample:
    import numpy as np

    from tcl_jax.data.images import ImageDecodeError, decode

    sample = _Sample(source, [])
    for place in np.linspace(0, len(source) - 1, min(len(source), BATCH_SIZE)).round().astype(int):
        image = source[int(place)]["image"]
        if not isinstance(image, bytes):
            raise InputError(
                f"{source!r} gives images as arrays of pixels: there is nothing to decode, and the "
                "bare loop cannot be measured. Give a source of encoded images, as tar shards are"
            )
        with contextlib.suppress(ImageDecodeError):
            decode(image)
            sample.indexes.append(int(place))
    if not sample.indexes:
        raise InputError(f"{source!r}: none of the images that were looked at can be decoded")
    return sample


def measure_stages(source: Source, how: dict[str, Any], seconds: float) -> list[dict[str, Any]]:
    """Rows of the bare loop (Pillow decodes, crops and resizes), then of ever more of the input.

    Args:
        source: with images as encoded bytes.
        how: arguments of `pipeline.make_iterator`; the transform begins with a crop.
        seconds: about how long to measure.

    Returns:
        For each `stage`: `images_per_cpu_second` of one process, whose threads all count;
        `of_bare_loop`, as a part of the bare loop's; `images_per_second` by the clock; and
        `time_share`, what the stage adds of the CPU time of the full pipeline.

    Raises:
        InputError: images are no bytes or cannot be decoded, or they are not cropped.
    """
    import numpy as np
    from PIL import Image

    from tcl_jax.data.pipeline import make_iterator
    from tcl_jax.data.transforms import Compose, HorizontalFlip, RandomResizedCrop

    transform, erasing = how["transform"], how["erasing"]
    crop = transform.steps[0] if transform.steps else None
    if not isinstance(crop, RandomResizedCrop):
        raise InputError(
            f"{source!r}: its images are not cropped, as the bare loop does; give a config with "
            "data.source='tar'"
        )
    sample, rng = _take_sample(source), np.random.default_rng(0)
    files = [sample[place]["image"] for place in range(BATCH_SIZE)]
    moved = Compose(
        tuple(x for x in transform.steps if isinstance(x, (type(crop), HorizontalFlip)))
    )

    def bare(place: int) -> None:
        image = Image.open(io.BytesIO(files[place])).convert("RGB")
        part = image.crop(crop.sample_box(image.height, image.width, rng))
        np.asarray(part.resize((crop.size, crop.size), Image.Resampling.BILINEAR))

    def augmented(place: int) -> None:
        transform(sample[place]["image"], rng)
        if erasing is not None:
            erasing(crop.size, crop.size, rng)

    def each(work: Callable[[int], Any]) -> Callable[[], None]:
        return lambda: [work(place) for place in range(BATCH_SIZE)].clear()

    def pipeline() -> None:
        # One batch is an epoch, so that none is made ahead.
        with contextlib.closing(make_iterator(sample, **how, seed=0, repeat=False)) as batches:
            next(batches)

    turns = {
        "bare loop": each(bare),
        "read": each(sample.__getitem__),
        "decode, crop, flip": each(lambda place: moved(sample[place]["image"], rng)),
        "augment": each(augmented),
        "full pipeline": pipeline,
    }
    begin = time.perf_counter()
    for turn in turns.values():  # also fills what is cached on first use
        turn()
    rounds = max(_LEAST_ROUNDS, round(seconds / (time.perf_counter() - begin)))
    cpu: dict[str, list[float]] = defaultdict(list)
    clock: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name, turn in turns.items():
            begin, begin_cpu = time.perf_counter(), time.process_time()
            turn()
            cpu[name].append((time.process_time() - begin_cpu) / BATCH_SIZE)
            clock[name].append((time.perf_counter() - begin) / BATCH_SIZE)
    used = {name: statistics.median(times) for name, times in cpu.items()}
    rows, before = [], 0.0
    for name, time_used in used.items():
        row: dict[str, Any] = {
            "stage": name,
            "images_per_cpu_second": 1 / time_used,
            "of_bare_loop": used["bare loop"] / time_used,
            "images_per_second": 1 / statistics.median(clock[name]),
        }
        if name != "bare loop":
            row["time_share"] = (time_used - before) / used["full pipeline"]
            before = time_used
        rows.append(row)
    return rows


def measure_workers(
    start: Callable[[int], BatchIterator], counts: Sequence[int], seconds: float
) -> list[dict[str, Any]]:
    """Rows of the full pipeline by number of worker processes, by the clock.

    Args:
        start: starts so many workers.
        counts: numbers of workers, 1 first.
        seconds: about how long to measure each.

    Returns:
        `workers`, `images_per_second` of all together, and `of_linear`, these over `workers` times
        those of one worker.
    """
    rates: dict[int, list[float]] = defaultdict(list)
    for number in range(_WORKER_ROUNDS):
        for workers in counts:
            say(f"measuring {workers} workers, round {number + 1} of {_WORKER_ROUNDS}")
            with contextlib.closing(start(workers)) as batches:
                for _ in range(_WARM_UP * workers):
                    next(batches)
                taken, begin = 0, time.perf_counter()
                # Workers finish about together: whole turns of them, or the rate is too high.
                while (spent := time.perf_counter() - begin) < seconds / _WORKER_ROUNDS:
                    for _ in range(workers):
                        next(batches)
                    taken += workers
            rates[workers].append(taken * BATCH_SIZE / spent)
    medians = {workers: statistics.median(found) for workers, found in rates.items()}
    return [
        {
            "workers": workers,
            "images_per_second": rate,
            "of_linear": rate / workers / medians[counts[0]],
        }
        for workers, rate in medians.items()
    ]
