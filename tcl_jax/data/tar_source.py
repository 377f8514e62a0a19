"""Random access to image-caption pairs in webdataset shards, on disk or at fsspec addresses.

A shard is an uncompressed tar file in which the members `KEY.jpg` (or another image) and `KEY.txt`
or `KEY.json` make a pair. An index made once says where each pair is; afterwards pairs are read by
position, in any order, so that one can shuffle over the whole set and resume anywhere.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import hashlib
import itertools
import zlib
from collections.abc import Sequence
from typing import Any, SupportsIndex

from absl import logging

from tcl_jax.data import remote
from tcl_jax.data.bad_samples import BadSampleError
from tcl_jax.data.caption_cache import caption_path, check_caption_files, read_embeddings
from tcl_jax.data.captions import read_captions
from tcl_jax.data.shard_names import Found, Shard, find_shards
from tcl_jax.data.tar_index import ShardIndex, open_indexes, open_shard, read_place
from tcl_jax.data.tar_members import NOWHERE, Pair, Place
from tcl_jax.errors import InputError, as_input_error, shorten


class TarSource:
    """All pairs of a set of shards, in the order of the patterns and of the images in a shard.

    The places of the pairs stay in index files (see `tar_index`): an object costs a few hundred
    bytes a shard, whatever the number of pairs, and as much when it is pickled. Files are opened
    for each read, so that any number of shards and threads will do. Equal keys in two shards are
    two pairs.

    Args:
        patterns: paths or addresses of tar files, see `shard_names`; each file counts once.
        allow_missing: go on without shards that are missing or cannot be read; they are logged.
        index_dir: local folder for the index files; None: beside the shards where that can be
            written, else the user's cache folder.
        process_index, process_count: which of several processes this is; they share the work of
            indexing.
        caption_field: field of the JSON members that has the captions; empty: the text members, or
            usual fields, see `read_captions`.
        text_tower: the one whose embeddings of the captions come with the pairs, as
            `caption_cache` keeps them; None: no embeddings.

    Attributes:
        patterns: as given.
        left_out: what is not used and how much of it, in words; empty: nothing.
        indexes: the index of each shard that has pairs, in their order.

    Raises:
        InputError: shards are missing or cannot be read (unless `allow_missing`), there is no pair
            at all, a store refuses access, index files cannot be written, or a shard has no
            embeddings of that text tower.
        RemoteError: a store cannot be reached.
    """

    def __init__(
        self,
        patterns: Sequence[str],
        *,
        allow_missing: bool = False,
        index_dir: str | None = None,
        process_index: int = 0,
        process_count: int = 1,
        caption_field: str = "",
        text_tower: str | None = None,
    ) -> None:
        self.patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
        if index_dir is not None and remote.is_remote(index_dir):
            raise InputError(
                f"index_dir={index_dir!r}: index files need a local folder; leave it out to keep "
                "them beside the shards as well"
            )
        self._caption_field = caption_field
        found = require_shards(self.patterns, allow_missing)
        indexes = open_indexes(
            found.shards,
            index_dir=index_dir,
            process_index=process_index,
            process_count=process_count,
        )
        problems = [why for why in indexes if isinstance(why, str)]
        left_out = list(found.problems)
        if problems:
            count = f"{len(problems)} of {len(indexes)} tar shards cannot be read"
            left_out.append(f"{count}: {shorten(problems)}")
        _check(left_out, allow_missing, some_left=len(problems) < len(indexes))
        read = [
            (shard, index)
            for shard, index in zip(found.shards, indexes, strict=True)
            if isinstance(index, ShardIndex)
        ]
        if empty := [shard.address for shard, index in read if not index.pairs]:
            left_out.append(f"no image-caption pairs in {shorten(empty)}")
        left_out += _members_left_out(read)
        self.left_out = "; ".join(left_out)
        used = [(shard, index) for shard, index in read if index.pairs]
        if not used:
            raise InputError(
                f"{self.left_out}: members must be named KEY.jpg (or another suffix of images) "
                "and KEY.txt, or KEY.json with a caption in it"
            )
        self._shards: list[Shard] = [shard for shard, _ in used]
        # The same pairs with other captions are other data.
        field = caption_field.encode()
        self.indexes: list[ShardIndex] = [
            dataclasses.replace(index, checksum=zlib.crc32(field, index.checksum))
            for _, index in used
        ]
        self._ends = list(itertools.accumulate(index.pairs for index in self.indexes))
        self._text_tower = text_tower
        if text_tower is not None:
            check_caption_files(self._shards, self.indexes, text_tower)
        logging.log(
            logging.WARNING if left_out else logging.INFO,
            "%d pairs in %d shards; left out: %s",
            len(self), len(used), self.left_out or "nothing",
        )  # fmt: skip

    @property
    def fingerprint(self) -> str:
        """Tells one set of pairs from another, wherever the shards are."""
        content = ",".join(f"{index.pairs}:{index.checksum}" for index in self.indexes)
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()

    @property
    def ranges(self) -> list[range]:
        """The numbers of the pairs of each shard."""
        return [range(a, b) for a, b in itertools.pairwise([0, *self._ends])]

    def __len__(self) -> int:
        """Number of pairs."""
        return self._ends[-1]

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Reads a pair.

        Returns:
            `image`, the bytes of a file; `text`, the captions, mostly one; where there is none,
            `problem`, a `BadSampleError` that says why; `key`, the name in the shard; `shard`, the
            path or address of the tar file. `text_embedding`, float32 [n, d], comes where the
            source was asked for it.

        Raises:
            IndexError: outside of 0 to len - 1.
            InputError: the shard cannot be read, or has changed since it was indexed; access is
                refused, or the embedding of a caption is damaged.
            RemoteError: the store cannot be reached.
        """
        i = index.__index__()
        if not 0 <= i < len(self):
            raise IndexError(f"pair {i}: there are {len(self)}.")
        number = bisect.bisect_right(self._ends, i)
        shard, place = self._shards[number], i - (self._ends[number - 1] if number else 0)
        with as_input_error(f"{shard.address}: pair {place} cannot be read"):
            pair = self.indexes[number].pair(place)
            image, text, json = _read(shard, [pair.image, pair.text, pair.json])
        key = pair.key.decode("utf-8", "replace")
        example: dict[str, Any] = {"image": image, "text": [], "key": key, "shard": shard.address}
        try:
            example["text"] = read_captions(text, json, self._caption_field)
        except BadSampleError as error:
            example["problem"] = error
        if self._text_tower is not None:
            path = caption_path(self.indexes[number], self._text_tower)
            example["text_embedding"] = read_embeddings(path, place, example["text"])
        return example

    def captions(self, number: int) -> list[list[str]]:
        """The captions of shard `number`, from 0, as the pairs have them; images are not read.

        Raises:
            InputError, RemoteError: as for a pair.
        """
        shard, index = self._shards[number], self.indexes[number]

        def read_all() -> list[list[str]]:
            with open_shard(shard) as file:
                return [self._captions(file, index.pair(i)) for i in range(index.pairs)]

        with as_input_error(f"{shard.address}: its captions cannot be read"):
            return remote.retry(shard.address, read_all)

    def _captions(self, file: Any, pair: Pair) -> list[str]:
        text, json = read_place(file, pair.text), read_place(file, pair.json)
        try:
            return read_captions(text, json, self._caption_field)
        except BadSampleError:
            return []

    def __repr__(self) -> str:
        """The call that makes it, in short."""
        return f"TarSource({list(self.patterns)!r})"


