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
import glob
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int16, Integer, UInt8
from PIL import Image
from tqdm import tqdm

from tcl_jax.errors import InputError, RunError, shorten
from tcl_jax.evaluation import pascal_context
from tcl_jax.evaluation.benchmark import Benchmark, spans
from tcl_jax.evaluation.examples import resolve_paths
from tcl_jax.evaluation.labels import LabelError, read_label
from tcl_jax.files import whole_file
from tcl_jax.parallel.cores import available_cores

_WRONG = -1
_PNG_LEVEL = 3  # 6 takes half as long again and saves a seventh

# How labels end, what the files that they are made of end with, and where these are.
_ENDINGS = {
    "coco_object": ("_instanceTrainIds.png", ".png", "*"),
    "coco_stuff": ("_labelTrainIds.png", ".png", "*"),
    "cityscapes": ("_labelTrainIds.png", "_labelIds.png", "*/*"),
}
_OF_MAT_FILES = ("context", "context59")

# Values of a PNG; the tables' last entry is for all that are larger.
_PNG_VALUES = 256
_THINGS, _STUFF = range(91), range(91, 182)
_UNUSED_THINGS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
_CITYSCAPES = range(34)
_CITYSCAPES_CLASSES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def needs_preparation(benchmark: Benchmark) -> bool:
    """Whether a benchmark's labels are none that are published, and `make_labels` knows them."""
    return benchmark.name in (*_ENDINGS, *_OF_MAT_FILES)


def find_sources(benchmark: Benchmark, root: str | os.PathLike[str]) -> dict[Path, Path]:
    """What every label is made of, by the label's path, found by names; opens none of them.

    Of context and context59 it also makes the list of images, where that is missing.

    Args:
        benchmark: one that `needs_preparation`, for its split.
        root: the folder of all data sets.

    Raises:
        InputError: if sources are not where they should be.
    """
    paths = resolve_paths(benchmark, root)
    if benchmark.name in _OF_MAT_FILES:
        labels = Path(paths.labels).parent
        annotations = pascal_context.find_annotations(labels.parent)
        listed = Path(paths.list or "")
        keys = pascal_context.read_or_make_list(listed, labels.parent, benchmark.split)
        return {labels / f"{key}.png": annotations / f"{key}.mat" for key in keys}
    ending, source_ending, names = _ENDINGS[benchmark.name]
    folder, _, after = paths.labels.partition("{key}")
    pattern = f"{names}{after.removesuffix(ending)}{source_ending}"
    found = sorted(glob.glob(glob.escape(folder) + pattern))
    sources = [path for path in found if not path.endswith("TrainIds.png")]
    if not sources:
        raise InputError(
            f"the labels of {benchmark.name} are made of the files {pattern} in {folder}, but "
            f"there are none. {benchmark.hint}"
        )
    return {Path(path.removesuffix(source_ending) + ending): Path(path) for path in sources}


def make_labels(benchmark: Benchmark, sources: Mapping[Path, Path]) -> int:
    """Makes labels, but for those that are there and as new as their sources.

    Labels are whole or absent, whatever interrupts, and the next call goes on.

    Args:
        benchmark: what they are for.
        sources: of `find_sources`.

    Returns:
        How many were made.

    Raises:
        RunError: if some cannot be made; all others are.
        OSError: if a file cannot be written.
    """
    todo = [path for path, source in sources.items() if not _is_made(path, source)]
    table = train_id_table(benchmark.name)
    read = pascal_context.read_label_map if benchmark.name in _OF_MAT_FILES else read_label

    def make(path: Path) -> str | None:
        """Makes a label; returns why it could not be made."""
        try:
            labels = replace_values(read(sources[path]), table)
        except LabelError as error:
            return f"{sources[path]}: {error}"
        with whole_file(path) as temporary:
            Image.fromarray(labels).save(temporary, format="PNG", compress_level=_PNG_LEVEL)
        return None

    pool = concurrent.futures.ThreadPoolExecutor(available_cores())
    try:
        bar = tqdm(
            pool.map(make, todo),
            desc=f"{benchmark.name} {benchmark.split}",
            total=len(sources),
            initial=len(sources) - len(todo),
            unit="label",
            disable=not todo,
        )
        failed = [message for message in bar if message is not None]
    finally:
        pool.shutdown(cancel_futures=True)
    if failed:
        raise RunError(
            f"{benchmark.name} {benchmark.split}: {len(failed)} of {len(sources)} labels could not "
            f"be made: {shorten(failed)}"
        )
    return len(todo)


def _is_made(path: Path, source: Path) -> bool:
    """Whether a label is there, not empty, and as new as its source, if that is still there."""
    if not path.exists():
        return False
    since = source.stat().st_mtime_ns if source.exists() else 0
    made = path.stat()
    return made.st_size > 0 and made.st_mtime_ns >= since


# ------------------------------------------------------------------------------------------ values


def train_id_table(benchmark: str) -> Int16[np.ndarray, " n"]:
    """New value of every old one, -1 where there is none; the last entry is for all beyond.

    Args:
        benchmark: "coco_stuff": the 80 things become 0 to 79 and the 91 kinds of stuff 80 to 170,
            255 stays. "coco_object": things become 1 to 80, all others 0, the background, 255 too.
            "cityscapes": the 19 classes in use become 0 to 18, all others 255. "context"
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
        raise LabelError(
            f"it has the value(s) {spans(np.unique(raw[values == _WRONG]).tolist())}, which the "
            "data set does not have; it is damaged, or another file than the published one"
        )
    return values.astype(np.uint8)
