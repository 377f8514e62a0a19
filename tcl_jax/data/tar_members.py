"""What is in a tar file, and which of its members make image-caption pairs.

Only headers are read. Formats ustar, GNU and pax, with their long names; compressed tar files have
no random access and are refused.
"""

from __future__ import annotations

import collections
import dataclasses
import posixpath
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeAlias

from tcl_jax.files import IMAGE_SUFFIXES, PASSED_OVER, counts

TEXT_SUFFIXES = (".txt", ".text", ".caption")
"""Suffixes, in any letter case as all, of the members with a caption."""

JSON_SUFFIXES = (".json", ".jsn")
"""Suffixes of the members with captions in JSON."""

RULE = zlib.crc32(
    repr((sorted(IMAGE_SUFFIXES), TEXT_SUFFIXES, JSON_SUFFIXES, PASSED_OVER.pattern)).encode()
)
"""Another number where other members make pairs."""

MAX_MEMBER_BYTES = (1 << 32) - 1
"""Larger members are left out; no caption or photograph comes near it."""

NOWHERE = (0, 0)
"""The place of a member that is not there."""

Read: TypeAlias = Callable[[int, int], bytes]
"""(size, offset) to the bytes there, fewer at the end of the file."""

Place: TypeAlias = tuple[int, int]
"""Offset and size in bytes."""