def require_shards(patterns: Sequence[str], allow_missing: bool) -> Found:
    """`find_shards`, at least one of them; unless `allow_missing`, none may be missing.

    Raises:
        InputError: as `find_shards`, and where shards are missing or no pattern is given.
    """
    if not patterns:
        raise InputError(
            "no tar shards were given: name at least one path or pattern, as in "
            "--config.data.shards='pairs/*.tar'; `python -m tcl_jax.pack` makes them of images "
            "with captions"
        )
    found = find_shards(patterns)
    _check(found.problems, allow_missing, some_left=bool(found.shards))
    return found


def _check(problems: Sequence[str], allowed: bool, some_left: bool) -> None:
    if problems and not (allowed and some_left):
        advice = "; data.allow_missing_shards goes on without them" if some_left else ""
        raise InputError(
            f"{'; '.join(problems)}. Check the patterns (a folder stands for the tar files "
            f"directly in it) and download damaged shards again{advice}"
        )


def _members_left_out(read: Sequence[tuple[Shard, ShardIndex]]) -> list[str]:
    """How many members of shards are not used, by the reason, and one of each."""
    counts: collections.Counter[str] = collections.Counter()
    first: dict[str, str] = {}
    for shard, index in read:
        for why, (count, name) in index.left_out.items():
            counts[why] += count
            first.setdefault(why, f"{name} in {shard.address}")
    return [f"{why}: {count:,} (the first: {first[why]})" for why, count in counts.items()]


def _read(shard: Shard, places: Sequence[Place]) -> list[bytes | None]:
    """The bytes at places of a shard; None for `NOWHERE`."""
    if not remote.is_remote(shard.address):
        with open_shard(shard) as file:
            return [read_place(file, place) for place in places]
    there = [place for place in places if place != NOWHERE]
    found = dict(zip(there, remote.read_ranges(shard.address, there), strict=True))
    return [found.get(place) for place in places]
