"""Index files: where each image-caption pair of a tar shard is, found out once and kept.

An index lies beside its shard (`X.tar.index`) or, where that folder cannot be written, in a cache
folder. It holds for one size and time of change of the shard, and is made anew where it is stale.

The file is a line of JSON (of which shard it is, how to read on, what is left out) and a table with
a record for each pair, which is read record by record and costs no memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from tqdm import tqdm

from tcl_jax.data import remote
from tcl_jax.data.shard_names import INDEX_SUFFIX, Shard, lookup_threads
from tcl_jax.data.tar_members import NOWHERE, RULE, LeftOut, Pair, Place, find_pairs
from tcl_jax.errors import InputError, RunError, raise_machine_fault
from tcl_jax.files import cache_folder, user_path, whole_file

_BUFFER_BYTES = 4096  # small, not to read the images between two headers


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """An index file that fits its shard.

    Attributes:
        path: the index file on this machine.
        begin: byte at which its table begins.
        pairs: number of pairs, the rows of the table.
        key_bytes: size of the longest key.
        left_out: of its members, see `tar_members.LeftOut`.
        checksum: CRC-32 of keys, places and what is left out.
    """

    path: str
    begin: int
    pairs: int
    key_bytes: int
    left_out: LeftOut
    checksum: int

    def pair(self, number: int) -> Pair:
        """Pair `number`, from 0; the caller stays in the range.

        The file is opened for each: a set has more shards than a process may hold files open.

        Raises:
            OSError, ValueError: the file is gone, or shorter than at the start.
        """
        record = _record(self.key_bytes)
        offset = self.begin + number * record.itemsize
        (row,) = np.fromfile(self.path, record, 1, offset=offset)
        *places, key = row.item()
        return Pair(key, *zip(places[::2], places[1::2], strict=True))


def _record(key_bytes: int) -> np.dtype[np.void]:
    return np.dtype([
        ("image", "<u8"), ("image_size", "<u4"), ("text", "<u8"), ("text_size", "<u4"),
        ("json", "<u8"), ("json_size", "<u4"), ("key", f"S{key_bytes}"),
    ])  # fmt: skip


def open_indexes(
    shards: Sequence[Shard],
    *,
    index_dir: str | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> list[ShardIndex | str]:
    """The index of every shard, made where there is none that fits.

    Each process begins with its own share of what is to be made, and takes over from the others
    what they have finished by then: where they share the folder, each shard is indexed once.

    Args:
        shards: the tar files.
        index_dir: folder for the index files; None: beside the shards, or the cache folder.
        process_index, process_count: which of several processes this is.

    Returns:
        The indexes in the order of the shards; for a shard that cannot be read, why.

    Raises:
        InputError: there is no folder to keep an index in.
        RemoteError: a remote shard cannot be reached.
        RunError: the machine fails, for which no shard is to blame.
    """
    with lookup_threads() as pool:
        found: list[Any] = list(pool.map(lambda shard: _find(shard, index_dir), shards))
        lacking = [i for i, index in enumerate(found) if index is None]
        own_first = sorted(range(len(lacking)), key=lambda n: (n - process_index) % process_count)
        order = [lacking[n] for n in own_first]
        made = pool.map(lambda i: _find_or_make(shards[i], index_dir), order)
        for i, index in zip(
            order,
            tqdm(made, "indexing tar shards", len(order), unit="shard", disable=not order),
            strict=True,
        ):
            found[i] = index
    return found


# ------------------------------------------------------------------------------ where an index is


def _paths(shard: Shard, index_dir: str | None) -> list[Path]:
    """Index files of a shard on this machine, the preferred one first."""
    address = shard.address
    if not remote.is_remote(address):
        address = os.path.abspath(address)
    # Shards of several data sets may have one name.
    unique = hashlib.blake2b(address.encode(errors="surrogateescape"), digest_size=8).hexdigest()
    name = f"{address.rpartition('/')[2]}.{unique}{INDEX_SUFFIX}"
    if index_dir is not None:
        return [user_path(index_dir) / name]
    beside = [] if remote.is_remote(address) else [Path(address + INDEX_SUFFIX)]
    return [*beside, cache_folder("index") / name]


def _find(shard: Shard, index_dir: str | None) -> ShardIndex | None:
    """The index that fits the shard as it is now."""
    for path in _paths(shard, index_dir):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # of another version
            with path.open("rb") as file:
                line, size = file.readline(), os.fstat(file.fileno()).st_size
            about = json.loads(line)
            of, left_out = about.pop("of"), about.pop("left_out")
            left_out = {why: (count, first) for why, (count, first) in left_out.items()}
            index = ShardIndex(os.fspath(path), len(line), left_out=left_out, **about)
            table_bytes = index.pairs * _record(index.key_bytes).itemsize
            if of == _of(shard) and size == len(line) + table_bytes:
                return index
            logging.info("%s does not fit its shard any more", path)
    return None


def _find_or_make(shard: Shard, index_dir: str | None) -> ShardIndex | str:
    """The index of a shard, or why there can be none: made by another process, kept beside a remote
    shard, or made now.
    """
    index = _find(shard, index_dir)
    beside = shard.address + INDEX_SUFFIX
    is_remote = remote.is_remote(beside)
    if index is None and is_remote:
        # Some stores refuse access to what is not there.
        with contextlib.suppress(OSError, InputError):
            _save(shard, index_dir, remote.read_file(beside))
            index = _find(shard, index_dir)
    if index is not None:
        return index
    try:
        data = remote.retry(shard.address, lambda: _make(shard))
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise_machine_fault(shard.address, error)
        return f"{shard.address} ({error})"
    if is_remote and index_dir is None and remote.takes_files(beside):
        try:
            remote.write_file(beside, data)
        except (OSError, InputError, RunError) as error:
            logging.info("%s is kept on this machine only: %s", beside, error)
    _save(shard, index_dir, data)
    index = _find(shard, index_dir)
    assert index is not None
    return index


def _save(shard: Shard, index_dir: str | None, data: bytes) -> None:
    reasons = []
    for path in _paths(shard, index_dir):
        try:
            with whole_file(path) as temporary:
                temporary.write_bytes(data)
            return
        except OSError as error:
            reasons.append(f"{path} ({error.strerror or error})")
    raise InputError(
        f"the index of {shard.address} cannot be written to {' or '.join(reasons)}; set "
        "data.index_dir to a folder with space that can be written"
    )


# ------------------------------------------------------------------------------- what is in a file


def _make(shard: Shard) -> bytes:
    """The content of the index of a shard.

    Raises:
        OSError, ValueError: it cannot be read, or is no tar file.
    """
    with open_shard(shard) as file:
        return _encode(shard, *find_pairs(file))


def _encode(shard: Shard, pairs: Sequence[Pair], left_out: LeftOut) -> bytes:
    key_bytes = max((len(pair.key) for pair in pairs), default=1)
    table = np.array([(*p.image, *p.text, *p.json, p.key) for p in pairs], _record(key_bytes))
    about = {
        "of": _of(shard),
        "pairs": len(pairs),
        "key_bytes": key_bytes,
        "left_out": left_out,
        "checksum": _checksum(pairs, left_out),
    }
    return json.dumps(about).encode() + b"\n" + table.tobytes()


def _of(shard: Shard) -> str:
    """What an index must say that it is of; of one length, so that tables begin at one place."""
    return f"{RULE:08x}-{shard.size:016x}-{shard.stamp:016x}"


def _checksum(pairs: Sequence[Pair], left_out: LeftOut) -> int:
    """As checkpoints have it in their fingerprints: by another rule they would fit no data."""
    checksum = key_end = 0
    for pair in pairs:
        key_end += len(pair.key)
        record = struct.pack("<QIQIQII", *pair.image, *pair.text, *pair.json, key_end)
        checksum = zlib.crc32(record, checksum)
    checksum = zlib.crc32(b"".join(pair.key for pair in pairs), checksum)
    return zlib.crc32(json.dumps(left_out).encode(), checksum)


# ---------------------------------------------------------------------------- reading from a shard


@contextlib.contextmanager
def open_shard(shard: Shard) -> Iterator[Any]:
    """A shard, best read from the front to the back.

    Raises:
        OSError: it cannot be read.
        ValueError: it has changed since it was found.
    """
    if remote.is_remote(shard.address):
        with remote.open_file(shard.address) as remote_file:
            yield remote_file
        return
    with open(shard.address, "rb", buffering=_BUFFER_BYTES) as file:
        status = os.fstat(file.fileno())
        if (status.st_size, status.st_mtime_ns) != (shard.size, shard.stamp):
            raise ValueError("it is another file than at the start")
        yield file


def read_place(file: Any, place: Place) -> bytes | None:
    """The bytes at a place of an open shard; None for `NOWHERE`.

    Raises:
        ValueError: the file ends before.
    """
    if place == NOWHERE:
        return None
    file.seek(place[0])
    data: bytes = file.read(place[1])
    if len(data) != place[1]:
        raise ValueError(f"it is cut short: {len(data)} of {place[1]} bytes at {place[0]}")
    return data
