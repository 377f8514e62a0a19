"""Which members of a tar file make image-caption pairs, and where they are in it.

Only headers are read, by `tarfile`. Compressed tar files have no random access and are refused.
"""

from __future__ import annotations

import collections
import posixpath
import tarfile
import zlib
from typing import Any, NamedTuple, TypeAlias

from tcl_jax.errors import InputError
from tcl_jax.files import IMAGE_SUFFIXES, PASSED_OVER, counts

TEXT_SUFFIXES, JSON_SUFFIXES = (".txt", ".text", ".caption"), (".json", ".jsn")
"""Suffixes of the members with captions, in any letter case."""

RULE = zlib.crc32(
    repr((sorted(IMAGE_SUFFIXES), TEXT_SUFFIXES, JSON_SUFFIXES, PASSED_OVER.pattern)).encode()
)
"""Changes with what makes a pair; indexes say by which rule they were made."""

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


def find_pairs(file: Any) -> tuple[list[Pair], LeftOut]:
    """Pairs of members, in the order of their images; of equal keys the first members count.

    The key ends at the last dot, so that `v1.2.jpg` is a pair with `v1.2.txt`, and neither
    `v1.seg.png` nor `v1.cls.txt` is one with `v1`. The members of a pair may lie apart.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a complete plain tar file.
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
    for member in _members(file):
        name, is_link = member.name, member.issym() or member.islnk()
        if not (member.isreg() or is_link) or not counts(name):
            continue
        key, suffix = posixpath.splitext(name)
        kind = kinds.get(suffix.lower())
        if kind is None:
            left_out["members of other kinds"].append(name)
        # These words are part of fingerprints, and so of checkpoints.
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


def _members(file: Any) -> list[tarfile.TarInfo]:
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
            members = tar.getmembers()
        # `tarfile` takes a file as complete that ends behind a member, or goes on with anything.
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError(f"at byte {tar.offset} is neither a member nor the mark of the end")
    except InputError:
        raise
    except (tarfile.TarError, ValueError, OverflowError) as error:
        file.seek(0)
        raise ValueError(
            f"damaged, cut short, or no uncompressed tar file: {error}; it begins with "
            f"{file.read(16)!r}. Download it again, or decompress it"
        ) from error
    return members
