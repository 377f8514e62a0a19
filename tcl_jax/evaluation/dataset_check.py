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
    Listing,
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


def take_stock(
    benchmark: Benchmark, root: str | os.PathLike[str], *, deep: bool = False
) -> Listing:
    """What there is of a benchmark, by the names of its files.

    Args:
        benchmark: what to look for, for its split.
        root: the folder of all data sets.
        deep: whether to look into the files too, with a progress bar.

    Raises:
        OSError: if a folder or list is there and cannot be read.
    """
    listing = list_examples(benchmark, root)
    if deep:
        found, values = verify_examples(listing, progress=True)
        coding = coding_problems(benchmark, values, listing.label_folder)
        listing = dataclasses.replace(listing, problems=(*listing.problems, *coding, *found))
    return listing


def is_complete(listing: Listing) -> bool:
    """Whether a score can be made of all that the benchmark has."""
    expected = listing.benchmark.splits.get(listing.benchmark.split) or 1
    return len(listing.examples) >= expected and not any(p.fatal for p in listing.problems)


def describe_stock(listing: Listing) -> str:
    """A block of aligned lines: what is there, what is missing and where, and what to do."""
    benchmark = listing.benchmark
    state = "complete" if is_complete(listing) else "incomplete"
    lines = [f"{benchmark.name:<{_INDENT}}{state}: {benchmark.title}, {benchmark.split}"]
    lines += _field("images", _describe_count(listing, "image", listing.images))
    lines += _field("labels", _describe_count(listing, "label", listing.labels))
    if benchmark.list is not None:
        lines += _field("list", _describe_list(listing))
    kinds = {problem.kind for problem in listing.problems}
    others = [p for p in listing.problems if p.kind not in _SHOWN_AS_COUNTS]
    if others and "missing folder" not in kinds:  # without one nothing belongs to anything
        lines += textwrap.indent(describe_problems(others), "  ").splitlines()
    if not is_complete(listing):
        for step in _steps(listing):
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


def _describe_count(listing: Listing, what: str, count: int) -> str:
    pattern = {"image": listing.paths.images, "label": listing.paths.labels}[what]
    folder, _ = split_pattern(pattern)
    if not os.path.isdir(folder):
        return f"none, the folder {folder} does not exist"
    text = f"{count} of {listing.total}" if listing.total is not None else f"{count}"
    if listing.total is not None and count > listing.total:
        text = f"{count}, of which {listing.total} are used"
    if count == 0:
        text += f", none is named {pattern}"
    missing = [p.path for p in listing.problems if p.kind == f"missing {what}"]
    if count and missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        text += f", missing {missing[0]}{more}"
    return text


def _describe_list(listing: Listing) -> str:
    benchmark, path = listing.benchmark, listing.paths.list or ""
    if not os.path.isfile(path):
        return f"missing {path}"
    expected = benchmark.splits.get(benchmark.split)
    if expected in (None, listing.total):
        return path
    return f"{path} has {listing.total} images where {expected} are usual"


def _steps(listing: Listing) -> Iterator[str]:
    """What to do about what is missing: the command where its sources are there, else the hint."""
    benchmark, root = listing.benchmark, listing.root
    missing = {problem.kind for problem in listing.problems}
    wanted = listing.total or 1
    no_images = listing.images < wanted or "missing image" in missing
    no_labels = listing.labels < wanted or "missing list" in missing or "missing label" in missing
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
