"""What is in a tar file, and which of its members make image-caption pairs.

Only headers are read. Formats ustar, GNU and pax, with their long names; compressed tar files have
no random access and are refused.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
"""Extensions, in any letter case, of the members taken as images."""

TEXT_EXTENSIONS = ("txt", "text")
"""Extensions of the members with a caption in UTF-8."""

JSON_EXTENSION = "json"
"""Extension of the members whose field `caption` counts where there is no text member."""

MAX_MEMBER_BYTES = (1 << 32) - 1
"""Larger members are passed over; no caption or photograph comes near it."""

Read: TypeAlias = Callable[[int, int], bytes]
"""(size, offset) to the bytes there, fewer at the end of the file."""

_BLOCK = 512
_ADLER_MODULUS = 65521
_MAX_EXTENSION_BYTES = 1 << 24


@dataclasses.dataclass(frozen=True)
class Pair:
    """Where a pair is: key, and offset and size in bytes of image and caption.

    Attributes:
        key: path of the member up to the first dot of its file name.
        is_json: whether the caption is a field of a JSON member.
    """

    key: bytes
    image_offset: int
    image_size: int
    text_offset: int
    text_size: int
    is_json: bool


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The pairs of a shard, in the order of their images.

    Attributes:
        pairs: one for each key.
        unpaired: images without caption, and captions without image.
        repeated: images left out because their key had come before.
    """

    pairs: list[Pair]
    unpaired: int
    repeated: int


def find_pairs(members: Iterable[tuple[bytes, int, int]]) -> Pairs:
    """Pairs of the members (name, offset, size); of equal keys the first image and caption count.

    The members of a pair need not be next to each other.
    """
    images: dict[bytes, tuple[int, int]] = {}
    texts: dict[bytes, tuple[int, int]] = {}
    jsons: dict[bytes, tuple[int, int]] = {}
    kinds = {
        **dict.fromkeys(IMAGE_EXTENSIONS, images),
        **dict.fromkeys(TEXT_EXTENSIONS, texts),
        JSON_EXTENSION: jsons,
    }
    repeated = 0
    for name, offset, size in members:
        folder, slash, file = name.rpartition(b"/")
        stem, _, extension = file.partition(b".")
        kind = kinds.get(extension.decode("latin-1").lower())
        if not stem or kind is None or size > MAX_MEMBER_BYTES:
            continue
        key = folder + slash + stem
        if key not in kind:
            kind[key] = (offset, size)
        elif kind is images:
            repeated += 1
    pairs = []
    for key, image in images.items():
        if caption := texts.get(key) or jsons.get(key):
            pairs.append(Pair(key, *image, *caption, key not in texts))
    unpaired = len(images) - len(pairs) + len(texts.keys() - images.keys())
    return Pairs(pairs, unpaired, repeated)


def regular_members(read: Read, total: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, offset and size of the regular files of a tar file of `total` bytes.

    Raises:
        ValueError: it is not a complete plain tar file.
    """
    position = 0
    extended: dict[bytes, bytes] = {}
    while True:
        header = read(_BLOCK, position)
        if len(header) < _BLOCK:
            raise ValueError(
                f"cut short: {total} bytes, without the mark of the end"
                if position
                else "not a tar file"
            )
        if header[0] == 0 and not any(header):
            return
        name, size, kind = _parse_header(header, position)
        if b"size" in extended and kind not in b"LKxg":
            size = _number(extended[b"size"], 10, position)
        begin = position + _BLOCK
        position = begin + (size + _BLOCK - 1) // _BLOCK * _BLOCK
        if begin + size > total:
            raise ValueError(f"cut short: {total} bytes, {begin + size} are needed")
        if kind in b"Lx":
            if size > _MAX_EXTENSION_BYTES:
                raise ValueError(f"damaged: a name of {size} bytes at byte {begin}")
            content = read(size, begin)
            extended |= _parse_pax(content) if kind == b"x" else {b"path": content.rstrip(b"\0")}
        elif kind not in b"gK":
            if kind in b"07\0":
                yield extended.get(b"path", name), begin, size
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
    packed = " (gzip)" if header[:2] == b"\x1f\x8b" else ""
    return ValueError(f"not a plain tar file: no member header at byte {position}{packed}")


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
