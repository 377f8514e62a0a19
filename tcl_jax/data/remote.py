"""Files at addresses such as gs://bucket/path, through fsspec, with an end to every wait.

Object stores now and then accept a request and never answer it. Each request here runs in a thread
that is given up after some time, and is tried again, as it is after a fault that may pass.
"""

from __future__ import annotations

import dataclasses
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from absl import logging

from tcl_jax.errors import InputError, RunError, first_cause

TIMEOUT_SECONDS = 60.0
"""How long one request may take."""

TRIES = 6
"""How often a request is made before it counts as failed; the waits between them double."""

_FIRST_WAIT_SECONDS = 0.5
# What stores call that which changes with a file's content, the surest first.
_STAMPS = ("generation", "etag", "ETag", "md5Hash", "crc32c", "mtime", "LastModified", "updated",
           "last_modified", "modified", "created")  # fmt: skip
# Gaps up to this size are read along rather than asking twice.
_MAX_GAP = 1 << 16
# What has to be installed beside fsspec, and how one gets access.
_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs", "hf": "huggingface_hub",
             "http": "aiohttp", "https": "aiohttp", "az": "adlfs", "abfs": "adlfs",
             "ssh": "paramiko", "sftp": "paramiko"}  # fmt: skip
_ACCESS = {"gs": "gcloud auth application-default login", "s3": "aws configure",
           "hf": "hf auth login"}  # fmt: skip
# Of the statuses from 400 to 499 those that may be others the next time.
_PASSING = (408, 425, 429)
_T = TypeVar("_T")


class RemoteError(RunError):
    """A request that failed or was not answered in time; names the address and the reason."""


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """One entry of a listing: `size` in bytes, `stamp` a number that changes with the content."""

    size: int
    stamp: int


def is_remote(address: str) -> bool:
    """Whether it names a protocol, as gs://bucket/file does."""
    return "://" in address


def normalize(address: str) -> str:
    """The one of several ways to write an address that `match` gives too."""
    system, path = _open(address)
    return system.unstrip_protocol(path)


def list_folder(address: str) -> dict[str, RemoteFile]:
    """The files of a folder by name; empty if there is no such folder.

    Raises:
        InputError: fsspec or its part for this protocol is not installed, or access is refused.
        RemoteError: the request failed.
    """
    system, path = _open(address)

    def look() -> list[dict[str, Any]]:
        # Never from a listing that was made before, in case files came since.
        system.invalidate_cache(path)
        return system.ls(path, detail=True)

    try:
        entries = _ask(address, look)
    except FileNotFoundError:
        return {}
    return {
        entry["name"].rpartition("/")[2]: RemoteFile(int(entry["size"]), _stamp(entry))
        for entry in entries
        if entry["type"] == "file"
    }


def has_listings(address: str) -> bool:
    """Whether `list_folder` can tell what is there; web servers have no such thing."""
    return _protocol(address) not in ("http", "https")


def takes_files(address: str) -> bool:
    """Whether files may be added in passing; each one would be a commit on the Hugging Face hub."""
    return _protocol(address) not in ("http", "https", "hf")


def find_file(address: str) -> RemoteFile | None:
    """One file, None if it is not there.

    Raises:
        InputError, RemoteError: as `list_folder`.
    """
    system, path = _open(address)
    try:
        entry = _ask(address, lambda: system.info(path))
    except FileNotFoundError:
        return None
    return RemoteFile(int(entry["size"]), _stamp(entry)) if entry.get("size") else None


def match(pattern: str) -> list[str]:
    """Addresses of the files that a pattern with `*`, `?`, `[...]` or `**` fits, sorted.

    Raises:
        InputError, RemoteError: as `list_folder`.
    """
    system, path = _open(pattern)

    def look() -> list[str]:
        system.invalidate_cache()
        return [system.unstrip_protocol(name) for name in system.glob(path)]

    return sorted(_ask(pattern, look))


def read_file(address: str) -> bytes:
    """A whole file.

    Raises:
        FileNotFoundError: there is none.
        InputError, RemoteError: as `list_folder`.
    """
    system, path = _open(address)
    return _ask(address, lambda: system.cat_file(path))


