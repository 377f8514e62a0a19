"""Which tar shards a pattern names, and which of them are missing.

`{000..010}` counts, `{a,b}` lists, `*`, `?` and `[...]` match existing files, and a folder stands
for the tar files directly in it.
"""

from __future__ import annotations

import concurrent.futures
import glob
import itertools
import os
import posixpath
import re
from collections.abc import Sequence
from typing import NamedTuple

from tcl_jax.data import remote
from tcl_jax.errors import InputError, shorten

INDEX_SUFFIX, CAPTIONS_SUFFIX = ".index", ".captions"
"""End the names of files that lie beside shards, which `folder/*` must not take for shards."""

_TAR_SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")
_THREADS = 16


class Shard(NamedTuple):
    """A tar file: path or fsspec address, size in bytes, and a number that changes with the
    content (of a local file the time of its last change in nanoseconds).
    """

    address: str
    size: int
    stamp: int


class Found(NamedTuple):
    """The shards that exist, each once, in the order of the patterns; and a sentence about each
    pattern with missing shards.
    """

    shards: tuple[Shard, ...]
    problems: tuple[str, ...]


def find_shards(patterns: Sequence[str]) -> Found:
    """Looks up patterns, on disk or at fsspec addresses.

    Raises:
        InputError: the braces of a pattern are wrong, its protocol is not installed, or access is
            refused.
        RemoteError: a remote folder cannot be listed.
    """
    shards: dict[str, Shard] = {}
    problems = []
    with lookup_threads() as pool:
        for pattern in map(os.path.expanduser, patterns):
            names = expand_braces(pattern)
            found = list(pool.map(_look, names))
            shards |= {shard.address: shard for several in found for shard in several}
            if absent := [name for name, several in zip(names, found, strict=True) if not several]:
                why = f"{len(absent)} of {len(names)} are missing: {shorten(absent)}"
                if os.path.isdir(pattern):
                    inside = shorten(sorted(os.listdir(pattern)), 4) or "nothing"
                    why = f"a folder without tar files directly in it; it has {inside}"
                problems.append(f"{pattern}: {why}")
    return Found(tuple(shards.values()), tuple(problems))


def lookup_threads() -> concurrent.futures.ThreadPoolExecutor:
    """Threads to look at many files, each of which may be slow to answer."""
    return concurrent.futures.ThreadPoolExecutor(_THREADS)


def expand_braces(pattern: str) -> list[str]:
    """`a{08..10}{x,y}` to `a08x`, `a08y`, `a09x`, ...; leading zeros of the first number are kept.

    Raises:
        InputError: braces do not pair up or are nested, or a range descends.
    """
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [_choices(part) if i % 2 else [part] for i, part in enumerate(parts)]
    if re.search("[{}]", "".join(parts[::2])) or not all(choices):
        raise InputError(
            f"pattern {pattern!r}: write {{000..010}} for an ascending range and {{a,b}} for a "
            "list, neither within another"
        )
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _choices(inner: str) -> list[str]:
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", inner):
        first, last = numbers.groups()
        return [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    return inner.split(",")


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
