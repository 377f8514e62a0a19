"""The images and labels of a benchmark: found by their names, then looked into.

Both ways give all problems there are, not the first one, so that a data folder is put right once.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from tcl_jax.data.images import ImageDecodeError, read_image
from tcl_jax.errors import InputError
from tcl_jax.evaluation.benchmark import Benchmark
from tcl_jax.evaluation.benchmark_schema import complete_pattern
from tcl_jax.evaluation.keyed_files import KeyedFiles, below, split_pattern
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
        detail: what is wrong with it, or what to do.
        fatal: whether a score would be wrong or impossible.
    """

    kind: str
    path: Path
    detail: str
    fatal: bool


@dataclasses.dataclass(frozen=True)
class Paths:
    """Where a benchmark's files are: absolute, {split} filled in, images and labels with {key}."""

    images: str
    labels: str
    list: str | None


@dataclasses.dataclass(frozen=True)
class DatasetIndex:
    """What there is of a benchmark on disk.

    Attributes:
        benchmark: what was looked for.
        paths: where its files are expected.
        examples: images that have their labels.
        problems: what is missing, ambiguous, or belongs to nothing.
        images: number of images that are there, of those in the list if there is one.
        labels: the same of labels; without a list, those of images that are there.
        total: number of images that should be: of the list, or as the benchmark says, or None.
    """

    benchmark: Benchmark
    paths: Paths
    examples: tuple[Example, ...]
    problems: tuple[Problem, ...]
    images: int
    labels: int
    total: int | None


def resolve_paths(
    benchmark: Benchmark,
    root: str | os.PathLike[str],
    *,
    overrides: Mapping[str, str] | None = None,
) -> Paths:
    """Where the files of a benchmark are expected.

    Args:
        benchmark: its patterns, below `root` unless they are absolute.
        root: the folder of all data sets; the folder of one, such as VOCdevkit, will do.
        overrides: other places by "images", "labels" and "list": a folder, in which files are
            named as the benchmark says, or a pattern with {key}; relative to the working folder.

    Raises:
        InputError: if an override has another name or a wrong placeholder, or images and labels
            are the same.
    """
    root = user_path(root).absolute()
    if unknown := {*(overrides or {})} - {"images", "labels", "list"}:
        raise InputError(
            f"benchmark {benchmark.name!r}: {', '.join(sorted(unknown))} cannot be overridden; "
            "images, labels and list can"
        )
    places: dict[str, str] = {}
    folder = benchmark.folders.get(benchmark.split, benchmark.split)
    for key in ("images", "labels", "list"):
        pattern = getattr(benchmark, key)
        if given := (overrides or {}).get(key):
            file = None if key == "list" else split_pattern(pattern)[1]
            source = f"benchmark {benchmark.name!r}"
            pattern = complete_pattern(given, key, source, below=Path.cwd(), file=file)
        if pattern is not None:
            places[key] = os.path.abspath(below(root, pattern.replace("{split}", folder)))
    if places["images"] == places["labels"]:
        raise InputError(
            f"benchmark {benchmark.name!r}: images and labels are both {places['images']}; they "
            "must be different files"
        )
    return Paths(places["images"], places["labels"], places.get("list"))


def list_examples(
    benchmark: Benchmark,
    root: str | os.PathLike[str],
    *,
    overrides: Mapping[str, str] | None = None,
) -> DatasetIndex:
    """Pairs images and labels by their names; opens none of them.

    Args:
        benchmark: what to list, for its split.
        root: as `resolve_paths`.
        overrides: as `resolve_paths`.

    Returns:
        Examples sorted by key, or in the order of the list file, and the problems: what is
        missing, ambiguous, or belongs to nothing. Names that begin with a dot are passed over.

    Raises:
        InputError: as `resolve_paths`.
        OSError: if a folder or list is there and cannot be read.
    """
    paths = resolve_paths(benchmark, root, overrides=overrides)
    images, labels = KeyedFiles(paths.images), KeyedFiles(paths.labels)
    images.scan(other=labels)
    labels.scan(other=images)
    hint = benchmark.hint
    problems = [
        Problem("missing folder", Path(files.folder), hint, True)
        for files in (images, labels)
        if not files.exists
    ]
    keys: list[str] = sorted(images.by_key)
    counted = {*images.by_key} if images.exists else {*labels.by_key}
    total = expected = benchmark.splits.get(benchmark.split)
    if paths.list is not None and not os.path.isfile(paths.list):
        keys = []
        problems.append(Problem("missing list", Path(paths.list), hint, True))
    elif paths.list is not None:
        keys, wrong = _read_list(Path(paths.list), images)
        problems += wrong
        counted, total = {*keys}, len(keys)
    for files, what in ((images, "images"), (labels, "labels")):
        for path, other in files.doubles:
            detail = (
                f"{other} has the same key; move one of them away, or give {what} as "
                f"{files.folder}/{{key}}{path.suffix} if all end so"
            )
            problems.append(Problem("same key twice", path, detail, True))
    examples = []
    for key in keys:
        image, label = images.by_key.get(key), labels.by_key.get(key)
        if image is not None and label is not None:
            examples.append(Example(key, image, label))
        if image is None and images.exists:
            why = f"named in {paths.list}. {hint}".strip()
            problems.append(Problem("missing image", images.expected(key), why, True))
        elif label is None and labels.exists:
            problems.append(Problem("missing label", labels.expected(key), hint, True))
    problems += _strays(images, labels)
    where = Path(paths.list or images.folder)
    if keys and expected not in (None, len(keys)):
        detail = f"{len(keys)} of {expected} images are there"
        problems.append(Problem("image count", where, detail, False))
    if not keys and where.exists() and not any(p.kind == "unreadable list" for p in problems):
        why = f"nothing here is named as {paths.images}" if paths.list is None else "it is empty"
        problems.append(Problem("no images", where, f"{why}. {hint}".strip(), True))
    return DatasetIndex(
        benchmark=benchmark,
        paths=paths,
        examples=tuple(examples),
        problems=tuple(problems),
        images=len(counted & images.by_key.keys()),
        labels=len(counted & labels.by_key.keys()),
        total=total,
    )


