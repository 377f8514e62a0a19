"""Files at addresses such as gs://bucket/path, through fsspec.

Object stores now and then accept a request and never answer it: requests end after a time and are
repeated, as after temporary failures. All functions that make requests raise an `InputError` where
the package for the protocol is not installed or access is refused, and a `RemoteError` where the
request fails.
"""

from __future__ import annotations

import concurrent.futures
import glob
import io
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import fsspec
from absl import logging
from fsspec.spec import AbstractBufferedFile

from tcl_jax.errors import InputError, RunError, first_cause

TIMEOUT_SECONDS = 60.0
TRIES = 6
"""Of one request; the waits between them double."""

_FIRST_WAIT_SECONDS = 0.5
_BLOCK_BYTES = 1 << 22
_MAX_GAP = 1 << 16
# What stores call that which changes with a file's content, the surest first.
_STAMPS = ("generation", "etag", "ETag", "md5Hash", "crc32c", "mtime", "LastModified", "updated",
           "last_modified", "modified", "created")  # fmt: skip
_WEB = ("http", "https")
_TEMPORARY_STATUSES = (408, 425, 429)  # among those of 400 to 499
_T = TypeVar("_T")


class RemoteError(RunError):
    """A request that failed or was not answered in time; names the address and the reason."""


def is_remote(address: str) -> bool:
    """Whether it names a protocol, as gs://bucket/file does."""
    return "://" in address


def takes_files(address: str) -> bool:
    """Whether files may be added in passing; on the Hugging Face hub each would be a commit."""
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
        entries = _ask(pattern, request)
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
    return _ask(address, lambda: system.cat_file(path))


def write_file(address: str, data: bytes) -> None:
    """Writes a whole file, trying once; object stores show it when it is complete."""
    system, path = _open(address)
    _ask(address, lambda: system.pipe_file(path, data), tries=1)


def read_ranges(address: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Parts of a file, each given as (offset, size); by one request where they are close together.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: also where the server sends whole files only.
    """
    begin = min(offset for offset, _ in ranges)
    end = max(offset + size for offset, size in ranges)
    if end - begin <= sum(size for _, size in ranges) + _MAX_GAP:
        whole = _read_range(address, begin, end)
        return [whole[offset - begin : offset - begin + size] for offset, size in ranges]
    return [_read_range(address, offset, offset + size) for offset, size in ranges]


def open_file(address: str, size: int) -> io.BufferedIOBase:
    """A file of known size to be read from front to back, with few requests."""
    system, path = _open(address)
    file: Any = _RemoteFile(system, path, block_size=_BLOCK_BYTES, size=size)
    return io.BufferedReader(file)


class _RemoteFile(AbstractBufferedFile):
    """fsspec's buffered file, whose requests end and are tried again as the others here."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        return _read_range(self.full_name, start, end)


def _read_range(address: str, begin: int, end: int) -> bytes:
    if begin >= end:
        return b""
    system, path = _open(address)
    data = _ask(address, lambda: system.cat_file(path, start=begin, end=end))
    if len(data) > end - begin:
        raise InputError(
            f"{address}: the server sends whole files only, no ranges of bytes; copy the files to "
            "a local folder"
        )
    return data


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


# ---------------------------------------------------------------------------------------- requests


def _ask(address: str, request: Callable[[], _T], tries: int | None = None) -> _T:
    """The answer to a request, made again after a silence or a failure that may pass."""
    wait, tries = _FIRST_WAIT_SECONDS, tries or TRIES
    for attempt in range(1, tries + 1):
        try:
            return _within(TIMEOUT_SECONDS, request)
        except Exception as caught:
            error = _reason(caught)
        status, reason = _status(error), first_cause(error)
        if isinstance(error, FileNotFoundError) or status in (404, 410):
            raise FileNotFoundError(f"{address} is not there") from error
        refused = isinstance(error, PermissionError) or "Credential" in type(error).__name__
        if refused or status in (401, 403):
            raise InputError(
                f"{address}: access is refused ({reason}). Check the address, and log in to the "
                "store on this machine"
            ) from error
        if attempt == tries or (400 <= status < 500 and status not in _TEMPORARY_STATUSES):
            raise RemoteError(f"{address}: no answer, tried {attempt} times: {reason}") from error
        logging.warning("%s: %s; trying again", address, reason)
        time.sleep(wait)
        wait *= 2
    raise AssertionError("unreachable")


def _reason(error: Exception) -> Exception:
    """Why a request failed: some file systems raise "not found" from any other error."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception):
        return _reason(cause) if _status(cause) or isinstance(cause, OSError) else error
    return error


def _status(error: Exception) -> int:
    """The HTTP status that an error carries, by one of the names that libraries use; or 0."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status", "status_code", "code"):
            if isinstance(status := getattr(holder, name, None), int):
                return status
    return 0


def _within(seconds: float, request: Callable[[], _T]) -> _T:
    """Runs a request in a thread of its own, which is left behind if it does not end."""
    result: concurrent.futures.Future[_T] = concurrent.futures.Future()

    def run() -> None:
        try:
            result.set_result(request())
        except BaseException as error:
            result.set_exception(error)

    # A daemon, so that a request that hangs does not keep the process from ending.
    threading.Thread(target=run, daemon=True).start()
    try:
        return result.result(seconds)
    except TimeoutError:
        if result.done():  # the request's own
            raise
        raise TimeoutError(f"not answered within {seconds:g} seconds") from None
