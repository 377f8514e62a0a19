"""Checksums of a directory of files, so that damage is seen before the files are used."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

from tcl_jax.files import write_json

_TABLE = "checksums.json"


def write_checksums(directory: Path) -> None:
    """Records size (bytes) and CRC-32 of every file below a directory in checksums.json."""
    table = {}
    for root, _, names in os.walk(directory):
        for name in names:
            if name != _TABLE:
                file = Path(root) / name
                table[os.fspath(file.relative_to(directory))] = _size_and_crc(file)
    write_json(directory / _TABLE, table)


def has_checksums(directory: Path) -> bool:
    """Whether `write_checksums` recorded the files of a directory."""
    return (directory / _TABLE).exists()


def find_damage(directory: Path, *, share: int = 0, shares: int = 1) -> str | None:
    """Compares the files of a directory with what `write_checksums` recorded.

    Args:
      directory: where the files are.
      share: which part of the files to read, of `shares` equal parts (one per process).
      shares: number of parts.

    Returns:
      What is wrong, naming the file, or None if nothing is or if no checksums were recorded.

    Raises:
      OSError: a file that is there cannot be read.
    """
    if not has_checksums(directory):
        return None
    try:
        table = json.loads((directory / _TABLE).read_text())
        for name, (size, crc) in sorted(table.items())[share::shares]:
            if not (directory / name).exists():
                return f"{name} is missing"
            now, now_crc = _size_and_crc(directory / name)
            if now != size:
                return f"{name} has {now} bytes instead of {size}"
            if now_crc != crc:
                return f"{name} has changed content"
    except (ValueError, AttributeError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _size_and_crc(path: Path) -> tuple[int, int]:
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return size, crc