def verify_examples(index: DatasetIndex, *, progress: bool) -> tuple[Problem, ...]:
    """Decodes the files of an index, in threads: whole, of one size, with allowed values.

    Args:
        index: what `list_examples` found; its own problems are not repeated.
        progress: whether to show a bar.

    Returns:
        All problems, in the order of the examples.
    """
    found: list[Problem] = []
    pool = concurrent.futures.ThreadPoolExecutor(min(_THREADS, 4 * available_cores()))
    try:
        for problems in tqdm(
            pool.map(lambda example: _verify(example, index.benchmark), index.examples),
            desc=f"checking {index.benchmark.name}",
            total=len(index.examples),
            unit="image",
            leave=False,
            disable=not progress,
        ):
            found += problems
    finally:
        pool.shutdown(cancel_futures=True)
    return tuple(found)


def describe_problems(problems: Sequence[Problem]) -> str:
    """One list for people: problems by kind, with counts, those first that prevent a score."""
    groups: dict[tuple[bool, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((not problem.fatal, problem.kind), []).append(problem)
    lines = []
    for (harmless, kind), group in sorted(groups.items(), key=lambda item: item[0][0]):
        details = {problem.detail for problem in group}
        times = f", {len(group)} times" if len(group) > 1 else ""
        cost = "" if harmless else " (cannot be scored)"
        common = details.pop() if len(details) == 1 else ""
        lines.append(f"{kind}{times}{cost}: {common}".rstrip())
        for problem in group[:_LISTED]:
            lines.append(f"  {problem.path}" + (f": {problem.detail}" if details else ""))
        if len(group) > _LISTED:
            lines.append(f"  and {len(group) - _LISTED} more")
    return "\n".join(lines) or "no problems"


# ---------------------------------------------------------------------------------- what is missing


def _read_list(path: Path, images: KeyedFiles) -> tuple[list[str], list[Problem]]:
    """Keys of a list file, each once, and what is wrong with it."""
    try:
        lines = read_text(path).splitlines()
    except ValueError as error:
        return [], [Problem("unreadable list", path, str(error), True)]
    keys: dict[str, tuple[int, str]] = {}
    problems = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        key = images.named(line)
        if key in keys:
            first, other = keys[key]
            detail = f"lines {first}, {other!r}, and {number}, {line!r}, are the image {key!r}"
            # Two paths may be two images, of which one is not there; one path counts once.
            problems.append(Problem("listed twice", path, detail, line != other))
        elif key:
            keys[key] = number, line
    return [*keys], problems


def _strays(images: KeyedFiles, labels: KeyedFiles) -> Iterator[Problem]:
    """Files that belong to nothing; label folders may hold more than labels, as Cityscapes' do."""
    for key, path in labels.by_key.items() if images.exists else ():
        if key not in images.by_key:
            detail = f"there is no {images.file.replace('{key}', key)} in {images.folder}"
            yield Problem("label without image", path, detail, False)
    for path in images.others:
        yield Problem("stray file", path, f"images are named {images.file}", False)


# --------------------------------------------------------------------------------- looking into one


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
        problems.append(Problem("damaged image", example.image, detail, True))
    try:
        raw = read_label(example.label)
    except LabelError as error:
        return [*problems, Problem("unreadable label", example.label, str(error), True)]
    if sizes and raw.shape not in sizes:
        height, width = size
        detail = (
            f"the label is {raw.shape[1]} x {raw.shape[0]} and {example.image} is {width} x "
            f"{height} pixels; if labels were drawn on photos before their EXIF orientation was "
            'applied, give --exif=ignore (exif = "ignore" in TOML)'
        )
        problems.append(Problem("sizes that differ", example.label, detail, True))
    try:
        to_classes(raw, benchmark)
    except LabelError as error:
        problems.append(Problem("wrong label values", example.label, str(error), True))
    return problems