_BLOCK = 512
_ADLER_MODULUS = 65521
_MAX_EXTENSION_BYTES = 1 << 24
_OTHER_FORMATS = {
    b"\x1f\x8b": "compressed; decompress it with gunzip",
    b"BZh": "compressed; decompress it with bunzip2",
    b"\xfd7zXZ\0": "compressed; decompress it with unxz",
    b"(\xb5/\xfd": "compressed; decompress it with unzstd",
    b'\x04"M\x18': "compressed; decompress it with lz4 -d",
    b"PK": "a zip file; unpack it, and pack its files with tar",
    b"Rar!": "a RAR file; unpack it, and pack its files with tar",
    b"7z\xbc\xaf": "a 7-Zip file; unpack it, and pack its files with tar",
    b"PAR1": "a Parquet file, not a tar file",
    b"version https://git-lfs": "a pointer of Git LFS; fetch the file itself with git lfs pull",
    b"<": "a web page, perhaps of a download that failed, not a tar file",
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """Where a pair is.

    Attributes:
        key: path of its members up to the last dot.
        image, text, json: their places; of text and JSON one may be `NOWHERE`.
    """

    key: bytes
    image: Place
    text: Place
    json: Place


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The pairs of a shard, in the order of their images.

    Attributes:
        pairs: one for each key.
        left_out: what else there is: how many, and the name of the first.
    """

    pairs: list[Pair]
    left_out: Mapping[str, tuple[int, str]]


def find_pairs(members: Iterable[tuple[bytes, int, int | None]]) -> Pairs:
    """Pairs of the members as `files_of` gives them; of equal keys the first members count.

    The key ends at the last dot, so that `v1.2.jpg` is a pair with `v1.2.txt`, and neither
    `v1.seg.png` nor `v1.cls.txt` is one with `v1`. The members of a pair may lie apart.
    """
    images: dict[bytes, tuple[bytes, Place]] = {}
    texts: dict[bytes, tuple[bytes, Place]] = {}
    jsons: dict[bytes, tuple[bytes, Place]] = {}
    kinds = {
        **dict.fromkeys(IMAGE_SUFFIXES, images),
        **dict.fromkeys(TEXT_SUFFIXES, texts),
        **dict.fromkeys(JSON_SUFFIXES, jsons),
    }
    left_out: dict[str, list[bytes]] = collections.defaultdict(list)
    for name, offset, size in members:
        if name.endswith(b"/") or not counts(name.decode("latin-1")):
            continue
        key, suffix = posixpath.splitext(name)
        kind = kinds.get(suffix.decode("latin-1").lower())
        if kind is None:
            left_out["members of other kinds"].append(name)
        elif size is None:
            left_out["links and sparse files"].append(name)
        elif size > MAX_MEMBER_BYTES:
            left_out["members of 4 GiB and more"].append(name)
        elif key in kind:
            left_out["members whose key had come before"].append(name)
        else:
            kind[key] = name, (offset, size)
    pairs = []
    for key, (name, image) in images.items():
        text, json = (kind[key][1] if key in kind else NOWHERE for kind in (texts, jsons))
        if text == json:
            left_out["images without caption"].append(name)
        else:
            pairs.append(Pair(key, image, text, json))
    left_out["captions without image"] += [
        name for key, (name, _) in {**jsons, **texts}.items() if key not in images
    ]
    return Pairs(
        pairs, {why: (len(n), n[0].decode("utf-8", "replace")) for why, n in left_out.items() if n}
    )


def files_of(read: Read, total: int) -> Iterator[tuple[bytes, int, int | None]]:
    """Name, offset and size of the files in a tar file of `total` bytes.

    The size is None where the file is not there in one piece: links and sparse files.

    Raises:
        ValueError: it is not a complete plain tar file.
    """
    position = 0
    extended: dict[bytes, bytes] = {}
    while True:
        header = read(_BLOCK, position) if position < total else b""
        if len(header) < _BLOCK:
            if position:
                raise ValueError(f"cut short: {total} bytes, without the mark of the end")
            raise _not_a_header(0, header)
        if header[0] == 0 and not any(header):
            return
        name, size, kind = _parse_header(header, position)
        if b"size" in extended and kind not in b"LKxg":
            size = _number(extended[b"size"], 10, position)
        begin = position + _BLOCK
        block, more = header, 482
        while kind == b"S" and any(block[more : more + 1]):  # the map of holes goes on
            block, more, begin = read(_BLOCK, begin), 504, begin + _BLOCK
        position = begin + (size + _BLOCK - 1) // _BLOCK * _BLOCK
        if begin + size > total:
            raise ValueError(f"cut short: {total} bytes, {begin + size} are needed")
        if kind in b"Lx":
            if size > _MAX_EXTENSION_BYTES:
                raise ValueError(f"damaged: a name of {size} bytes at byte {begin}")
            content = read(size, begin)
            extended |= _parse_pax(content) if kind == b"x" else {b"path": content.rstrip(b"\0")}
        elif kind not in b"gK":
            whole = kind in b"07\0" and not any(k.startswith(b"GNU.sparse") for k in extended)
            if whole or kind in b"012S":
                path = extended.get(b"GNU.sparse.name", extended.get(b"path", name))
                yield path, begin, size if whole else None
            extended = {}


def _parse_header(header: bytes, position: int) -> tuple[bytes, int, bytes]:
    """Name, size in bytes and type of a member, from its 512-byte header."""
    stored = header[148:156]
    expected = _number(stored, 8, position, header)
    # The checksum counts its own field as spaces. Adler-32 has the sum of all bytes, plus 1, in
    # its lower half; adding them up one by one would take longer than all the rest.
    total = expected - 8 * ord(" ") + sum(stored)
    if zlib.adler32(header) & 0xFFFF != (total + 1) % _ADLER_MODULUS:
        raise _not_a_header(position, header)
    # Sizes of 8 GiB and more are written as a big-endian number with the top bit set.
    field = header[124:136]
    size = (
        int.from_bytes(field[1:], "big") if field[0] & 0x80 else _number(field, 8, position, header)
    )
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].split(b"\0", 1)[0]
        name = prefix + b"/" + name if prefix else name
    return name, size, header[156:157]


def _number(field: bytes, base: int, position: int, header: bytes = b"") -> int:
    digits = field.strip(b" \0") or b"0"
    try:
        if not digits.isdigit():
            raise ValueError
        return int(digits, base)
    except ValueError:
        raise _not_a_header(position, header) from None


def _not_a_header(position: int, header: bytes) -> ValueError:
    if position:
        return ValueError(f"damaged: no member header at byte {position}")
    for magic, told in _OTHER_FORMATS.items():
        if header.lstrip().startswith(magic):
            return ValueError(told)
    begin = f"; it begins {header[:16]!r}" if header else ", but empty"
    return ValueError(f"not a tar file{begin}")


def _parse_pax(data: bytes) -> dict[bytes, bytes]:
    """Records `LENGTH KEY=VALUE` and a line break, where LENGTH counts the whole record."""
    records: dict[bytes, bytes] = {}
    while data:
        digits = data[:20].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        if not len(digits) + 1 < length <= len(data):
            raise ValueError("a pax header is damaged")
        key, _, value = data[len(digits) + 1 : length].removesuffix(b"\n").partition(b"=")
        records[key] = value
        data = data[length:]
    return records
