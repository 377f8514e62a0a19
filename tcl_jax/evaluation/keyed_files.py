"""Files whose names follow a pattern, by what stands at its {key}."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tcl_jax.files import IMAGE_SUFFIXES, files_below


def split_pattern(pattern: str) -> tuple[str, str]:
    """The folder of a pattern, and what is below it, with {key}."""
    folder = pattern.partition("{key}")[0].rpartition("/")[0]
    return folder or ".", pattern.removeprefix(folder).lstrip("/")


def below(root: Path, pattern: str) -> Path:
    """A pattern below the root, which may be one of the folders that the pattern begins with."""
    parts = Path(pattern).parts
    if not (root / parts[0]).exists():
        for count in range(len(parts) - 1, 0, -1):
            if root.parts[-count:] == parts[:count]:
                return root.joinpath(*parts[count:])
    return root / pattern


class KeyedFiles:
    """Files below the folder of a pattern, found by `scan`.

    Args:
        pattern: an absolute path with {key}, which may stand for folders too.

    Attributes:
        pattern, folder, file: the pattern, the folder it begins with, and the rest.
        exists: whether there is the folder.
        by_key: the files that match.
        doubles: files whose key another one has, each with that other.
        others: files that do not match.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.folder, self.file = split_pattern(pattern)
        self.exists = os.path.isdir(self.folder)
        self.by_key: dict[str, Path] = {}
        self.doubles: list[tuple[Path, Path]] = []
        self.others: list[Path] = []
        before, _, after = self.file.partition("{key}")
        ending = re.escape(after)
        if after.endswith(".*"):
            ending = re.escape(after[:-2]) + f"(?i:{'|'.join(map(re.escape, IMAGE_SUFFIXES))})"
        start = re.escape(f"{self.folder.rstrip('/')}/{before}")
        self._match = re.compile(f"{start}(.+){ending}").fullmatch

    def key(self, path: str) -> str | None:
        """The key of a path that matches."""
        found = self._match(path)
        return found[1] if found else None

    def named(self, text: str) -> str:
        """The key that a line of a list means: the line itself, or a path of the key's file.

        A path may be of another machine, or have another usual extension.
        """
        parts = text.replace("\\", "/").split("/")
        for i in range(len(parts)) if text not in self.by_key else ():
            rest = "/".join(parts[i:])
            stem, suffix = os.path.splitext(rest)
            bare = stem if suffix.lower() in IMAGE_SUFFIXES else rest
            for key in (rest, bare, self.key(f"{self.folder}/{rest}")):
                if key in self.by_key:
                    return key
        return text

    def expected(self, key: str) -> Path:
        """Where the file of a key should be."""
        return Path(self.pattern.replace("{key}", key))

    def scan(self, *, other: KeyedFiles) -> None:
        """Finds the files; those that both patterns match are of the one with the longer pattern.

        Raises:
            OSError: if a folder cannot be read.
        """
        yields = len(other.pattern) > len(self.pattern)
        for path in files_below(self.folder):
            key, other_key = self.key(path), other.key(path)
            if other_key is not None and (yields or key is None):
                continue
            if key is None:
                self.others.append(Path(path))
            elif self.by_key.setdefault(key, Path(path)) != Path(path):
                self.doubles.append((Path(path), self.by_key[key]))
