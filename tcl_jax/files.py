"""Paths as people write them, hashes, and files that are whole or absent."""

from __future__ import annotations

import codecs
import contextlib
import functools
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

IMAGE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".mpo", ".png", ".apng", ".webp", ".gif",
    ".bmp", ".tif", ".tiff", ".avif", ".avifs", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".j2c",
    ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".qoi", ".psd",
))  # fmt: skip
"""Endings, in lower case, of names that folders and shards give to images."""

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_SHOWN = 60


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as people write it: ~ is the home directory; ~nobody, who has none, stays as it is."""
    return Path(os.path.expanduser(path))


def read_text(path: str | os.PathLike[str]) -> str:
    """A text file, as `decode_text` reads it.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is something else; the message says which line, and what to do.
    """
    try:
        return decode_text(user_path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{error}; save it as UTF-8") from error


def decode_text(data: bytes) -> str:
    """Text in UTF-8, or in UTF-16 or UTF-32 with the mark that Windows begins them with.

    Raises:
        ValueError: if it is something else; the message says what it looks like.
    """
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = "\0" if encoding == "utf-8" and b"\0" in data else data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding.startswith("utf-8"):
            number = data.count(b"\n", 0, error.start)
            line = data.split(b"\n")[number].decode("latin-1").strip()
            raise ValueError(
                f"line {number + 1} is not UTF-8; as Latin-1 it would be {line[:_SHOWN]!r}"
            ) from error
        raise ValueError(f"it is not the {encoding} text it begins as: {error.reason}") from error
    if "\0" in text:
        raise ValueError("it has bytes of zero, as UTF-16 without a mark has")
    return text


def cache_folder(name: str) -> Path:
    """Where files of a kind are kept for this user; it need not be there."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "tcl_jax" / name


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary path to write to, which takes the place of `path` when the body ends well.

    ~ is the home directory, and folders are made as needed. If the body fails, `path` is as it was
    and nothing is left behind. Several processes may write one file; the last one counts.
    """
    path = user_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Process numbers are not unique over the machines that share a folder.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def why_unwritable(folder: Path, *, utf8: bool = False) -> str | None:
    """Why a folder cannot be written, or not be made, in words; None where it can.

    Args:
        folder: there or not.
        utf8: whether its name must be UTF-8, as Orbax wants it.
    """
    if utf8 and str(folder).encode(errors="replace") != os.fsencode(folder):
        return "its name is not UTF-8, and checkpoints need that"
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        return f"{nearest} is a file"
    if not os.access(nearest, os.R_OK | os.W_OK | os.X_OK):
        return f"{nearest} cannot be read and written"
    return None


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file in hexadecimal; read once as long as its size and time stay the same."""
    status = os.stat(path)
    return _sha256(os.path.abspath(path), status.st_size, status.st_mtime_ns)


@functools.lru_cache
def _sha256(path: str, size: int, modified: int) -> str:
    del size, modified
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def short_hash(content: Any) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of a value, as JSON with its keys sorted."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_json(path: Path, max_bytes: int) -> Any:
    """The content of a JSON file that need not be trusted.

    Raises:
        OSError: if it cannot be read.
        ValueError, RecursionError: if it is no JSON, nested too deeply or larger than `max_bytes`.
    """
    if path.stat().st_size > max_bytes:
        raise ValueError(f"it has more than {max_bytes} bytes")
    return json.loads(path.read_bytes())


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes indented JSON, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


PASSED_OVER = re.compile(
    r"(?i)(^|/)(\.(?!\.?(/|$))|(__macosx|@eadir|thumbs\.db|desktop\.ini|\$recycle\.bin)(/|$)"
    r"|paxheaders?\b)"
)
"""In paths: what is hidden, and what macOS, Synology, Windows and tar put beside files."""


def counts(path: str) -> bool:
    """Whether a file or folder is one that people mean, by all parts of its path."""
    return PASSED_OVER.search(path) is None


def files_below(folder: str | os.PathLike[str]) -> Iterator[str]:
    """Paths of all files below a folder, in order, also through links to folders, each folder once.

    Hidden files and folders are passed over, and what systems put beside files by themselves.

    Args:
        folder: nothing is found where it is none.

    Raises:
        OSError: if a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    if not os.path.isdir(folder):
        return
    seen = set()
    for parent, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(filter(counts, folders))
        yield from (os.path.join(parent, file) for file in sorted(filter(counts, files)))
