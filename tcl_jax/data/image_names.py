"""Which file of a folder the name of an image means, as lists made elsewhere have them."""

from __future__ import annotations

import collections
import os
import posixpath
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tcl_jax.data.caption_files import strip_number
from tcl_jax.errors import shorten
from tcl_jax.files import IMAGE_SUFFIXES, files_below

_SAMPLE = 1000  # names by which it is found out which leading folders do not count


class Match(NamedTuple):
    """The file that a name means, relative to the folder or absolute; or else why there is none."""

    file: str
    why: str = ""


class ImageFolder:
    """The files below a folder, by the names that lists may give them.

    Attributes:
        path: of the folder.
        files: all files, relative, with slashes, in order.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        names = (os.path.relpath(file, path) for file in files_below(path))
        self.files = [name.replace(os.sep, "/") for name in names]
        self._exact = frozenset(self.files)
        self._meant: dict[str, list[str]] = collections.defaultdict(list)
        for file in self.files:
            whole = _fold(file)
            stem, suffix = posixpath.splitext(whole)
            for key in (whole, stem) if suffix in IMAGE_SUFFIXES else (whole,):
                self._meant[key].append(file)
                if "/" in key:
                    self._meant["*/" + posixpath.basename(key)].append(file)

    @property
    def images(self) -> list[str]:
        """The files whose names end as those of images do."""
        return [f for f in self.files if posixpath.splitext(f)[1].lower() in IMAGE_SUFFIXES]

    def find_all(self, names: Sequence[str]) -> tuple[list[Match], str]:
        """The files that names mean; also in another letter case, with backslashes, without suffix
        where only one file has it, behind leading folders from where the list was made, and, where
        a name has no folder, in any folder below this one.

        Returns:
            One for each name; and which leading folders do not count, empty for none.
        """
        # Many names decide, so that none is taken for another file by its own ending.
        found: collections.Counter[str] = collections.Counter()
        for name in map(_plain, names[:: max(1, len(names) // _SAMPLE)]):
            ends = [match.end() for match in re.finditer("/", name)]
            found.update(name[:end] for end in (0, *ends) if self._find(name, end).file)
        lead = max(found, key=lambda lead: (found[lead], -len(lead)), default="")
        return [self._match(name, lead) for name in names], lead

    def _match(self, name: str, lead: str) -> Match:
        inside = os.path.relpath(name, self.path) if os.path.isabs(name) else name
        if inside in self._exact:
            return Match(inside)
        why = Match("", "its name is empty")
        for text in filter(None, dict.fromkeys((_plain(name), _plain(strip_number(name))))):
            for start in (0, len(lead)) if text.startswith(lead) else (0,):
                if (why := self._find(text, start)).file:
                    return why
        if os.path.isabs(name) and os.path.isfile(name):
            return Match(name)
        return why

    def _find(self, name: str, start: int) -> Match:
        """The file that a name means from a place on."""
        rest = name[start:]
        if rest in self._exact:
            return Match(rest)
        key = _fold(rest)
        found = self._meant.get(key, [])
        if not found and "/" not in name:
            found = self._meant.get(f"*/{key}", [])
        if len(found) > 1:
            return Match("", f"several files may be meant: {shorten(found, 3)}")
        return Match(found[0]) if found else Match("", "there is no such file")


def _plain(name: str) -> str:
    """A name with slashes, and without a drive or what says that it begins here."""
    name = re.sub(r"^(file://)?([A-Za-z]:(?=[\\/]))?", "", name.strip()).replace("\\", "/")
    return posixpath.normpath(name).lstrip("/").removeprefix("./") if name else ""


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
