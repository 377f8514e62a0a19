"""What there is of a benchmark on disk, what is missing, and what to do about it."""

from __future__ import annotations

import dataclasses
import os
import textwrap

from tcl_jax.evaluation.benchmark import Benchmark
from tcl_jax.evaluation.examples import (
    DatasetIndex,
    describe_problems,
    list_examples,
    verify_examples,
)
from tcl_jax.evaluation.prepare import needs_preparation

_WIDTH = 100
_INDENT = 13


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
        found = verify_examples(index, progress=True)
        index = dataclasses.replace(index, problems=(*index.problems, *found))
    return index


def is_complete(index: DatasetIndex) -> bool:
    """Whether a score can be made of all that the benchmark has."""
    expected = index.benchmark.splits.get(index.benchmark.split) or 1
    return len(index.examples) >= expected and not any(p.fatal for p in index.problems)


def describe_dataset(index: DatasetIndex) -> str:
    """A block of lines: how much is there, what is wrong, and what to do about it."""
    benchmark, complete = index.benchmark, is_complete(index)
    state = "complete" if complete else "incomplete"
    of_all = "" if index.total is None else f" of {index.total}"
    lines = [
        f"{benchmark.name:<{_INDENT}}{state}: {benchmark.title}, {benchmark.split}",
        f"  images     {index.images}{of_all}",
        f"  labels     {index.labels}{of_all}",
    ]
    # The hint, which is part of many problems, is given once.
    problems = [
        dataclasses.replace(problem, detail=problem.detail.replace(benchmark.hint, "").strip())
        for problem in index.problems
    ]
    if problems:
        lines += textwrap.indent(describe_problems(problems), "  ").splitlines()
    if benchmark.hint and not complete:
        same_flags = " (with the same --data and --split)" if needs_preparation(benchmark) else ""
        lines += textwrap.wrap(
            benchmark.hint + same_flags,
            _WIDTH,
            initial_indent="  to do      ",
            subsequent_indent=" " * _INDENT,
            break_long_words=False,  # paths and commands stay whole
            break_on_hyphens=False,
        )
    return "\n".join(lines)
