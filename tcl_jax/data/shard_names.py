"""Which tar shards a pattern names, and which of them are not there.

`{000..010}` counts, `{a,b}` lists, `*`, `?` and `[...]` match what is there, and a folder stands
for the tar files directly in it. Only counted and listed names can be missing; of matched ones
gaps in their numbers are reported.
"""

from __future__ import annotations

import concurrent.futures
import glob
import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tcl_jax.data import remote
from tcl_jax.errors import InputError

INDEX_SUFFIX, CAPTIONS_SUFFIX = ".index", ".captions"
"""End the names of files that lie beside shards, which `folder/*` must not take for shards."""

_TAR_SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_NUMBERED = re.compile(r"(.*?)(\d+)(\D*)")
_LISTED = 8
_THREADS = 16


class Shard(NamedTuple):
    """A tar file that is there: path or fsspec address, size in bytes, and a number that changes
    with the content: nanoseconds of a local file's last change.
    """

    address: str
    size: int
    stamp: int


class Found(NamedTuple):
    """What patterns name: the shards that are there, in the order of the patterns, each once; how
    many are missing; and a sentence about each pattern with missing shards or gaps.
    """

    shards: tuple[Shard, ...]
    missing: int
    problems: tuple[str, ...]
    gaps: tuple[str, ...]


def find_shards(patterns: Sequence[str]) -> Found:
    """Looks up what patterns name, on disk or at fsspec addresses.

    Raises:
        InputError: a pattern is no pattern, its protocol is not installed, or access is refused.
        RemoteError: a remote folder cannot be listed.
    """
    shards: dict[str, Shard] = {}
    missing = 0
    problems: list[str] = []
    gaps: list[str] = []
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for pattern in map(os.path.expanduser, patterns):
            names = expand_braces(pattern)
            found = dict(zip(names, pool.map(_look, names), strict=True))
            for name, several in found.items():
                shards |= {shard.address: shard for shard in several}
                if gap := _gaps([shard.address for shard in several]):
                    gaps.append(f"{name}: {gap}")
            if absent := [name for name, several in found.items() if not several]:
                missing += len(absent)
                problems.append(_describe(pattern, names, absent))
    return Found(tuple(shards.values()), missing, tuple(problems), tuple(gaps))


def expand_braces(pattern: str) -> list[str]:
    """`a{08..10}{x,y}` to `a08x`, `a08y`, `a09x`, ...; leading zeros of the first number are kept.

    Raises:
        InputError: a brace is not closed, holds another, or a range runs backwards.
    """
    head, opened, rest = pattern.partition("{")
    inner, closed, tail = rest.partition("}")
    if "}" in head or bool(opened) != bool(closed) or "{" in inner:
        raise InputError(
            f"pattern {pattern!r}: its braces do not pair up, or one holds another. Write "
            "{000..010} for a range and {a,b} for a list, each on its own"
        )
    if not opened:
        return [pattern]
    choices = inner.split(",")
    if numbers := _RANGE.fullmatch(inner):
        first, last = numbers.groups()
        if int(first) > int(last):
            raise InputError(
                f"pattern {pattern!r}: the range {{{inner}}} runs backwards; write the smaller "
                "number first"
            )
        choices = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    tails = expand_braces(tail)
    return [f"{head}{choice}{after}" for choice in choices for after in tails]


def shorten(names: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def number_ranges(numbers: Iterable[int], width: int = 1) -> str:
    """Numbers as `00003, 00017-00020`, ascending, with at least `width` digits."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return shorten(["-".join(f"{number:0{width}}" for number in run) for run in runs])


def _look(pattern: str) -> list[Shard]:
    """The file of this name, else what the pattern matches, else the tar files of the folder."""
    if remote.is_remote(pattern):
        found = remote.find(pattern)
    else:
        names = [pattern]
        if os.path.isdir(pattern):
            names = sorted(os.path.join(pattern, name) for name in os.listdir(pattern))
        elif not os.path.isfile(pattern):  # the name of a file may contain brackets
            names = sorted(glob.glob(pattern, recursive=True))
        stats = {name: os.stat(name) for name in names if os.path.isfile(name)}
        found = {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}
    return [Shard(name, *file) for name, file in found.items() if _is_meant(name, pattern)]


def _is_meant(address: str, pattern: str) -> bool:
    """Whether a file that was found is a shard, and not what lies beside shards."""
    if glob.has_magic(pattern):
        return not address.endswith((INDEX_SUFFIX, CAPTIONS_SUFFIX))
    name = posixpath.basename(address)
    is_tar = name.lower().endswith(_TAR_SUFFIXES) and not name.startswith(".")
    return is_tar or name == posixpath.basename(pattern)


def _describe(pattern: str, names: Sequence[str], absent: Sequence[str]) -> str:
    """Which names of a pattern are missing, by their numbers where they have some."""
    if len(names) == 1 and os.path.isdir(pattern):
        return f"{pattern} is a folder without tar files; to use those below it: {pattern}/**/*.tar"
    if len(names) == 1:
        return f"{pattern} {'matches nothing' if glob.has_magic(pattern) else 'is not there'}"
    series = _series(absent)
    told = "; ".join(
        f"{number_ranges(map(int, numbers), len(numbers[0]))} ({before}{numbers[0]}{after} the "
        "first)"
        for (before, after), numbers in series.items()
    )
    if sum(map(len, series.values())) < len(absent):
        told = shorten(absent)
    return f"{pattern}: {len(absent)} of {len(names)} are missing: {told}"


def _gaps(names: Sequence[str]) -> str:
    """Which numbers files such as cc3m-0000.tar leave out between the first and the last."""
    told = []
    for (before, after), texts in _series(names).items():
        numbers = {int(text): text for text in texts}
        first, last = min(numbers), max(numbers)
        if absent := set(range(first, last + 1)) - numbers.keys():
            told.append(
                f"{len(absent)} numbers between {before}{numbers[first]}{after} and "
                f"{numbers[last]} are missing: {number_ranges(absent, len(numbers[first]))}"
            )
    return "; ".join(told)


def _series(names: Sequence[str]) -> dict[tuple[str, str], list[str]]:
    """The last number of each name that has one, by what stands before and after it."""
    series: dict[tuple[str, str], list[str]] = {}
    for name in names:
        folder, slash, file = name.rpartition("/")
        if numbered := _NUMBERED.fullmatch(file):
            before, number, after = numbered.groups()
            series.setdefault((folder + slash + before, after), []).append(number)
    return series