def write_file(address: str, data: bytes) -> None:
    """Writes a whole file, trying once; object stores show it when it is complete.

    Raises:
        InputError, RemoteError: as `list_folder`.
    """
    system, path = _open(address)
    _ask(address, lambda: system.pipe_file(path, data), tries=1)


def read_ranges(address: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Parts of a file, each given as (offset, size); those near each other by one request.

    Raises:
        FileNotFoundError: there is no such file.
        InputError, RemoteError: as `list_folder`.
    """
    system, path = _open(address)

    def read(begin: int, end: int) -> bytes:
        data = _ask(address, lambda: system.cat_file(path, start=begin, end=end))
        if len(data) > end - begin:
            raise InputError(
                f"{address}: the server sends whole files only, no ranges of bytes; copy the files "
                "to a local folder"
            )
        return data

    begin = min(offset for offset, _ in ranges)
    end = max(offset + size for offset, size in ranges)
    if end - begin <= sum(size for _, size in ranges) + _MAX_GAP:
        whole = read(begin, end) if end > begin else b""
        return [whole[offset - begin : offset - begin + size] for offset, size in ranges]
    return [read(offset, offset + size) if size else b"" for offset, size in ranges]


def _protocol(address: str) -> str:
    return address.partition("://")[0]


def _open(address: str) -> tuple[Any, str]:
    """The file system of an address, which fsspec keeps, and the path in it."""
    try:
        import fsspec

        return fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        protocol = _protocol(address)
        install = f"pip install fsspec {_PACKAGES.get(protocol, '')}".strip()
        raise InputError(
            f"{address!r}: what reads files at {protocol}:// is not installed ({error}). Install "
            f"it ({install}), or copy the files to a local folder"
        ) from error


def _ask(address: str, request: Callable[[], _T], tries: int | None = None) -> _T:
    """The answer to a request, made again after a silence or a failure that may pass."""
    wait, tries = _FIRST_WAIT_SECONDS, tries or TRIES
    for attempt in range(1, tries + 1):
        try:
            return _within(TIMEOUT_SECONDS, request)
        except Exception as caught:
            error = caught
        # Some file systems call "not found" whatever went wrong, and give the reason as its cause.
        while isinstance(error, FileNotFoundError) and isinstance(
            cause := error.__cause__, Exception
        ):
            if not _status(cause) and not isinstance(cause, OSError):
                break
            error = cause
        status, reason = _status(error), first_cause(error)
        if isinstance(error, FileNotFoundError) or status in (404, 410):
            raise FileNotFoundError(f"{address} is not there") from error
        refused = isinstance(error, PermissionError) or "Credential" in type(error).__name__
        if refused or status in (401, 403):
            login = _ACCESS.get(_protocol(address))
            raise InputError(
                f"{address}: access is refused ({reason}). Check the address"
                + (f", and log in ({login})" if login else "")
            ) from error
        if attempt == tries or (400 <= status < 500 and status not in _PASSING):
            raise RemoteError(f"{address}: no answer, tried {attempt} times: {reason}") from error
        logging.warning("%s: %s; trying again", address, reason)
        time.sleep(wait)
        wait *= 2
    raise AssertionError("unreachable")


def _status(error: Exception) -> int:
    """The HTTP status that an error carries, by one of the names that libraries use; or 0."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status", "status_code", "code"):
            if isinstance(status := getattr(holder, name, None), int):
                return status
    return 0


def _within(seconds: float, request: Callable[[], _T]) -> _T:
    """Runs a request in a thread of its own, which is left behind if it does not end."""
    result: list[_T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(request())
        except BaseException as error:
            failure.append(error)

    # A daemon, so that a request that hangs does not keep the process from ending.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not result:
        raise TimeoutError(f"not answered within {seconds:g} seconds")
    return result[0]


def _stamp(entry: dict[str, Any]) -> int:
    told = next((str(entry[name]) for name in _STAMPS if entry.get(name)), "")
    return zlib.crc32(told.encode())
