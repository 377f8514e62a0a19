"""Which tar shards a pattern names, and which of them are not there.

`{000..010}` counts, `{a,b}` lists, `*`, `?` and `[...]` match what is there, and a folder stands
for the tar files directly in it. Only counted and listed names can be missed; of matched ones it is
told where their numbers have gaps.
"""

from __future__ import annotations

import dataclasses
import glob
import itertools
import os
import re
from collections.abc import Iterable, Sequence

from tcl_jax.data import remote
from tcl_jax.errors import InputError

INDEX_SUFFIX = ".index"
"""Ends the names of index files, which patterns such as `folder/*` must not take for shards."""

CAPTIONS_SUFFIX = ".captions"
"""Ends those of files with the embeddings of captions, which are no shards either."""

TAR_SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")
"""Suffixes of the files of a folder that are taken, if only to say that they are compressed."""

_BRACE = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_NUMBERED = re.compile(r"(.*?)(\d+)(\D*)")
_LISTED = 8


@dataclasses.dataclass(frozen=True)
class Shard:
    """A tar file that is there.

    Attributes:
        address: path or fsspec address.
        size: bytes.
        stamp: a number that changes with the content: nanoseconds of a local file's last change.
    """

    address: str
    size: int
    stamp: int


@dataclasses.dataclass(frozen=True)
class Found:
    """What patterns name.

    Attributes:
        shards: those that are there, in the order of the patterns, each once.
        missing: how many counted or listed names, or patterns without any match, have no file.
        problems: a sentence for each pattern with missing shards, which gives their numbers.
        gaps: a sentence for each matching pattern whose files are numbered with gaps.
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
    files = _Files()
    shards: dict[str, Shard] = {}
    missing = 0
    problems: list[str] = []
    gaps: list[str] = []
    for pattern in patterns:
        for part in _without_lists(os.path.expanduser(pattern)):
            names = expand_braces(part)
            absent: list[str] = []
            for name in names:
                # The literal name first: it may itself contain brackets.
                found = [shard] if (shard := files.get(name)) else files.match(name)
                shards.update({shard.address: shard for shard in found})
                if not found:
                    absent.append(name)
                elif shard is None and (gap := _gaps([s.address for s in found])):
                    gaps.append(f"{name}: {gap}")
            if absent:
                missing += len(absent)
                problems.append(_describe(part, names, absent))
    return Found(tuple(shards.values()), missing, tuple(problems), tuple(gaps))


def expand_braces(pattern: str) -> list[str]:
    """`a{08..10}{x,y}` to `a08x`, `a08y`, `a09x`, ...; leading zeros of the first number are kept.

    Raises:
        InputError: a brace is not closed, holds another, or a range runs backwards.
    """
    return _fill(*_parse(pattern))


def shorten(names: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def number_ranges(numbers: Iterable[int], width: int = 1) -> str:
    """Numbers as `00003, 00017-00020`, ascending, with at least `width` digits."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return shorten([
        f"{first:0{width}}" if first == last else f"{first:0{width}}-{last:0{width}}"
        for first, last in runs
    ])  # fmt: skip


class _Files:
    """What is there; folders of object stores are listed once rather than asked for each file."""

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, remote.RemoteFile]] = {}

    def get(self, address: str) -> Shard | None:
        if not remote.is_remote(address):
            return _local(address) if os.path.isfile(address) else None
        address = remote.normalize(address)
        folder, _, name = address.rpartition("/")
        if glob.has_magic(folder):
            return None
        if not remote.has_listings(address):
            file = remote.find_file(address)
        else:
            file = self._list(folder).get(name)
        return Shard(address, file.size, file.stamp) if file else None

    def _list(self, folder: str) -> dict[str, remote.RemoteFile]:
        if folder not in self._folders:
            self._folders[folder] = remote.list_folder(folder)
        return self._folders[folder]

    def match(self, pattern: str) -> list[Shard]:
        if not glob.has_magic(pattern):
            return self._inside(pattern)
        if remote.is_remote(pattern):
            found = [self.get(name) for name in remote.match(pattern) if _is_shard(name)]
            return [shard for shard in found if shard]
        names = sorted(glob.glob(pattern, recursive=True))
        return [_local(name) for name in names if _is_shard(name) and os.path.isfile(name)]

    def _inside(self, folder: str) -> list[Shard]:
        """The tar files directly in a folder, hidden ones left out."""
        names: Iterable[str] = ()
        if folder.lower().endswith(TAR_SUFFIXES):  # a shard that is missing
            return []
        if not remote.is_remote(folder):
            names = os.listdir(folder) if os.path.isdir(folder) else ()
        elif remote.has_listings(folder):
            folder = remote.normalize(folder)
            names = self._list(folder)
        taken = sorted(n for n in names if n.lower().endswith(TAR_SUFFIXES) and n[0] != ".")
        found = [self.get(f"{folder.rstrip('/')}/{name}") for name in taken]
        return [shard for shard in found if shard]


