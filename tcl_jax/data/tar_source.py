"""Random access to image-caption pairs in local webdataset shards.

A shard is an uncompressed tar file in which the members `KEY.jpg` (or jpeg, png, webp) and
`KEY.txt` make a pair; KEY is the path up to the first dot of the file name. The headers are read
once, to know where every member begins; afterwards a pair is read by its position, in any order, so
that one can shuffle over the whole set and resume anywhere.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from typing import SupportsIndex, TypedDict

import numpy as np
from absl import logging

from tcl_jax.errors import InputError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
"""Lower-case extensions of the members taken as images."""

TEXT_EXTENSION = "txt"
"""Extension of the member with the caption, in UTF-8."""

_BLOCK = 512
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")
_LISTED = 8


class Pair(TypedDict):
    """One example: `image` the bytes of an image file, `text` the caption, `key` its name."""

    image: bytes
    text: str
    key: str


class TarSourceError(InputError):
    """Shards are missing, damaged or hold no pairs; the message names them."""


class TarSource:
    """All pairs of a set of shards, in the order of the patterns and of the members.

    Per pair it keeps about 50 bytes of memory (and of pickle). Files are opened for each read, so
    that any number of shards and threads will do. Members that are not a pair are passed over.

    Args:
      patterns: paths of tar files; `{000..010}` counts, `{a,b}` lists, `*`, `?` and `[...]` match.
        A file that is matched twice counts once.

    Raises:
      TarSourceError: a pattern matches no file, a shard cannot be read, is cut short or is not a
        plain tar file, or there is no pair at all.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self.patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
        self._paths = _find(self.patterns)
        shards: list[np.ndarray] = []
        keys: list[bytes] = []
        problems: list[str] = []
        unpaired = 0
        for number, path in enumerate(self._paths):
            try:
                pairs, lonely = _index(path)
            except (OSError, ValueError) as error:
                problems.append(f"{path} ({error})")
                continue
            unpaired += lonely
            if not pairs:
                logging.warning("%s: holds no image-caption pairs.", path)
            keys += [key for key, *_ in pairs]
            where = np.array([pair[1:] for pair in pairs], np.int64).reshape(-1, 4)
            shards.append(np.insert(where, 0, number, axis=1))
        if problems:
            raise TarSourceError(
                f"{len(problems)} of {len(self._paths)} tar shards cannot be read: "
                f"{_shorten(problems)}. Download them again, or leave them out of the pattern."
            )
        # Columns: shard, image offset, image bytes, text offset, text bytes.
        table = np.concatenate(shards)
        if not len(table):
            raise TarSourceError(
                f"no image-caption pairs in {_shorten(self._paths)}: members must be named "
                f"KEY.{'|'.join(IMAGE_EXTENSIONS)} and KEY.{TEXT_EXTENSION}."
            )
        self._shard = table[:, 0].astype(np.int32)
        self._offsets = np.ascontiguousarray(table[:, [1, 3]])
        self._sizes = table[:, [2, 4]].astype(np.int32)
        self._keys = b"".join(keys)
        self._key_ends = np.cumsum([len(key) for key in keys])
        logging.info(
            "%d pairs in %d shards (%d images or captions without their partner left out).",
            len(self),
            len(self._paths),
            unpaired,
        )

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self._shard)

    def __getitem__(self, index: SupportsIndex) -> Pair:
        """Reads a pair.

        Raises:
          IndexError: outside of 0 to len - 1.
          TarSourceError: the shard is gone or shorter than when it was indexed.
        """
        i = index.__index__()
        if not 0 <= i < len(self):
            raise IndexError(f"pair {i}: there are {len(self)}.")
        path = self._paths[self._shard[i]]
        try:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                image, text = (
                    _read(descriptor, int(size), int(offset))
                    for size, offset in zip(self._sizes[i], self._offsets[i], strict=True)
                )
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:
            raise TarSourceError(
                f"{path}: pair {self._key(i)!r} cannot be read ({error}); has the file changed "
                "since the start?"
            ) from error
        return {"image": image, "text": text.decode("utf-8", "replace"), "key": self._key(i)}

    def __repr__(self) -> str:
        """The call that makes it."""
        return f"TarSource({list(self.patterns)!r})"

    def _key(self, i: int) -> str:
        begin = self._key_ends[i - 1] if i else 0
        return self._keys[begin : self._key_ends[i]].decode("utf-8", "replace")


# ------------------------------------------------------------------------------------ which files


def expand_braces(pattern: str) -> list[str]:
    """`a{08..10}{x,y}` to `a08x`, `a08y`, `a09x`, ...; leading zeros of the first number are kept.

    Raises:
      ValueError: a brace is not closed, or a range runs backwards.
    """
    begin = pattern.find("{")
    if begin < 0:
        return [pattern]
    end = pattern.find("}", begin)
    if end < 0:
        raise ValueError(f"pattern {pattern!r}: a brace is opened and not closed.")
    inner = pattern[begin + 1 : end]
    numbers = _NUMBERS.fullmatch(inner)
    if numbers:
        first, last = numbers.groups()
        if int(first) > int(last):
            raise ValueError(f"pattern {pattern!r}: the range {{{inner}}} runs backwards.")
        choices = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    else:
        choices = inner.split(",")
    tails = expand_braces(pattern[end + 1 :])
    return [pattern[:begin] + choice + tail for choice in choices for tail in tails]


