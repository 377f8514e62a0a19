"""Index files: where each image-caption pair of a tar shard is, found out once and kept.

An index lies beside its shard (`X.tar.index`) or, where that folder cannot be written, in a cache
folder. It is written whole or not at all, and holds for one size and time of change of the shard;
one that is stale or damaged is made anew. It is read a pair at a time, and costs no memory.

The layout, little-endian: a header (`_HEADER`, then its CRC-32), one `_RECORD` for each pair, the
keys one after the other, and what is left out, as JSON.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import struct
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from absl import logging

from tcl_jax.data import remote
from tcl_jax.data.bad_samples import BadSampleError
from tcl_jax.data.captions import decode_text
from tcl_jax.data.shard_names import INDEX_SUFFIX, Shard
from tcl_jax.data.tar_members import NOWHERE, RULE, Pair, Pairs, Read, files_of, find_pairs
from tcl_jax.errors import InputError, RunError, raise_machine_fault
from tcl_jax.files import cache_folder, user_path, whole_file

_MAGIC = b"TCLTAR2\n"
# Magic; rule of the pairs; size and stamp of the shard; pairs, bytes of JSON; CRC-32 of the rest.
_HEADER = struct.Struct("<8sIqqIII")
_CHECK = struct.Struct("<I")
# Offset and size of image, text and JSON; end of the key.
_RECORD = struct.Struct("<QIQIQII")
_BEGIN = _HEADER.size + _CHECK.size
_THREADS = 16
_FEW = 10
_REMOTE_CHUNK = 1 << 22
_SECONDS_BETWEEN_REPORTS = 15.0


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """An index file that fits its shard.

    Attributes:
        path: the index file on this machine.
        pairs: number of pairs.
        left_out: as in `Pairs`.
        checksum: CRC-32 of what it says: another one where keys or places are others.
    """

    path: str
    pairs: int
    left_out: Mapping[str, tuple[int, str]]
    checksum: int


class PairTable:
    """The pairs of an index file, by number.

    Raises:
        OSError: the file is gone.
        ValueError: it is not the file that `index` describes.
    """

    def __init__(self, index: ShardIndex) -> None:
        self._path = index.path
        self._keys = _BEGIN + index.pairs * _RECORD.size
        with open(index.path, "rb") as file:
            whole = os.fstat(file.fileno()).st_size >= self._keys
            if not whole or file.read(len(_MAGIC)) != _MAGIC:
                raise ValueError(f"{index.path} is no longer the index it was at the start")

    def __getitem__(self, number: int) -> Pair:
        """Pair `number`, from 0; the caller stays in the range.

        The file is opened for each: a set has more shards than a process may hold files open, and a
        map of a file holds it open too.

        Raises:
            OSError: the file is gone.
            ValueError: it is shorter than at the start.
        """
        before = min(number, 1)
        at, size = _BEGIN + (number - before) * _RECORD.size, (before + 1) * _RECORD.size
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            records = os.pread(descriptor, size, at)
            if len(records) < size:
                raise ValueError(f"{self._path} is shorter than at the start")
            *_, end = own = _RECORD.unpack_from(records, before * _RECORD.size)
            begin = _RECORD.unpack_from(records)[-1] if before else 0
            key = os.pread(descriptor, end - begin, self._keys + begin)
        finally:
            os.close(descriptor)
        return Pair(key, own[:2], own[2:4], own[4:6])


def open_indexes(
    shards: Sequence[Shard],
    *,
    index_dir: str | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> tuple[list[ShardIndex | None], list[str]]:
    """The index of every shard, made where there is none that fits.

    Each process begins with its own share of what is to be made, and takes over from the others
    what they have finished by then, so that a shared folder saves work and an own one does no harm.

    Args:
        shards: the tar files.
        index_dir: folder for the index files; None: beside the shards, or the cache folder.
        process_index, process_count: which of several processes this is.

    Returns:
        The indexes in the order of the shards, None for a shard that cannot be read, and a
        sentence about each of those.

    Raises:
        InputError: there is no folder to keep an index in.
        RemoteError: a remote shard cannot be reached.
        RunError: the machine fails, for which no shard is to blame.
    """
    indexes: list[ShardIndex | None] = [None] * len(shards)
    problems: dict[int, str] = {}
    with index_threads() as pool:
        for i, index in enumerate(pool.map(lambda s: _find(s, index_dir), shards)):
            indexes[i] = index
        lacking = [i for i, index in enumerate(indexes) if index is None]
        if not lacking:
            return indexes, []
        logging.info(
            "%d of %d tar shards have no index yet; reading their headers, once", len(lacking),
            len(shards),
        )  # fmt: skip
        order = [
            i for p in range(process_count) for i in lacking[(process_index + p) % process_count
            :: process_count]
        ]  # fmt: skip
        jobs = {pool.submit(_find_or_make, shards[i], index_dir): i for i in order}
        reported = time.monotonic()
        try:
            for done, job in enumerate(concurrent.futures.as_completed(jobs), 1):
                try:
                    indexes[jobs[job]] = job.result()
                except InputError:
                    raise
                except (OSError, ValueError) as error:
                    address = shards[jobs[job]].address
                    raise_machine_fault(address, error)
                    problems[jobs[job]] = f"{address} ({error})"
                if time.monotonic() - reported > _SECONDS_BETWEEN_REPORTS:
                    logging.info("indexed %d of %d tar shards", done, len(lacking))
                    reported = time.monotonic()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return indexes, [problems[i] for i in sorted(problems)]


def index_threads() -> concurrent.futures.ThreadPoolExecutor:
    """Threads to look at many files, each of which may be slow to answer."""
    return concurrent.futures.ThreadPoolExecutor(_THREADS, "tar_index")


# ------------------------------------------------------------------------------ where an index is


def _places(shard: Shard, index_dir: str | None) -> list[Path]:
    """Index files of a shard on this machine, the preferred one first."""
    address = shard.address
    if not remote.is_remote(address):
        address = os.path.abspath(address)
    name = address.rpartition("/")[2]
    # Shards of several data sets may have one name.
    unique = hashlib.blake2b(address.encode(errors="surrogateescape"), digest_size=8).hexdigest()
    if index_dir is not None:
        return [user_path(index_dir) / f"{name}.{unique}{INDEX_SUFFIX}"]
    cached = cache_folder("index") / f"{name}.{unique}{INDEX_SUFFIX}"
    return [cached] if remote.is_remote(address) else [Path(address + INDEX_SUFFIX), cached]


def _find(shard: Shard, index_dir: str | None) -> ShardIndex | None:
    """An index on this machine that fits the shard."""
    for path in _places(shard, index_dir):
        with contextlib.suppress(OSError):
            if index := _parse(path, path.read_bytes(), shard):
                return index
            logging.info("%s does not fit its shard any more", path)
    return None


def _find_or_make(shard: Shard, index_dir: str | None) -> ShardIndex:
    """The index of a shard, by another process, from beside a remote shard, or made now."""
    if index := _find(shard, index_dir):
        return index
    if not remote.is_remote(shard.address):
        return _save(shard, index_dir, _make(shard))
    beside = shard.address + INDEX_SUFFIX
    # Some stores refuse access to what is not there.
    with contextlib.suppress(OSError, InputError):
        data = remote.read_file(beside)
        if _parse(Path(beside), data, shard):
            return _save(shard, index_dir, data)
    data = _make(shard)
    try:
        if index_dir is None and remote.takes_files(beside):
            remote.write_file(beside, data)
    except (OSError, InputError, RunError) as error:
        logging.info("%s is kept on this machine only: %s", beside, error)
    return _save(shard, index_dir, data)


def _save(shard: Shard, index_dir: str | None, data: bytes) -> ShardIndex:
    reasons = []
    for path in _places(shard, index_dir):
        try:
            with whole_file(path) as temporary:
                temporary.write_bytes(data)
        except OSError as error:
            reasons.append(f"{path} ({error.strerror or error})")
            continue
        index = _parse(path, data, shard)
        assert index is not None
        return index
    raise InputError(
        f"the index of {shard.address} cannot be written to {' or '.join(reasons)}; set "
        "data.index_dir to a folder with space that can be written"
    )


# ------------------------------------------------------------------------------- what is in a file


def _make(shard: Shard) -> bytes:
    """The content of the index of a shard.

    Raises:
        OSError: the shard cannot be read.
        ValueError: it is not a complete plain tar file, or not one of its captions is text.
    """
    with open_shard(shard) as read:
        found = find_pairs(files_of(read, shard.size))
        _check_encoding(found.pairs, read)
        return _encode(shard, found)


def _check_encoding(pairs: Sequence[Pair], read: Read) -> None:
    """Refuses a shard in which not one caption can be decoded; looks no further than the first.

    Of few pairs each is a bad sample by itself.
    """
    if len(pairs) < _FEW:
        return
    problem: BadSampleError | None = None
    for offset, size in (place for pair in pairs for place in (pair.text, pair.json)):
        if (offset, size) != NOWHERE:
            try:
                decode_text(read(size, offset))
                return
            except BadSampleError as error:
                problem = problem or error
    if problem is not None:
        raise ValueError(
            f"none of its {len(pairs)} captions can be read. Of the first, "
            f"{pairs[0].key.decode('utf-8', 'replace')}, {problem}. Convert them to UTF-8"
        )


def _encode(shard: Shard, found: Pairs) -> bytes:
    """Pairs in the layout of a file."""
    records, end = [], 0
    for p in found.pairs:
        end += len(p.key)
        records.append(_RECORD.pack(*p.image, *p.text, *p.json, end))
    left_out = json.dumps(found.left_out).encode()
    content = b"".join((*records, *(pair.key for pair in found.pairs), left_out))
    counts = (len(found.pairs), len(left_out))
    header = _HEADER.pack(_MAGIC, RULE, shard.size, shard.stamp, *counts, zlib.crc32(content))
    return header + _CHECK.pack(zlib.crc32(header)) + content


def _parse(path: Path, data: bytes, shard: Shard) -> ShardIndex | None:
    """What an index says in short, if it is whole and of this shard as it is now."""
    header, content = data[: _HEADER.size], memoryview(data)[_BEGIN:]
    if len(data) < _BEGIN or data[_HEADER.size : _BEGIN] != _CHECK.pack(zlib.crc32(header)):
        return None
    *identity, pairs, size, checksum = _HEADER.unpack(header)
    if identity != [_MAGIC, RULE, shard.size, shard.stamp] or zlib.crc32(content) != checksum:
        return None
    told = json.loads(bytes(content[len(content) - size :]))
    left_out = {why: (count, first) for why, (count, first) in told.items()}
    return ShardIndex(os.fspath(path), pairs, left_out, checksum)


@contextlib.contextmanager
def open_shard(shard: Shard) -> Iterator[Read]:
    """A function that reads (size, offset) of a shard, best from the front to the back.

    Raises:
        OSError: it cannot be read.
        ValueError: it has changed since it was found.
    """
    if remote.is_remote(shard.address):
        yield _Chunks(shard.address).read
        return
    descriptor = os.open(shard.address, os.O_RDONLY)
    try:
        status = os.fstat(descriptor)
        if (status.st_size, status.st_mtime_ns) != (shard.size, shard.stamp):
            raise ValueError("it is another file than at the start")
        yield lambda size, offset: os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)


class _Chunks:
    """Reads a remote file from the front, many headers by one request."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._begin, self._chunk = 0, b""

    def read(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer at the end of the file."""
        begin = offset - self._begin
        if begin < 0 or begin + size > len(self._chunk):
            (self._chunk,) = remote.read_ranges(self._address, [(offset, max(size, _REMOTE_CHUNK))])
            self._begin, begin = offset, 0
        return self._chunk[begin : begin + size]