def _is_shard(name: str) -> bool:
    return not name.endswith((INDEX_SUFFIX, CAPTIONS_SUFFIX))


def _local(path: str) -> Shard:
    status = os.stat(path)
    return Shard(path, status.st_size, status.st_mtime_ns)


def _parse(pattern: str) -> tuple[list[str], list[list[str]]]:
    """The texts around the braces, one more than braces, and the choices of each brace."""
    texts = _BRACE.split(pattern)[::2]
    if any("{" in text or "}" in text for text in texts):
        raise InputError(
            f"pattern {pattern!r}: its braces do not pair up, or one holds another. Write "
            "{000..010} for a range and {a,b} for a list, each on its own"
        )
    return texts, [_choices(pattern, inner) for inner in _BRACE.findall(pattern)]


def _choices(pattern: str, inner: str) -> list[str]:
    numbers = _RANGE.fullmatch(inner)
    if not numbers:
        return inner.split(",")
    first, last = numbers.groups()
    if int(first) > int(last):
        raise InputError(
            f"pattern {pattern!r}: the range {{{inner}}} runs backwards; write the smaller number "
            "first"
        )
    return [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]


def _without_lists(pattern: str) -> list[str]:
    """The pattern once for each way through its `{a,b}`, with its ranges as they are."""
    texts, _ = _parse(pattern)
    ways = [
        [f"{{{inner}}}"] if _RANGE.fullmatch(inner) else inner.split(",")
        for inner in _BRACE.findall(pattern)
    ]
    return _fill(texts, ways)


def _fill(texts: Sequence[str], choices: Sequence[Sequence[str]]) -> list[str]:
    """The texts with every choice for what is between them."""
    return [
        "".join(itertools.chain(*zip(texts, chosen, strict=False), texts[-1:]))
        for chosen in itertools.product(*choices)
    ]


def _describe(part: str, names: Sequence[str], absent: Sequence[str]) -> str:
    """Which names of one pattern are missing, by their numbers where it counts."""
    ranges = _RANGE.findall(part)
    if len(names) == 1 and os.path.isdir(part):
        return f"{part} is a folder without tar files; of those below it, name {part}/**/*.tar"
    if len(names) == 1:
        return f"{part} matches nothing" if glob.has_magic(part) else f"{part} is not there"
    if len(absent) == len(names):
        return f"{part}: none of the {len(names)} is there, {absent[0]} the first"
    if len(ranges) != 1:
        return f"{part}: {len(absent)} of {len(names)} are missing: {shorten(absent)}"
    first, gone = ranges[0][0], set(absent)
    numbers = [int(first) + k for k, name in enumerate(names) if name in gone]
    return (
        f"{part}: {len(absent)} of {len(names)} are missing: "
        f"{number_ranges(numbers, len(first))}, {absent[0]} the first"
    )


def _gaps(names: Sequence[str]) -> str:
    """Which numbers files such as cc3m-0000.tar leave out between the first and the last."""
    series: dict[tuple[str, str], dict[int, str]] = {}
    for name in names:
        folder, slash, file = name.rpartition("/")
        if numbered := _NUMBERED.fullmatch(file):
            before, number, after = numbered.groups()
            series.setdefault((folder + slash + before, after), {})[int(number)] = number
    told = []
    for (before, after), numbers in series.items():
        first, last = min(numbers), max(numbers)
        if absent := set(range(first, last + 1)) - numbers.keys():
            width = len(numbers[first])
            told.append(
                f"{len(absent)} numbers between {before}{numbers[first]}{after} and "
                f"{numbers[last]} are missing: {number_ranges(absent, width)}"
            )
    return "; ".join(told)