def _find(patterns: Sequence[str]) -> list[str]:
    paths: dict[str, None] = {}
    missing: list[str] = []
    for pattern in patterns:
        try:
            expanded = expand_braces(os.path.expanduser(pattern))
        except ValueError as error:
            raise TarSourceError(str(error)) from error
        for path in expanded:
            # The literal name first: it may itself contain brackets.
            found = [path] if os.path.isfile(path) else sorted(glob.glob(path, recursive=True))
            paths.update(dict.fromkeys(found))
            if not found:
                missing.append(path)
    if missing:
        raise TarSourceError(
            f"{len(missing)} tar shards are missing: {_shorten(missing)}. Check the path and the "
            "range of the pattern; only files on this machine can be read."
        )
    if not paths:
        raise TarSourceError("no tar shards were given: name at least one path or pattern.")
    return list(paths)


def _shorten(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


# ------------------------------------------------------------------------------ reading a tar file


def _index(path: str) -> tuple[list[tuple[bytes, int, int, int, int]], int]:
    """Pairs (key, image offset, size, text offset, size) of a shard, and how many had no partner.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is not a complete plain tar file.
    """
    images: dict[bytes, tuple[int, int]] = {}
    texts: dict[bytes, tuple[int, int]] = {}
    for name, offset, size in _members(path):
        folder, slash, file = name.rpartition(b"/")
        stem, dot, extension = file.partition(b".")
        if not stem or not dot:
            continue
        kind = extension.decode("utf-8", "replace").lower()
        members = texts if kind == TEXT_EXTENSION else images if kind in IMAGE_EXTENSIONS else None
        if members is not None:
            members.setdefault(folder + slash + stem, (offset, size))
    pairs = [(key, *image, *texts[key]) for key, image in images.items() if key in texts]
    return pairs, len(images) + len(texts) - 2 * len(pairs)


def _members(path: str) -> list[tuple[bytes, int, int]]:
    """Name, offset and size of the regular files (formats ustar, GNU and pax)."""
    members: list[tuple[bytes, int, int]] = []
    descriptor = os.open(path, os.O_RDONLY)
    try:
        total = os.fstat(descriptor).st_size
        position = 0
        extended: dict[bytes, bytes] = {}
        while True:
            header = os.pread(descriptor, _BLOCK, position)
            if len(header) < _BLOCK:
                raise ValueError(
                    f"cut short: {total} bytes, without the mark of the end"
                    if position
                    else "not a tar file"
                )
            if header[0] == 0 and not any(header):
                return members
            name, size, kind = _parse_header(header, position)
            size = int(extended.get(b"size", size))
            begin = position + _BLOCK
            position = begin + (size + _BLOCK - 1) // _BLOCK * _BLOCK
            if begin + size > total:
                raise ValueError(f"cut short: {total} bytes, {begin + size} are needed")
            if kind == b"L":
                extended[b"path"] = _read(descriptor, size, begin).rstrip(b"\0")
            elif kind == b"x":
                extended |= _parse_pax(_read(descriptor, size, begin))
            elif kind not in b"gK":
                if kind in b"07\0":
                    members.append((extended.get(b"path", name), begin, size))
                extended = {}
    finally:
        os.close(descriptor)


def _parse_header(header: bytes, position: int) -> tuple[bytes, int, bytes]:
    """Name, size in bytes and type of a member, from its 512-byte header."""
    try:
        expected = int(header[148:156].strip(b" \0") or b"0", 8)
        if sum(header) - sum(header[148:156]) + 8 * ord(" ") != expected:
            raise ValueError
        # Sizes of 8 GiB and more are written as a big-endian number with the top bit set.
        field = header[124:136]
        size = (
            int.from_bytes(field[1:], "big")
            if field[0] & 0x80
            else int(field.strip(b" \0") or b"0", 8)
        )
    except ValueError:
        raise ValueError(
            f"not a plain tar file: no member header at byte {position}"
            + (" (gzip)" if header[:2] == b"\x1f\x8b" else "")
        ) from None
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].split(b"\0", 1)[0]
        name = prefix + b"/" + name if prefix else name
    return name, size, header[156:157]


def _parse_pax(data: bytes) -> dict[bytes, bytes]:
    """Records `LENGTH KEY=VALUE` and a line break, where LENGTH counts the whole record."""
    records: dict[bytes, bytes] = {}
    while data:
        length = int(data.split(b" ", 1)[0])
        if not 0 < length <= len(data):
            raise ValueError("a pax header is damaged")
        record = data[:length].split(b" ", 1)[1]
        key, _, value = record.rstrip(b"\n").partition(b"=")
        records[key] = value
        data = data[length:]
    return records


def _read(descriptor: int, size: int, offset: int) -> bytes:
    data = os.pread(descriptor, size, offset)
    if len(data) != size:
        raise ValueError(f"{len(data)} of {size} bytes at {offset}")
    return data
