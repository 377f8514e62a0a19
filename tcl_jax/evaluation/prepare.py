"""Labels that the publishers of a data set do not ship, derived from those that they do.

- coco_stuff, coco_object: KEY_labelTrainIds.png and KEY_instanceTrainIds.png from the KEY.png of
  COCO-Stuff's stuffthingmaps_trainval2017.zip, whose values are COCO's category ids minus 1.
- cityscapes: *_labelTrainIds.png from *_labelIds.png. Both are drawn from the same polygons in the
  same order, so replacing the values equals drawing again.
- context, context59: KEY.png from the KEY.mat of PASCAL-Context, and the list of images, where it
  is missing, from that of PASCAL VOC 2010.

The results are PNGs of one 8-bit channel with the values that mmsegmentation's and GroupViT's
converters give.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import glob
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int16, Integer, Shaped, UInt8
from PIL import Image
from tqdm import tqdm

from tcl_jax.errors import InputError, RunError
from tcl_jax.evaluation import pascal_context
from tcl_jax.evaluation.benchmark import Benchmark
from tcl_jax.evaluation.examples import resolve_paths
from tcl_jax.evaluation.labels import LabelError, read_label
from tcl_jax.files import whole_file

SHOWN_FAILURES = 50

_WRONG = -1
_LISTED = 8
_PNG_LEVEL = 3  # 6 takes half as long again and saves a seventh

# Values of a PNG; the tables' last entry is for all that are larger.
_PNG_VALUES = 256
_THINGS, _STUFF = range(91), range(91, 182)
_UNUSED_THINGS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
_CITYSCAPES = range(34)
_CITYSCAPES_CLASSES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be made of one split of a benchmark.

    Attributes:
        benchmark: it, with its split.
        sources: what every label is made of, by the label's path.
        folder: where the labels go.
        expected: how many labels there should be.
        image_list: path and keys of a list of images that is to be written too, or None.
        table: new values by old ones, as of `train_id_table`.
        read: gives the values of a source, or raises `LabelError`.
    """

    benchmark: Benchmark
    sources: Mapping[Path, Path]
    folder: Path
    expected: int
    image_list: tuple[Path, tuple[str, ...]] | None
    table: Int16[np.ndarray, " n"]
    read: Callable[[Path], Shaped[np.ndarray, "h w"]]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What became of a plan: labels made now, labels that were there, and failures in words."""

    made: int
    kept: int
    failed: tuple[str, ...]


def needs_preparation(benchmark: Benchmark) -> bool:
    """Whether a benchmark's labels are none that are published, and `plan_labels` knows them."""
    return benchmark.name in _PLANS


def plan_labels(
    benchmark: Benchmark, root: str | os.PathLike[str], *, mat: str | os.PathLike[str] | None = None
) -> Plan:
    """Finds the sources of a benchmark's labels by their names; opens none of them.

    Args:
        benchmark: one that `needs_preparation`, for its split.
        root: the folder of all data sets.
        mat: for context and context59: folder of the .mat files, if it is none of the usual ones.

    Raises:
        InputError: if sources are not where they should be, or PASCAL-Context's list of images or
            names of classes are not its own.
    """
    return _PLANS[benchmark.name](benchmark, root, mat)


def make_labels(plan: Plan, *, threads: int, progress: bool) -> Prepared:
    """Makes the labels of a plan, but for those that are there and as new as their sources.

    Labels are whole or absent, whatever interrupts, and the next call goes on. Threads are as fast
    as processes here and need no start: reading, inflating and deflating release Python's lock.

    Args:
        plan: of `plan_labels`.
        threads: how many labels to work on at once.
        progress: whether to show a bar, and the first `SHOWN_FAILURES` failures.

    Raises:
        RunError: if a file cannot be written.
    """
    if plan.image_list is not None:
        path, keys = plan.image_list
        with _writing(path), whole_file(path) as temporary:
            temporary.write_text("".join(f"{key}\n" for key in keys), encoding="utf-8")
    todo = [path for path, source in plan.sources.items() if not _is_made(path, source)]
    kept = len(plan.sources) - len(todo)
    failed: list[str] = []
    bar = tqdm(
        desc=f"{plan.benchmark.name} {plan.benchmark.split}",
        total=len(plan.sources),
        initial=kept,
        unit="label",
        disable=not progress or not todo,
    )
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        jobs = [pool.submit(_make, plan, path) for path in todo]
        for job in concurrent.futures.as_completed(jobs):
            try:
                job.result()
            except LabelError as error:
                failed.append(str(error))
                if progress and len(failed) <= SHOWN_FAILURES:
                    bar.write(f"failed: {error}", file=sys.stderr)
            bar.update()
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()
    return Prepared(len(todo) - len(failed), kept, tuple(sorted(failed)))


# ------------------------------------------------------------------------------------------ values


