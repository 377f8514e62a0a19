"""Files whose names follow a pattern, by what stands at its {key}."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from tcl_jax.files import IMAGE_SUFFIXES, files_below


class KeyedFiles:
    """Files below the folder of a pattern.

    Args:
        pattern: an absolute path with {key}, which may stand for folders too.
        other: of files that may lie in the same folder; what both match is of the longer pattern.

    Attributes:
        pattern, folder: the pattern, and the folder it begins with.
        by_key: the files that match.
        doubles: files whose key another one has, each with that other.

    Raises:
        OSError: if a folder cannot be read.
    """

    def __init__(self, pattern: str, other: str) -> None:
        self.pattern = pattern
        self.folder = pattern.partition("{key}")[0].rpartition("/")[0] or "/"
        self.by_key: dict[str, Path] = {}
        self.doubles: list[tuple[Path, Path]] = []
        self._match, match_other = _matcher(pattern), _matcher(other)
        for path in files_below(self.folder):
            found = self._match(path)
            if found is None or (len(other) > len(pattern) and match_other(path)):
                continue
            first = self.by_key.setdefault(found[1], Path(path))
            if first != Path(path):
                self.doubles.append((Path(path), first))

    def named(self, text: str) -> str:
        """The key that a line of a list means: the line itself, or a path of the key's file.

        A path may be of another machine, or have another usual extension.
        """
        parts = text.replace("\\", "/").split("/")
        for i in range(len(parts)) if text not in self.by_key else ():
            rest = "/".join(parts[i:])
            stem, suffix = os.path.splitext(rest)
            bare = stem if suffix.lower() in IMAGE_SUFFIXES else rest
            found = self._match(f"{self.folder}/{rest}")
            for key in (rest, bare, found and found[1]):
                if key in self.by_key:
                    return key
        return text

    def expected(self, key: str) -> Path:
        """Where the file of a key should be."""
        return Path(self.pattern.replace("{key}", key))


def _matcher(pattern: str) -> Callable[[str], re.Match[str] | None]:
    """What matches a pattern whose {key} is a group, and whose last `.*` is any usual extension."""
    before, _, after = pattern.partition("{key}")
    ending = re.escape(after)
    if after.endswith(".*"):
        ending = re.escape(after[:-2]) + f"(?i:{'|'.join(map(re.escape, IMAGE_SUFFIXES))})"
    return re.compile(f"{re.escape(before)}(.+){ending}").fullmatch
