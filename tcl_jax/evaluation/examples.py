"""The images and labels of a benchmark: found by their names, then looked into.

Both ways give all problems there are, not the first one, so that a data folder is put right once.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from tcl_jax.data.images import ImageDecodeError, read_image
from tcl_jax.errors import InputError, as_input_error
from tcl_jax.evaluation.benchmark import Benchmark
from tcl_jax.evaluation.keyed_files import KeyedFiles
from tcl_jax.evaluation.labels import LabelError, read_label, to_classes
from tcl_jax.files import read_text, user_path
from tcl_jax.parallel.cores import available_cores

_LISTED = 10
_THREADS = 32


@dataclasses.dataclass(frozen=True)
class Example:
    """An image and its label map."""

    key: str
    image: Path
    label: Path


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something wrong with the data.

    Attributes:
        kind: the sort of problem, in words; problems are grouped by it.
        path: the file or folder, or where it should be.
        detail: what is wrong with it, if the kind does not say it.
        fatal: whether a score would be wrong or impossible.
    """

    kind: str
    path: Path
    detail: str = ""
    fatal: bool = True


@dataclasses.dataclass(frozen=True)
class DatasetIndex:
    """What there is of a benchmark on disk.

    Attributes:
        benchmark: what was looked for.
        examples: images that have their labels.
        problems: what is missing or ambiguous.
        images: number of images that are there, of those in the list if there is one.
        labels: the same of labels; without a list, those of images that are there.
        total: number of images that should be: of the list, or as the benchmark says, or None.
    """

    benchmark: Benchmark
    examples: tuple[Example, ...]
    problems: tuple[Problem, ...]
    images: int
    labels: int
    total: int | None

    @property
    def is_complete(self) -> bool:
        """Whether a score can be made of all that the benchmark has."""
        expected = self.benchmark.splits.get(self.benchmark.split) or 1
        return len(self.examples) >= expected and not any(p.fatal for p in self.problems)


def resolve_paths(benchmark: Benchmark, root: str | os.PathLike[str]) -> Benchmark:
    """The benchmark with absolute paths, {split} filled in.

    Args:
        benchmark: its paths are below `root` unless they are absolute.
        root: the folder of all data sets.

    Raises:
        InputError: if images and labels are the same.
    """
    root = user_path(root).absolute()
    folder = benchmark.folders.get(benchmark.split, benchmark.split)

    def resolve(pattern: str) -> str:
        return os.path.abspath(root / pattern.replace("{split}", folder))

    images, labels = resolve(benchmark.images), resolve(benchmark.labels)
    listed = None if benchmark.list is None else resolve(benchmark.list)
    if images == labels:
        raise InputError(
            f"benchmark {benchmark.name!r}: images and labels are both {images}; they must be "
            "different files"
        )
    return dataclasses.replace(benchmark, images=images, labels=labels, list=listed)


def list_examples(benchmark: Benchmark, root: str | os.PathLike[str]) -> DatasetIndex:
    """Pairs images and labels by their names; opens none of them.

    Args:
        benchmark: what to list, for its split.
        root: as `resolve_paths`.

    Returns:
        Examples sorted by key, or in the order of the list file, and the problems. Names that begin
        with a dot are passed over.

    Raises:
        InputError: as `resolve_paths`, or if the list cannot be read.
        OSError: if a folder is there and cannot be read.
    """
    paths = resolve_paths(benchmark, root)
    images = KeyedFiles(paths.images, other=paths.labels)
    labels = KeyedFiles(paths.labels, other=paths.images)
    absent = {files.folder for files in (images, labels) if not os.path.isdir(files.folder)}
    problems = [Problem("missing folder", Path(folder)) for folder in sorted(absent)]
    keys: Sequence[str] = sorted(images.by_key)
    counted = {*keys} if images.folder not in absent else {*labels.by_key}
    total = benchmark.splits.get(benchmark.split)
    if paths.list is not None and not os.path.isfile(paths.list):
        keys = ()
        problems.append(Problem("missing list", Path(paths.list)))
    elif paths.list is not None:
        with as_input_error(f"benchmark {benchmark.name!r}: the list {paths.list} cannot be read"):
            lines = filter(None, map(str.strip, read_text(paths.list).splitlines()))
        keys = tuple(dict.fromkeys(map(images.named, lines)))
        counted, total = {*keys}, len(keys)
    for files in (images, labels):
        for path, other in files.doubles:
            problems.append(Problem("same key twice", path, f"{other} has the same key"))
    examples = []
    for key in keys:
        image, label = images.by_key.get(key), labels.by_key.get(key)
        if image is not None and label is not None:
            examples.append(Example(key, image, label))
        elif image is None and images.folder not in absent:
            detail = f"named in {paths.list}"
            problems.append(Problem("missing image", images.expected(key), detail))
        elif image is not None and labels.folder not in absent:
            problems.append(Problem("missing label", labels.expected(key)))
    for key in sorted(labels.by_key.keys() - images.by_key.keys()) if images.by_key else ():
        problems.append(Problem("label without image", labels.by_key[key], fatal=False))
    if not keys and not problems:
        detail = f"nothing here is named as {paths.images}" if paths.list is None else "it is empty"
        problems.append(Problem("no images", Path(paths.list or images.folder), detail))
    return DatasetIndex(
        benchmark=benchmark,
        examples=tuple(examples),
        problems=tuple(problems),
        images=len(counted & images.by_key.keys()),
        labels=len(counted & labels.by_key.keys()),
        total=total,
    )


