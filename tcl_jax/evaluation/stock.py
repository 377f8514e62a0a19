"""What there is of a benchmark on disk, what is missing, and what to do about it."""

from __future__ import annotations

import dataclasses
import os
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

from tcl_jax.errors import InputError
from tcl_jax.evaluation.benchmark import Benchmark
from tcl_jax.evaluation.examples import (
    Listing,
    describe_problems,
    list_examples,
    resolve_paths,
    verify_examples,
)
from tcl_jax.evaluation.keyed_files import KeyedFiles, split_pattern
from tcl_jax.evaluation.prepare import needs_preparation, plan_labels

_WIDTH = 100
_INDENT = 13
_SHOWN_AS_COUNTS = (
    "missing folder", "missing list", "missing image", "missing label", "image count",
    "no images",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Stock:
    """What is there of a benchmark.

    Attributes:
        listing: its examples and all problems.
        images: number of images that are there, of those in the list if there is one.
        labels: the same of labels; without a list, those of images that are there.
        total: number of images that should be: of the list, or as the benchmark says, or None.
    """

    listing: Listing
    images: int
    labels: int
    total: int | None

    @property
    def is_complete(self) -> bool:
        """Whether a score can be made of all that the benchmark has."""
        listing = self.listing
        expected = listing.benchmark.splits.get(listing.benchmark.split) or 1
        return len(listing.examples) >= expected and not any(p.fatal for p in listing.problems)


def take_stock(benchmark: Benchmark, root: str | os.PathLike[str], *, deep: bool = False) -> Stock:
    """Counts the files of a benchmark by their names.

    Args:
        benchmark: what to look for, for its split.
        root: the folder of all data sets.
        deep: whether to look into the files too, with a progress bar.

    Raises:
        OSError: if a folder or list is there and cannot be read.
    """
    listing = list_examples(benchmark, root)
    if deep:
        found = verify_examples(listing, progress=True)
        listing = dataclasses.replace(listing, problems=(*listing.problems, *found))
    paths = resolve_paths(benchmark, root)
    images, labels = KeyedFiles(paths.images), KeyedFiles(paths.labels)
    images.scan(other=labels)
    labels.scan(other=images)
    if paths.list is not None and os.path.isfile(paths.list):
        lines = Path(paths.list).read_text(encoding="utf-8-sig").splitlines()
        keys = {line.strip() for line in lines} - {""}
        total: int | None = len(keys)
    else:
        keys = {*images.by_key} if images.exists else {*labels.by_key}
        total = benchmark.splits.get(benchmark.split)
    return Stock(listing, len(keys & images.by_key.keys()), len(keys & labels.by_key.keys()), total)


def describe_stock(stock: Stock) -> str:
    """A block of aligned lines: what is there, what is missing and where, and what to do."""
    benchmark = stock.listing.benchmark
    state = "complete" if stock.is_complete else "incomplete"
    lines = [f"{benchmark.name:<{_INDENT}}{state}: {benchmark.title}, {benchmark.split}"]
    lines += _field("images", _describe_count(stock, "image", stock.images))
    lines += _field("labels", _describe_count(stock, "label", stock.labels))
    if benchmark.list is not None:
        lines += _field("list", _describe_list(stock))
    kinds = {problem.kind for problem in stock.listing.problems}
    others = [p for p in stock.listing.problems if p.kind not in _SHOWN_AS_COUNTS]
    if others and "missing folder" not in kinds:  # without one nothing belongs to anything
        lines += textwrap.indent(describe_problems(others), "  ").splitlines()
    if not stock.is_complete:
        for step in _steps(stock):
            lines += _field("to do", step)
    return "\n".join(lines)


def prepare_command(benchmark: Benchmark, root: str | os.PathLike[str]) -> str:
    """What to type to have a benchmark's labels made."""
    flags = f" --data={shlex.quote(str(root))}"
    if benchmark.split != "val":
        flags += f" --split={benchmark.split}"
    return f"python -m tcl_jax.benchmarks prepare {benchmark.name}{flags}"


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


def _describe_count(stock: Stock, what: str, count: int) -> str:
    paths = resolve_paths(stock.listing.benchmark, stock.listing.root)
    pattern = {"image": paths.images, "label": paths.labels}[what]
    folder, _ = split_pattern(pattern)
    if not os.path.isdir(folder):
        return f"none, the folder {folder} does not exist"
    text = f"{count} of {stock.total}" if stock.total is not None else f"{count}"
    if stock.total is not None and count > stock.total:
        text = f"{count}, of which {stock.total} are used"
    if count == 0:
        text += f", none is named {pattern}"
    missing = [p.path for p in stock.listing.problems if p.kind == f"missing {what}"]
    if count and missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        text += f", missing {missing[0]}{more}"
    return text


def _describe_list(stock: Stock) -> str:
    benchmark = stock.listing.benchmark
    path = resolve_paths(benchmark, stock.listing.root).list or ""
    if not os.path.isfile(path):
        return f"missing {path}"
    expected = benchmark.splits.get(benchmark.split)
    if expected in (None, stock.total):
        return path
    return f"{path} has {stock.total} images where {expected} are usual"


def _steps(stock: Stock) -> Iterator[str]:
    """What to do about what is missing: the command where its sources are there, else the hint."""
    benchmark, root = stock.listing.benchmark, stock.listing.root
    missing = {problem.kind for problem in stock.listing.problems}
    wanted = stock.total or 1
    no_images = stock.images < wanted or "missing image" in missing
    no_labels = stock.labels < wanted or "missing list" in missing or "missing label" in missing
    command = None
    if no_labels and needs_preparation(benchmark):
        try:
            plan_labels(benchmark, root)
            command = prepare_command(benchmark, root)
        except InputError as error:
            no_images = True  # the hint tells of sources and images alike
            if benchmark.hint not in str(error):
                yield str(error)
    if benchmark.hint and (no_images or (no_labels and not needs_preparation(benchmark))):
        yield benchmark.hint
    if command is not None:
        yield command
