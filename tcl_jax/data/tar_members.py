"""Which members of a tar file make image-caption pairs, and where they are in it.

Only headers are read, by `tarfile`. Compressed tar files have no random access and are refused.
"""

from __future__ import annotations

import collections
import io
import posixpath
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

from tcl_jax.errors import InputError, RunError
from tcl_jax.files import IMAGE_SUFFIXES, PASSED_OVER, counts

TEXT_SUFFIXES, JSON_SUFFIXES = (".txt", ".text", ".caption"), (".json", ".jsn")
"""Suffixes of the members with captions, in any letter case."""

RULE = zlib.crc32(
    repr((sorted(IMAGE_SUFFIXES), TEXT_SUFFIXES, JSON_SUFFIXES, PASSED_OVER.pattern)).encode()
)
"""Another number where other members make pairs."""

Place: TypeAlias = tuple[int, int]
"""Offset and size in bytes."""

NOWHERE: Place = (0, 0)
"""The place of a member that is not there."""

LeftOut: TypeAlias = dict[str, tuple[int, str]]
"""By the reason: how many members are not part of a pair, and the name of the first."""

_LARGEST = (1 << 32) - 1  # bytes of a member; no caption or photograph comes near it


class Pair(NamedTuple):
    """The path of a pair's members up to the last dot, and their places; of text and JSON one may
    be `NOWHERE`.
    """

    key: bytes
    image: Place
    text: Place
    json: Place


def find_pairs(members: Iterable[tarfile.TarInfo]) -> tuple[list[Pair], LeftOut]:
    """Pairs of members, in the order of their images; of equal keys the first members count.

    The key ends at the last dot, so that `v1.2.jpg` is a pair with `v1.2.txt`, and neither
    `v1.seg.png` nor `v1.cls.txt` is one with `v1`. The members of a pair may lie apart.
    """
    images: dict[str, tuple[str, Place]] = {}
    texts: dict[str, tuple[str, Place]] = {}
    jsons: dict[str, tuple[str, Place]] = {}
    kinds = {
        **dict.fromkeys(IMAGE_SUFFIXES, images),
        **dict.fromkeys(TEXT_SUFFIXES, texts),
        **dict.fromkeys(JSON_SUFFIXES, jsons),
    }
    left_out: dict[str, list[str]] = collections.defaultdict(list)
    for member in members:
        name, is_link = member.name, member.issym() or member.islnk()
        if not (member.isreg() or is_link) or not counts(name):
            continue
        key, suffix = posixpath.splitext(name)
        kind = kinds.get(suffix.lower())
        if kind is None:
            left_out["members of other kinds"].append(name)
        elif is_link or member.issparse():
            left_out["links and sparse files"].append(name)
        elif member.size > _LARGEST:
            left_out["members of 4 GiB and more"].append(name)
        elif key in kind:
            left_out["members whose key had come before"].append(name)
        else:
            kind[key] = name, (member.offset_data, member.size)
    pairs = []
    for key, (name, image) in images.items():
        text, json = (kind[key][1] if key in kind else NOWHERE for kind in (texts, jsons))
        if text == json:
            left_out["images without caption"].append(name)
        else:
            pairs.append(Pair(_bytes(key), image, text, json))
    left_out["captions without image"] += [
        name for key, (name, _) in {**jsons, **texts}.items() if key not in images
    ]
    return pairs, {
        why: (len(names), _bytes(names[0]).decode("utf-8", "replace"))
        for why, names in left_out.items()
        if names
    }


def _bytes(name: str) -> bytes:
    """A name as `tarfile` gives it, in the bytes that the tar file has."""
    return name.encode("utf-8", "surrogateescape")


def members_of(file: io.BufferedIOBase, size: int) -> Iterator[tarfile.TarInfo]:
    """The members of a tar file of `size` bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a complete plain tar file.
    """
    end, begun = 0, False
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
            while (member := tar.next()) is not None:
                begun = True
                tar.members.clear()  # type: ignore[attr-defined]  # would keep all
                if not end < tar.offset <= size:
                    raise ValueError(f"a member from there ends at byte {tar.offset}")
                end = tar.offset
                yield member
        # `tarfile` takes a file as complete that ends anywhere, or goes on with something else.
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError("there is neither a member nor the mark of the end")
    except (OSError, MemoryError, InputError, RunError):
        raise
    except Exception as error:  # of damaged headers `tarfile` raises almost any type
        if begun:
            raise ValueError(f"damaged or cut short at byte {end} of {size}: {error}") from error
        file.seek(0)
        raise ValueError(
            f"not an uncompressed tar file; it begins with {file.read(16)!r}. Decompress it, or "
            "download it again"
        ) from error
