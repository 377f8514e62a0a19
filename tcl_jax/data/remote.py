"""Files at addresses such as gs://bucket/path, through fsspec.

Every function that asks a store raises an `InputError` where the package for its protocol is not
installed or access is refused, and a `RemoteError` where the store does not answer. How long one
request may take is up to the file system's package.
"""

from __future__ import annotations

import glob
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import fsspec
from absl import logging

from tcl_jax.errors import InputError, RunError, first_cause

TRIES = 6
"""Of one request; the waits between them double."""

_FIRST_WAIT_SECONDS = 0.5
_BLOCK_BYTES = 1 << 22
_MAX_GAP = 1 << 16
# What stores call that which changes with a file's content, the surest first.
_STAMPS = ("generation", "etag", "ETag", "md5Hash", "crc32c", "mtime", "LastModified", "updated",
           "last_modified", "modified", "created")  # fmt: skip
_WEB = ("http", "https")
_T = TypeVar("_T")


class RemoteError(RunError):
    """A request that failed; names the address and the reason."""


def is_remote(address: str) -> bool:
    """Whether it names a protocol, as gs://bucket/file does."""
    return "://" in address


def takes_files(address: str) -> bool:
    """Whether files may be added unasked; on the Hugging Face hub each would be a commit."""
    return _protocol(address) not in (*_WEB, "hf")


def find(pattern: str) -> dict[str, tuple[int, int]]:
    """The file of this name, the files directly in this folder, or those that the pattern matches.

    Returns:
        By address the size in bytes and a number that changes with the content; empty where there
        is nothing.
    """
    system, path = _open(pattern)

    def request() -> list[dict[str, Any]]:
        system.invalidate_cache()  # files may have come since an earlier look
        # Web servers have no listings, and a ? in their addresses begins a query.
        if glob.has_magic(path) and _protocol(pattern) not in _WEB:
            return list(system.glob(path, detail=True).values())
        entry = system.info(path)
        return system.ls(path, detail=True) if entry["type"] == "directory" else [entry]

    try:
        entries = retry(pattern, request)
    except FileNotFoundError:
        return {}
    found = {}
    for entry in sorted(entries, key=lambda entry: entry["name"]):
        if entry["type"] == "file" and entry.get("size") is not None:
            stamp = next((str(entry[name]) for name in _STAMPS if entry.get(name)), "")
            address = system.unstrip_protocol(entry["name"])
            found[address] = int(entry["size"]), zlib.crc32(stamp.encode())
    return found


def read_file(address: str) -> bytes:
    """A whole file; a FileNotFoundError if there is none."""
    system, path = _open(address)
    return retry(address, lambda: system.cat_file(path))


def write_file(address: str, data: bytes) -> None:
    """Writes a whole file; object stores show it when it is complete."""
    system, path = _open(address)
    retry(address, lambda: system.pipe_file(path, data))


def read_ranges(address: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Parts of a file, each given as (offset, size); by one request where they are close together.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: also where the answer is of another size.
    """
    begin = min(offset for offset, _ in ranges)
    end = max(offset + size for offset, size in ranges)
    if end - begin > sum(size for _, size in ranges) + _MAX_GAP:
        return [part for one in ranges for part in read_ranges(address, [one])]
    system, path = _open(address)
    data = b""
    if end > begin:
        data = retry(address, lambda: system.cat_file(path, start=begin, end=end))
    if len(data) != end - begin:
        raise InputError(
            f"{address}: {len(data)} bytes came where {end - begin} were asked for. The file has "
            "changed since the start, or the server sends whole files only: copy it to a folder"
        )
    return [data[offset - begin : offset - begin + size] for offset, size in ranges]


def open_file(address: str) -> Any:
    """A file to be read from front to back, with few requests; use it within `retry`."""
    system, path = _open(address)
    return system.open(path, "rb", block_size=_BLOCK_BYTES)


def retry(address: str, request: Callable[[], _T]) -> _T:
    """What a request returns, made again where it fails for a reason that may pass.

    Args:
        address: of the file; if that is a path on this machine, the request is made once.
        request: called without arguments; a ValueError of it is raised as it is.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: access is refused.
        RemoteError: it failed `TRIES` times.
    """
    if not is_remote(address):
        return request()
    for attempt in range(TRIES):
        try:
            return request()
        except ValueError:
            raise
        except Exception as caught:
            error = _answer(caught)
            status, reason = _status(error), first_cause(error)
            if isinstance(error, PermissionError) or status in (401, 403):
                raise InputError(
                    f"{address}: access is refused ({reason}). Check the address, and log in to "
                    "the store on this machine"
                ) from caught
            if isinstance(error, FileNotFoundError) or status in (404, 410):
                raise FileNotFoundError(f"{address} is not there") from caught
        if attempt < TRIES - 1:
            logging.warning("%s: %s; trying again", address, reason)
            time.sleep(_FIRST_WAIT_SECONDS * 2**attempt)
    raise RemoteError(f"{address}: no answer, tried {TRIES} times: {reason}")


def _answer(error: Exception) -> Exception:
    """The store's own answer: some file systems raise "not found" from any other one."""
    cause = error.__cause__
    hides = isinstance(cause, OSError) or _status(cause) is not None
    return cause if isinstance(error, FileNotFoundError) and hides else error  # type: ignore[return-value]


def _status(error: BaseException | None) -> int | None:
    """The HTTP status that an error has, under one of the names that libraries give it."""
    holders, names = (error, getattr(error, "response", None)), ("status", "status_code", "code")
    values = (getattr(holder, name, None) for holder in holders for name in names)
    return next((value for value in values if isinstance(value, int)), None)


def _protocol(address: str) -> str:
    return address.partition("://")[0]


def _open(address: str) -> tuple[Any, str]:
    """The file system of an address, which fsspec keeps, and the path in it."""
    try:
        return fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"{address!r}: what reads files at {_protocol(address)}:// is not installed ({error}). "
            "Install it with pip, or copy the files to a local folder"
        ) from error
