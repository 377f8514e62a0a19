"""ZIP archives that need not be trusted: what NumPy and PyTorch write, with everything checked.

Format: PKWARE's APPNOTE.TXT 6.3, with its ZIP64 extension. Members are stored or deflated, on one
disk, not encrypted.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tcl_jax.convert.tensor_file import MAX_GROWTH, MAX_GROWTH_BYTES, ByteFile

MAGIC = b"PK\x03\x04"
MAX_DIRECTORY = 8 << 20
CHUNK = 1 << 18

_STORED, _DEFLATED = 0, 8
_LOCAL = struct.Struct("<4s5HIIIHH")
_CENTRAL = struct.Struct("<4s6HIIIHHHHHII")
_END = struct.Struct("<4s4HIIH")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR = struct.Struct("<4sIQI")
_ENCRYPTED = 0x2041  # this, strongly, or its directory
_UTF8 = 0x800
_ZIP64, _NONE32 = 1, 0xFFFFFFFF


class Member(NamedTuple):
    """One file in the archive: `packed` bytes from `start` that stand for `size` bytes."""

    name: str
    deflated: bool
    crc: int
    start: int
    packed: int
    size: int


class Archive:
    """The members of a ZIP archive by name.

    Raises:
        ValueError: if the archive is not whole and consistent: members that overlap, lie outside,
            have the same name, or are bigger than what the file can hold.
    """

    def __init__(self, file: ByteFile) -> None:
        self._file = file
        self.members: dict[str, Member] = {}
        self._verified: set[str] = set()
        directory, count, offset = self._directory()
        position, spans = 0, []
        for _ in range(count):
            header = _CENTRAL.unpack_from(directory, position)
            start = position + _CENTRAL.size
            position = start + sum(header[10:13])
            member, span = self._member(header, directory[start:position])
            if member.name in self.members:
                raise ValueError(f"two members of the archive are called {member.name[:80]!r}")
            self.members[member.name] = member
            spans.append(span)
        if position != len(directory):
            raise ValueError("the archive's list of members is inconsistent")
        spans.sort()
        ends = [0, *(end for _, end in spans)]
        starts = [*(start for start, _ in spans), offset]
        if any(start < end for start, end in zip(starts, ends, strict=True)):
            raise ValueError("members of the archive overlap")
        total = sum(member.size for member in self.members.values())
        if total > MAX_GROWTH * file.size + MAX_GROWTH_BYTES:
            raise ValueError(f"its members would unpack to {total:,} bytes, too many for its size")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Bytes `start` to `stop` of a member, whose checksum is verified once; uint8, [n].

        Raises:
            ValueError: if there is no such member, it is too short, or its checksum is wrong.
        """
        if name not in self.members:
            raise ValueError(f"the archive lacks {name[:80]!r}")
        member = self.members[name]
        stop = member.size if stop is None else stop
        if not 0 <= start <= stop <= member.size:
            raise ValueError(f"{name[:80]!r} has {member.size} bytes, too few for what it holds")
        result = np.empty(stop - start, np.uint8)
        crc = position = 0
        verified = name in self._verified and not member.deflated
        if verified:
            position = start
            member = member._replace(start=member.start + start, packed=stop - start)
        for chunk in _chunks(self._file, member, CHUNK):
            low, high = max(start, position), min(stop, position + len(chunk))
            if low < high:
                part = np.frombuffer(chunk, np.uint8, high - low, low - position)
                result[low - start : high - start] = part
            position += len(chunk)
            if not verified:
                crc = zlib.crc32(chunk, crc)
        if not verified and (position != member.size or crc != member.crc):
            raise ValueError(f"the checksum of {name[:80]!r} is wrong")
        self._verified.add(name)
        return result

    def head(self, name: str, size: int) -> bytes:
        """Up to `size` first bytes of a member, not verified."""
        chunks = _chunks(self._file, self.members[name], size)
        return next(chunks, b"")

    def _directory(self) -> tuple[bytes, int, int]:
        """The list of members, their number, and where in the file it begins."""
        tail_size = min(self._file.size, _END.size + 0xFFFF)
        tail_start = self._file.size - tail_size
        tail = self._file.read(tail_start, tail_size)
        found = tail.rfind(b"PK\x05\x06")
        if found < 0 or len(tail) - found < _END.size:
            raise ValueError("the end of the archive is missing")
        _, *disks, count, size, offset, comment = _END.unpack_from(tail, found)
        end = tail_start + found
        if end + _END.size + comment != self._file.size:
            raise ValueError("the archive does not end where it says")
        if end >= _LOCATOR.size:
            locator_start = end - _LOCATOR.size
            locator = _LOCATOR.unpack(self._file.read(locator_start, _LOCATOR.size))
            if locator[0] == b"PK\x06\x07":
                end = locator[2]
                record = _END64.unpack(self._file.read(end, _END64.size))
                if record[0] != b"PK\x06\x06" or end + 12 + record[1] != locator_start:
                    raise ValueError("the end of the archive is inconsistent")
                _, _, _, _, *disks, on_disk, count, size, offset = record
                disks.append(on_disk)
        if disks != [0, 0, count] or offset + size != end:
            raise ValueError("the end of the archive is inconsistent")
        if size > MAX_DIRECTORY:
            raise ValueError(f"the archive's list of members takes {size:,} bytes, too many")
        return self._file.read(offset, size), count, offset

    def _member(self, header: tuple, rest: bytes) -> tuple[Member, tuple[int, int]]:
        """A member, and the bytes of the file that it occupies.

        Args:
            header: the fixed part of its entry in the list of members.
            rest: what follows in that entry: name, extra fields, comment.
        """
        signature, _, _, flags, method, _, _, crc, packed, size, *lengths = header
        name_length, extra_length, _, disk, _, _, offset = lengths
        raw_name = rest[:name_length]
        name = raw_name.decode("utf-8" if flags & _UTF8 else "cp437")
        wide = _zip64_fields(rest[name_length : name_length + extra_length])
        size = next(wide) if size == _NONE32 else size
        packed = next(wide) if packed == _NONE32 else packed
        offset = next(wide) if offset == _NONE32 else offset
        if flags & _ENCRYPTED:
            raise ValueError(f"member {name[:80]!r} is encrypted")
        if signature != b"PK\x01\x02" or disk or method not in (_STORED, _DEFLATED):
            raise ValueError(f"member {name[:80]!r} is stored in a way that is not known here")
        if method == _STORED and packed != size:
            raise ValueError(f"the two sizes of member {name[:80]!r} differ")
        local = _LOCAL.unpack(self._file.read(offset, _LOCAL.size))
        start = offset + _LOCAL.size + local[-2] + local[-1]
        if local[0] != MAGIC or raw_name != self._file.read(offset + _LOCAL.size, local[-2]):
            raise ValueError(f"member {name[:80]!r} is not where the archive says")
        return Member(name, method == _DEFLATED, crc, start, packed, size), (offset, start + packed)


