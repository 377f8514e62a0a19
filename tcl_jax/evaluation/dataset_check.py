"""What there is of a benchmark on disk, what is missing, and what to do about it."""

from __future__ import annotations

import dataclasses
import os
import shlex
import textwrap
from collections.abc import Iterator

from tcl_jax.errors import InputError
from tcl_jax.evaluation.benchmark import Benchmark
from tcl_jax.evaluation.examples import (
    DatasetIndex,
    describe_problems,
    list_examples,
    verify_examples,
)
from tcl_jax.evaluation.keyed_files import split_pattern
from tcl_jax.evaluation.label_coding import coding_problems
from tcl_jax.evaluation.prepare import needs_preparation, plan_labels

_WIDTH = 100
_INDENT = 13
_SHOWN_AS_COUNTS = (
    "missing folder", "missing list", "missing image", "missing label", "image count",
    "no images",
)  # fmt: skip


def check_dataset(
    benchmark: Benchmark, root: str | os.PathLike[str], *, deep: bool = False
) -> DatasetIndex:
    """What there is of a benchmark, by the names of its files.

    Args:
        benchmark: what to look for, for its split.
        root: the folder of all data sets.
        deep: whether to look into the files too, with a progress bar.

    Raises:
        OSError: if a folder or list is there and cannot be read.
    """
    index = list_examples(benchmark, root)
    if deep:
        found, values = verify_examples(index, progress=True)
        coding = coding_problems(benchmark, values, index.label_folder)
        index = dataclasses.replace(index, problems=(*index.problems, *coding, *found))
    return index


def is_complete(index: DatasetIndex) -> bool:
    """Whether a score can be made of all that the benchmark has."""
    expected = index.benchmark.splits.get(index.benchmark.split) or 1
    return len(index.examples) >= expected and not any(p.fatal for p in index.problems)


def describe_dataset(index: DatasetIndex) -> str:
    """A block of aligned lines: what is there, what is missing and where, and what to do."""
    benchmark, complete = index.benchmark, is_complete(index)
    state = "complete" if complete else "incomplete"
    lines = [f"{benchmark.name:<{_INDENT}}{state}: {benchmark.title}, {benchmark.split}"]
    lines += _field("images", _describe_count(index, "image", index.images, index.paths.images))
    lines += _field("labels", _describe_count(index, "label", index.labels, index.paths.labels))
    if index.paths.list is not None:
        lines += _field("list", _describe_list(index, index.paths.list))
    others = [p for p in index.problems if p.kind not in _SHOWN_AS_COUNTS]
    # Where a folder is missing, no file belongs to anything.
    if others and not any(p.kind == "missing folder" for p in index.problems):
        lines += textwrap.indent(describe_problems(others), "  ").splitlines()
    for step in () if complete else _steps(index):
        lines += _field("to do", step)
    return "\n".join(lines)


def _field(name: str, text: str) -> list[str]:
    """Lines of a field, with paths and commands whole."""
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"  {name}".ljust(_INDENT),
        subsequent_indent=" " * _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _describe_count(index: DatasetIndex, what: str, count: int, pattern: str) -> str:
    folder, _ = split_pattern(pattern)
    if not os.path.isdir(folder):
        return f"none, the folder {folder} does not exist"
    text = f"{count} of {index.total}" if index.total is not None else f"{count}"
    if index.total is not None and count > index.total:
        text = f"{count}, of which {index.total} are used"
    if count == 0:
        return f"{text}, none is named {pattern}"
    missing = [p.path for p in index.problems if p.kind == f"missing {what}"]
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return f"{text}, missing {missing[0]}{more}" if missing else text


def _describe_list(index: DatasetIndex, path: str) -> str:
    if not os.path.isfile(path):
        return f"missing {path}"
    expected = index.benchmark.splits.get(index.benchmark.split)
    if expected in (None, index.total):
        return path
    return f"{path} has {index.total} images where {expected} are usual"


def _steps(index: DatasetIndex) -> Iterator[str]:
    """What to do about what is missing: the command where its sources are there, else the hint."""
    benchmark, root = index.benchmark, index.root
    missing, wanted = {problem.kind for problem in index.problems}, index.total or 1
    no_images = index.images < wanted or "missing image" in missing
    no_labels = index.labels < wanted or not missing.isdisjoint(("missing list", "missing label"))
    command = None
    if no_labels and needs_preparation(benchmark):
        try:
            plan_labels(benchmark, root)
            split = "" if benchmark.split == "val" else f" --split={benchmark.split}"
            command = (
                f"python -m tcl_jax.benchmarks prepare {benchmark.name} "
                f"--data={shlex.quote(str(root))}{split}"
            )
        except InputError as error:
            no_images = True  # the hint tells of sources and images alike
            if benchmark.hint not in str(error):
                yield str(error)
    if benchmark.hint and (no_images or (no_labels and not needs_preparation(benchmark))):
        yield benchmark.hint
    if command is not None:
        yield command
