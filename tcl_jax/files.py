"""Paths as people write them, hashes, and files that are whole or absent."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as people write it: ~ is the home directory; ~nobody, who has none, stays as it is."""
    return Path(os.path.expanduser(path))


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


def why_unwritable(folder: Path) -> str | None:
    """Why a folder cannot be written, or not be made, in words; None where it can."""
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


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes indented JSON, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
