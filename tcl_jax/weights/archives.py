"""ZIP archives of NumPy and PyTorch, read by `zipfile` with the checks that it leaves out."""

from __future__ import annotations

import struct
import zipfile

import numpy as np

from tcl_jax.weights.tensor_file import CHUNK, BoundedReader, check_growth, file_size

MAGIC = b"PK\x03\x04"

_ENCRYPTED = 0x2041  # this, strongly, or its directory
_HEADER = 30  # bytes before a member's name


class Archive:
    """The members of a ZIP archive by name.

    Raises:
        ValueError or BadZipFile: if it is damaged, members have the same name or are stored in
            another way than NumPy and PyTorch do, or they are bigger than what the file can hold.
    """

    def __init__(self, file: BoundedReader) -> None:
        self._file, self._zip = file, zipfile.ZipFile(file)
        infos = self._zip.infolist()
        self.members = {info.filename: info for info in infos}
        if len(self.members) < len(infos):
            raise ValueError("two members of the archive have the same name")
        for info in infos:
            stored = is_stored(info)
            if (
                info.flag_bits & _ENCRYPTED
                or not (stored or info.compress_type == zipfile.ZIP_DEFLATED)
                or (stored and info.compress_size != info.file_size)
            ):
                raise ValueError(f"member {info.filename[:80]!r} is stored in an unknown way")
        check_growth(sum(info.file_size for info in infos), file_size(file))
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
