"""Index files: where each image-caption pair of a tar shard is, found out once and kept.

An index lies beside its shard (`X.tar.index`) or, where that folder cannot be written, in a cache
folder. It holds for one size and time of change of the shard, and is made anew where it is stale or
damaged. Pairs are read from it one by one, and cost no memory.

The file is a `_RECORD` for each pair, the keys one after the other, a line of JSON (of which shard
it is, number of pairs, what is left out), and the CRC-32 of all that.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import logging
from tqdm import tqdm

from tcl_jax.data import remote
from tcl_jax.data.bad_samples import BadSampleError
from tcl_jax.data.captions import decode_text
from tcl_jax.data.shard_names import INDEX_SUFFIX, Shard, lookup_threads
from tcl_jax.data.tar_members import NOWHERE, RULE, LeftOut, Pair, Place, find_pairs, members_of
from tcl_jax.errors import InputError, RunError, raise_machine_fault
from tcl_jax.files import cache_folder, user_path, whole_file

_RECORD = np.dtype([
    ("image", "<u8"), ("image_size", "<u4"), ("text", "<u8"), ("text_size", "<u4"),
    ("json", "<u8"), ("json_size", "<u4"), ("key_end", "<u4"),
])  # fmt: skip
_CHECK_BYTES = 4
_FEW = 10
_BUFFER_BYTES = 4096  # small, not to read the images between two headers


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """An index file that fits its shard.

    Attributes:
        path: the index file on this machine.
        pairs: number of pairs.
        left_out: of its members, see `tar_members.LeftOut`.
        checksum: CRC-32 of keys, places and what is left out.
    """

    path: str
    pairs: int
    left_out: LeftOut
    checksum: int

    def pair(self, number: int) -> Pair:
        """Pair `number`, from 0; the caller stays in the range.

        The file is opened for each: a set has more shards than a process may hold files open.

        Raises:
            OSError: the file is gone.
            ValueError: it is shorter than at the start.
        """
        before = min(number, 1)  # the record in front says where this key begins
        with open(self.path, "rb", buffering=0) as file:
            file.seek((number - before) * _RECORD.itemsize)
            data = file.read((before + 1) * _RECORD.itemsize)
            if len(data) < (before + 1) * _RECORD.itemsize:
                raise ValueError(f"{self.path} is shorter than at the start")
            records = np.frombuffer(data, _RECORD)
            begin, end = int(records["key_end"][0]) * before, int(records["key_end"][-1])
            file.seek(self.pairs * _RECORD.itemsize + begin)
            key = file.read(end - begin)
        *places, _ = records[-1].item()
        return Pair(key, *zip(places[::2], places[1::2], strict=True))


def open_indexes(
    shards: Sequence[Shard],
    *,
    index_dir: str | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> tuple[list[ShardIndex | None], list[str]]:
    """The index of every shard, made where there is none that fits.

    Each process begins with its own share of what is to be made, and takes over from the others
    what they have finished by then: where they share the folder, each shard is indexed once.

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
    problems: dict[int, str] = {}
    with lookup_threads() as pool:
        indexes = list(pool.map(lambda shard: _find(shard, index_dir), shards))
        lacking = [i for i, index in enumerate(indexes) if index is None]
        own_first = sorted(range(len(lacking)), key=lambda n: (n - process_index) % process_count)
        jobs = {
            pool.submit(_find_or_make, shards[i], index_dir): i
            for i in (lacking[n] for n in own_first)
        }
        done = tqdm(
            concurrent.futures.as_completed(jobs), "indexing tar shards", len(jobs), unit="shard",
            mininterval=1, disable=not jobs,
        )  # fmt: skip
        try:
            for job in done:
                number = jobs[job]
                try:
                    indexes[number] = job.result()
                except InputError:
                    raise
                except (OSError, ValueError) as error:
                    raise_machine_fault(shards[number].address, error)
                    problems[number] = f"{shards[number].address} ({error})"
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return indexes, [problems[i] for i in sorted(problems)]


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
    for path in _paths(shard, index_dir):
        with contextlib.suppress(OSError):
            if index := _parse(path, path.read_bytes(), shard):
                return index
            logging.info("%s does not fit its shard any more", path)
    return None


def _find_or_make(shard: Shard, index_dir: str | None) -> ShardIndex:
    """The index of a shard: made by another process, kept beside a remote shard, or made now."""
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
    for path in _paths(shard, index_dir):
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
        OSError, ValueError: it cannot be read, or is no tar file with captions that can be decoded.
    """
    with open_shard(shard) as file:
        pairs, left_out = find_pairs(members_of(file, shard.size))
        if len(pairs) >= _FEW:  # of few pairs each is a bad sample
            _check_encoding(pairs, file)
    return _encode(shard, pairs, left_out)


def _check_encoding(pairs: Sequence[Pair], file: io.BufferedIOBase) -> None:
    """Raises a ValueError where not one caption can be decoded."""
    problems = []
    for pair, place in ((p, place) for p in pairs for place in (p.text, p.json)):
        if place == NOWHERE:
            continue
        try:
            decode_text(read_place(file, place))
            return
        except BadSampleError as error:
            problems.append(f"{pair.key.decode('utf-8', 'replace')}, {error}")
    raise ValueError(
        f"none of its {len(pairs)} captions can be read: for the first, {problems[0]}. Convert "
        "them to UTF-8"
    )


def _encode(shard: Shard, pairs: Sequence[Pair], left_out: LeftOut) -> bytes:
    of = [RULE, shard.size, shard.stamp]
    about = json.dumps({"of": of, "pairs": len(pairs), "left_out": left_out}).encode()
    ends = np.cumsum([len(pair.key) for pair in pairs], dtype=np.int64)
    records = np.array(
        [(*p.image, *p.text, *p.json, end) for p, end in zip(pairs, ends, strict=True)], _RECORD
    )
    content = b"".join([records.tobytes(), *(pair.key for pair in pairs), b"\n", about])
    return content + zlib.crc32(content).to_bytes(_CHECK_BYTES, "little")


def _parse(path: Path, data: bytes, shard: Shard) -> ShardIndex | None:
    """What an index says, if it is whole and of this shard as it is now."""
    content, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    if zlib.crc32(content).to_bytes(_CHECK_BYTES, "little") != check:
        return None
    body, _, line = content.rpartition(b"\n")
    try:
        about = json.loads(line)
        if about["of"] != [RULE, shard.size, shard.stamp]:
            return None
        pairs = about["pairs"]
        left_out = {why: (count, first) for why, (count, first) in about["left_out"].items()}
    except (ValueError, TypeError, KeyError):  # of another version
        return None
    checksum = zlib.crc32(json.dumps(left_out).encode(), zlib.crc32(body))
    return ShardIndex(os.fspath(path), pairs, left_out, checksum)


# ---------------------------------------------------------------------------- reading from a shard


@contextlib.contextmanager
def open_shard(shard: Shard) -> Iterator[io.BufferedIOBase]:
    """A shard, best read from the front to the back.

    Raises:
        OSError: it cannot be read.
        ValueError: it has changed since it was found.
    """
    if remote.is_remote(shard.address):
        yield remote.open_file(shard.address, shard.size)
        return
    with io.BufferedReader(io.FileIO(shard.address), _BUFFER_BYTES) as file:
        status = os.fstat(file.fileno())
        if (status.st_size, status.st_mtime_ns) != (shard.size, shard.stamp):
            raise ValueError("it is another file than at the start")
        yield file


def read_place(file: io.BufferedIOBase, place: Place) -> bytes:
    """The bytes at a place; fewer where the file ends before."""
    file.seek(place[0])
    return file.read(place[1])