def train_id_table(benchmark: str) -> Int16[np.ndarray, " n"]:
    """New value of every old one, -1 where there is none; the last entry is for all beyond.

    Args:
        benchmark: "coco_stuff": the 80 things become 0 to 79 and the 91 kinds of stuff 80 to 170,
            255 stays. "coco_object": things become 1 to 80, all others 0, the background, 255 too.
            "cityscapes": the 19 classes that are judged become 0 to 18, all others 255. "context"
            and "context59": the 59 classes become 1 to 59, all others 0.
    """
    size = _PNG_VALUES
    things = [value for value in _THINGS if value not in _UNUSED_THINGS]
    if benchmark == "coco_stuff":
        entries = {value: i for i, value in enumerate([*things, *_STUFF])} | {255: 255}
    elif benchmark == "coco_object":
        entries = dict.fromkeys((*_STUFF, 255), 0) | {v: i for i, v in enumerate(things, start=1)}
    elif benchmark == "cityscapes":
        classes = {value: i for i, value in enumerate(_CITYSCAPES_CLASSES)}
        entries = dict.fromkeys((*_CITYSCAPES, 255), 255) | classes
    else:
        size = pascal_context.MAX_VALUE + 1
        classes = {value: i for i, value in enumerate(pascal_context.CLASSES, start=1)}
        entries = dict.fromkeys(range(size), 0) | classes
    table = np.full(size + 1, _WRONG, np.int16)
    table[[*entries]] = [*entries.values()]
    return table


def replace_values(
    raw: Integer[np.ndarray, "h w"], table: Int16[np.ndarray, " n"]
) -> UInt8[np.ndarray, "h w"]:
    """Replaces every value by its entry in a `train_id_table`.

    Raises:
        LabelError: if there are values without an entry; it lists them.
    """
    index = raw if raw.dtype == np.uint8 else np.clip(raw.astype(np.int64), -1, len(table) - 1)
    values = table[index]
    if values.min(initial=0) == _WRONG:
        wrong = np.unique(raw[values == _WRONG]).tolist()
        more = f" and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
        raise LabelError(
            f"it has the value(s) {', '.join(map(str, wrong[:_LISTED]))}{more}, which the data set "
            "does not have; it is damaged, or another file than the published one"
        )
    return values.astype(np.uint8)


# ------------------------------------------------------------------------------------------- plans


def _plan_png(
    ending: str, source_ending: str, names: str
) -> Callable[[Benchmark, str | os.PathLike[str], object], Plan]:
    """A way to plan labels whose sources lie beside them and differ in the ending."""

    def plan(benchmark: Benchmark, root: str | os.PathLike[str], mat: object) -> Plan:
        del mat
        folder, _, after = resolve_paths(benchmark, root).labels.partition("{key}")
        pattern = f"{names}{after.removesuffix(ending)}{source_ending}"
        found = sorted(glob.glob(glob.escape(folder) + pattern))
        sources = [path for path in found if not path.endswith("TrainIds.png")]
        if not sources:
            what = "there are none" if os.path.isdir(folder) else "this folder does not exist"
            raise InputError(
                f"the labels of {benchmark.name} are made of the files {pattern} in {folder}, but "
                f"{what}. {benchmark.hint}"
            )
        return Plan(
            benchmark=benchmark,
            sources={Path(p.removesuffix(source_ending) + ending): Path(p) for p in sources},
            folder=Path(folder),
            expected=benchmark.splits[benchmark.split],
            image_list=None,
            table=train_id_table(benchmark.name),
            read=read_label,
        )

    return plan


def _plan_context(
    benchmark: Benchmark, root: str | os.PathLike[str], mat: str | os.PathLike[str] | None
) -> Plan:
    paths = resolve_paths(benchmark, root)
    folder, list_path = Path(paths.labels).parent, Path(paths.list or "")
    home = folder.parent
    annotations = pascal_context.find_annotations(home, mat)
    image_list = None
    if list_path.is_file():
        keys = pascal_context.read_keys(list_path)
    else:
        keys = pascal_context.voc_keys(home, benchmark.split, list_path)
        image_list = (list_path, keys)
    return Plan(
        benchmark=benchmark,
        sources={folder / f"{key}.png": annotations / f"{key}.mat" for key in keys},
        folder=folder,
        expected=len(keys),
        image_list=image_list,
        table=train_id_table(benchmark.name),
        read=pascal_context.read_label_map,
    )


_PLANS: Mapping[str, Callable[..., Plan]] = {
    "context": _plan_context,
    "context59": _plan_context,
    "coco_object": _plan_png("_instanceTrainIds.png", ".png", "*"),
    "coco_stuff": _plan_png("_labelTrainIds.png", ".png", "*"),
    "cityscapes": _plan_png("_labelTrainIds.png", "_labelIds.png", "*/*"),
}


# --------------------------------------------------------------------------------------- one label


def _is_made(path: Path, source: Path) -> bool:
    """Whether a label is there, not empty, and as new as its source, if that is still there."""
    try:
        made = path.stat()
    except FileNotFoundError:
        return False
    try:
        since = source.stat().st_mtime_ns
    except FileNotFoundError:
        since = 0
    return made.st_size > 0 and made.st_mtime_ns >= since


def _make(plan: Plan, path: Path) -> None:
    source = plan.sources[path]
    try:
        labels = replace_values(plan.read(source), plan.table)
    except LabelError as error:
        raise LabelError(f"{source}: {error}") from error
    with _writing(path), whole_file(path) as temporary:
        Image.fromarray(labels).save(temporary, format="PNG", compress_level=_PNG_LEVEL)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns a failure to write, which the next label would meet too, into the end of the run."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror or error}; free space or correct the "
            "rights of the folder, and run the command again: it goes on from here"
        ) from error