def verify_examples(
    index: DatasetIndex, examples: Sequence[Example] | None = None, *, progress: bool
) -> DatasetIndex:
    """Decodes files of an index, in threads: whole, of one size, with allowed values.

    Args:
        index: what `list_examples` found.
        examples: those to look into; None: all.
        progress: whether to show a bar.

    Returns:
        The index with all problems, in the order of the examples.
    """
    examples = index.examples if examples is None else examples
    found = list(index.problems)
    pool = concurrent.futures.ThreadPoolExecutor(min(_THREADS, 4 * available_cores()))
    try:
        for problems in tqdm(
            pool.map(lambda example: _verify(example, index.benchmark), examples),
            desc=f"checking {index.benchmark.name}",
            total=len(examples),
            unit="image",
            leave=False,
            disable=not progress,
        ):
            found += problems
    finally:
        pool.shutdown(cancel_futures=True)
    return dataclasses.replace(index, problems=tuple(found))


def describe_dataset(index: DatasetIndex) -> str:
    """A block of lines: how much is there, what is wrong, and what to do about it.

    Problems are grouped by kind, those first that prevent a score.
    """
    benchmark = index.benchmark
    of_all = "" if index.total is None else f" of {index.total}"
    lines = [
        f"{benchmark.name} {'complete' if index.is_complete else 'incomplete'}: "
        f"{benchmark.title}, {benchmark.split}",
        f"  images     {index.images}{of_all}",
        f"  labels     {index.labels}{of_all}",
    ]
    groups: dict[tuple[bool, str], list[Problem]] = {}
    for problem in sorted(index.problems, key=lambda problem: not problem.fatal):
        groups.setdefault((problem.fatal, problem.kind), []).append(problem)
    for (fatal, kind), group in groups.items():
        times = f", {len(group)} times" if len(group) > 1 else ""
        lines.append(f"  {kind}{times}" + " (cannot be scored)" * fatal)
        lines += [
            f"    {one.path}" + f": {one.detail}" * bool(one.detail) for one in group[:_LISTED]
        ]
        if len(group) > _LISTED:
            lines.append(f"    and {len(group) - _LISTED} more")
    if benchmark.hint and not index.is_complete:
        lines.append(f"  to do      {benchmark.hint}")
    return "\n".join(lines)


def _verify(example: Example, benchmark: Benchmark) -> list[Problem]:
    """What is wrong with an image or its label."""
    problems: list[Problem] = []
    sizes = set()
    try:
        size = read_image(example.image).shape[:2]
        # As stored, an image may lie on its side; which of them do is not asked here.
        sizes = {size, size[::-1]} if benchmark.exif == "ignore" else {size}
    except ImageDecodeError as error:
        detail = str(error).removeprefix(f"{example.image}: ")
        problems.append(Problem("damaged image", example.image, detail))
    try:
        raw = read_label(example.label)
    except LabelError as error:
        return [*problems, Problem("unreadable label", example.label, str(error))]
    if sizes and raw.shape not in sizes:
        height, width = size
        detail = (
            f"the label is {raw.shape[1]} x {raw.shape[0]} and {example.image} is {width} x "
            f"{height} pixels; if labels were drawn on photos before their EXIF orientation was "
            'applied, give --exif=ignore (exif = "ignore" in TOML)'
        )
        problems.append(Problem("sizes that differ", example.label, detail))
    try:
        to_classes(raw, benchmark)
    except LabelError as error:
        problems.append(Problem("wrong label values", example.label, str(error)))
    return problems