def _zip64_fields(extra: bytes) -> Iterator[int]:
    """The 64-bit numbers that stand in for 32-bit ones that are too small; at most three."""
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, position)
        position += 4
        if kind == _ZIP64:
            field = extra[position : position + min(size, 24)]
            yield from (value for (value,) in struct.iter_unpack("<Q", field[: len(field) & ~7]))
        position += size
    raise ValueError("a size in the archive's list of members is missing")


def _chunks(file: ByteFile, member: Member, size: int) -> Iterator[bytes]:
    """The bytes of a member, unpacked, at most `size` at a time and not more than it declares."""
    packed = (
        file.read(member.start + position, min(size, member.packed - position))
        for position in range(0, member.packed, size)
    )
    if not member.deflated:
        yield from packed
        return
    unpacker = zlib.decompressobj(-15)
    left, chunk = member.size, b""
    while not unpacker.eof:
        chunk = unpacker.unconsumed_tail or next(packed, b"")
        unpacked = unpacker.decompress(chunk, min(size, left + 1))
        left -= len(unpacked)
        if not chunk and not unpacked:
            raise ValueError(f"member {member.name[:80]!r} is cut short")
        if left < 0:
            raise ValueError(f"member {member.name[:80]!r} unpacks to more than it declares")
        if unpacked:
            yield unpacked
    if unpacker.unused_data or next(packed, b""):
        raise ValueError(f"member {member.name[:80]!r} is followed by something else")
