"""ZIP archives that need not be trusted: `zipfile` reads them, and what it believes is checked."""

from __future__ import annotations

import struct
import zipfile

import numpy as np

from tcl_jax.convert.tensor_file import CHUNK, BoundedReader, check_growth, file_size

MAGIC = b"PK\x03\x04"

_ENCRYPTED = 0x2041  # this, strongly, or its directory
_HEADER = 30  # bytes before a member's name


class Archive:
    """The members of a ZIP archive by name, as NumPy and PyTorch write them.

    Raises:
        ValueError or BadZipFile: if the archive is not whole and consistent: members that overlap,
            lie outside, have the same name, or are bigger than what the file can hold.
    """

    def __init__(self, file: BoundedReader) -> None:
        size = file_size(file)
        file.seek(max(size - 22, 0))
        end = file.read(22)
        if end[:4] != b"PK\x05\x06":  # which `zipfile` would look for in what comes before
            raise ValueError("the end of the archive is missing")
        self._file, self._zip = file, zipfile.ZipFile(file)
        infos = sorted(self._zip.infolist(), key=lambda info: info.header_offset)
        self.members = {info.filename: info for info in infos}
        if len(self.members) < len(infos):
            raise ValueError("two members of the archive have the same name")
        if int.from_bytes(end[10:12], "little") not in (0xFFFF, len(infos)):
            raise ValueError("the archive's number of members is inconsistent")
        if infos and infos[0].header_offset:
            raise ValueError("the archive does not begin where the file does")
        # Not all versions of `zipfile` see that the same bytes are used twice.
        starts = [*(info.header_offset for info in infos[1:]), self._zip.start_dir]
        for info, after in zip(infos, starts, strict=True):
            stored = is_stored(info)
            if (
                info.volume
                or info.flag_bits & _ENCRYPTED
                or not (stored or info.compress_type == zipfile.ZIP_DEFLATED)
                or (stored and info.compress_size != info.file_size)
            ):
                raise ValueError(f"member {info.filename[:80]!r} is stored in an unknown way")
            if info.header_offset + _HEADER + len(info.filename) + info.compress_size > after:
                raise ValueError("members of the archive overlap")
        check_growth(sum(info.file_size for info in infos), size)
        self._verified: set[str] = set()

    def open(self, name: str) -> zipfile.ZipExtFile:
        """A member to read from; its checksum is verified when its end is reached."""
        member = self._zip.open(name)
        assert isinstance(member, zipfile.ZipExtFile)
        return member

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Bytes `start` to `stop` of a member, whose checksum is verified once; uint8, [n].

        Raises:
            ValueError or BadZipFile: if it is too short, or its checksum is wrong.
        """
        member = self.members[name]
        stop = member.file_size if stop is None else stop
        result = np.empty(stop - start, np.uint8)
        if name in self._verified:
            self._file.seek(member.header_offset + _HEADER - 4)
            names = sum(struct.unpack("<HH", self._file.read(4)))
            self._file.seek(member.header_offset + _HEADER + names + start)
            position = self._file.readinto(result.data) - result.size + member.file_size
        else:
            position = 0
            with self.open(name) as content:
                while chunk := content.read(CHUNK):
                    part = chunk[max(start - position, 0) : max(stop - position, 0)]
                    at = max(position - start, 0)
                    result[at : at + len(part)] = np.frombuffer(part, np.uint8)
                    position += len(chunk)
        if position != member.file_size:
            raise ValueError(f"member {name[:80]!r} of the archive is cut short")
        if is_stored(member):
            self._verified.add(name)
        return result


def is_stored(member: zipfile.ZipInfo) -> bool:
    """Whether a member is not compressed."""
    return member.compress_type == zipfile.ZIP_STORED
