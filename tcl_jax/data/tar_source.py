"""Random access to image-caption pairs in webdataset shards, on disk or at fsspec addresses.

A shard is an uncompressed tar file in which the members `KEY.jpg` (or jpeg, png, webp) and
`KEY.txt` (or text; or a `KEY.json` with a field `caption`) make a pair. An index made once says
where each pair is; afterwards pairs are read by position, in any order, so that one can shuffle
over the whole set and resume anywhere.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
from collections.abc import Sequence
from typing import Any, NotRequired, SupportsIndex, TypedDict

import numpy as np
from absl import logging

from tcl_jax.data import remote
from tcl_jax.data.caption_cache import CaptionFile, open_caption_files
from tcl_jax.data.shard_names import Shard, find_shards, shorten
from tcl_jax.data.tar_index import PairTable, ShardIndex, open_indexes, open_shard
from tcl_jax.data.tar_members import IMAGE_EXTENSIONS, TEXT_EXTENSIONS
from tcl_jax.errors import InputError


class CaptionedImage(TypedDict):
    """One example.

    `image` has the bytes of an image file, `text` the caption, None where a JSON member has none;
    `key` is the name in the shard, and `shard` the path or address of the tar file.
    `text_embedding`, float32 [d], is there where the source was asked for it.
    """

    image: bytes
    text: str | None
    key: str
    shard: str
    text_embedding: NotRequired[np.ndarray]


class TarSourceError(InputError):
    """Shards are missing, damaged or hold no pairs; the message names them."""


class TarSource:
    """All pairs of a set of shards, in the order of the patterns and of the images in a shard.

    The places of the pairs stay in index files (see `tar_index`): an object costs a few hundred
    bytes a shard, whatever the number of pairs, and as much when it is pickled. Files are opened
    for each read, so that any number of shards and threads will do. Members that are not a pair are
    passed over. Of equal keys in a shard the first counts; equal keys in two shards are two pairs.

    Args:
        patterns: paths or addresses of tar files; `{000..010}` counts, `{a,b}` lists, `*`, `?` and
            `[...]` match. A file that is named twice counts once.
        allow_missing: go on without shards that are missing or cannot be read; they are logged.
        index_dir: local folder for the index files; None: beside the shards where that can be
            written, else the user's cache folder.
        process_index, process_count: which of several processes this is; they share the work of
            indexing.
        text_tower: the one whose embeddings of the captions come with the pairs, as
            `caption_cache` keeps them; None: no embeddings.

    Raises:
        TarSourceError: a pattern names a file that is not there, a shard cannot be read, is cut
            short or is not a plain tar file (unless `allow_missing`), or there is no pair at all.
        InputError: a pattern is none, its protocol is not installed, there is no place for
            index files, or a shard has no embeddings of that text tower.
        OSError: a remote folder cannot be listed.
    """

    def __init__(
        self,
        patterns: Sequence[str],
        *,
        allow_missing: bool = False,
        index_dir: str | None = None,
        process_index: int = 0,
        process_count: int = 1,
        text_tower: str | None = None,
    ) -> None:
        self.patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
        if not self.patterns:
            raise TarSourceError("no tar shards were given: name at least one path or pattern.")
        if index_dir is not None and remote.is_remote(index_dir):
            raise InputError(
                f"index_dir={index_dir!r}: index files are read at random and need a local "
                "folder; leave it out to keep them beside the shards as well"
            )
        shards = _find(self.patterns, allow_missing)
        indexes, problems = open_indexes(
            shards, index_dir=index_dir, process_index=process_index, process_count=process_count
        )
        if problems:
            told = f"{len(problems)} of {len(shards)} tar shards cannot be read: "
            if not allow_missing:
                raise TarSourceError(
                    f"{told}{shorten(problems)}. Download them again, or leave them out: of the "
                    "pattern, or with data.allow_missing_shards"
                )
            logging.warning("%s%s. Going on without them", told, shorten(problems))
        found = [(s, i) for s, i in zip(shards, indexes, strict=True) if i is not None and i.pairs]
        if not found:
            raise TarSourceError(
                f"no image-caption pairs in {shorten([s.address for s in shards])}: members must "
                f"be named KEY.{'|'.join(IMAGE_EXTENSIONS)} and KEY.{'|'.join(TEXT_EXTENSIONS)}, "
                "or KEY.json with a caption in it"
            )
        if empty := [s.address for s, i in zip(shards, indexes, strict=True) if i and not i.pairs]:
            logging.warning("no image-caption pairs in %s", shorten(empty))
        self._shards: list[Shard] = [shard for shard, _ in found]
        self._indexes: list[ShardIndex] = [index for _, index in found]
        self._ends = list(itertools.accumulate(index.pairs for index in self._indexes))
        self._tables: dict[int, PairTable] = {}
        self._caption_files: list[CaptionFile] | None = None
        if text_tower is not None:
            self._caption_files = open_caption_files(self._shards, self._indexes, text_tower)
        logging.info(
            "%d pairs in %d shards (left out: %d images or captions without partner, %d images "
            "whose key had come before in their shard)",
            len(self),
            len(self._shards),
            sum(index.unpaired for index in self._indexes),
            sum(index.repeated for index in self._indexes),
        )

    @property
    def fingerprint(self) -> str:
        """Tells one set of pairs from another, wherever the shards are."""
        told = ",".join(f"{index.pairs}:{index.checksum}" for index in self._indexes)
        return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()

    @property
    def indexes(self) -> Sequence[ShardIndex]:
        """The index of each shard that has pairs, in their order."""
        return self._indexes

    @property
    def ranges(self) -> list[range]:
        """The numbers of the pairs of each shard."""
        return [range(a, b) for a, b in itertools.pairwise([0, *self._ends])]

    def __len__(self) -> int:
        """Number of pairs."""
        return self._ends[-1]

    def __getitem__(self, index: SupportsIndex) -> CaptionedImage:
        """Reads a pair.

        Raises:
            IndexError: outside of 0 to len - 1.
            TarSourceError: the shard is gone, cannot be read, or is not as it was when it was
                indexed.
            InputError: the embedding of the caption is not as it was when it was written.
        """
        i = index.__index__()
        if not 0 <= i < len(self):
            raise IndexError(f"pair {i}: there are {len(self)}.")
        number = bisect.bisect_right(self._ends, i)
        shard, key = self._shards[number], "?"
        place = i - (self._ends[number - 1] if number else 0)
        try:
            if number not in self._tables:
                self._tables[number] = PairTable(self._indexes[number])
            pair = self._tables[number][place]
            key = pair.key.decode("utf-8", "replace")
            places = [(pair.image_offset, pair.image_size), (pair.text_offset, pair.text_size)]
            image, text = _read(shard, places)
        except (OSError, ValueError) as error:
            raise TarSourceError(
                f"{shard.address}: pair {key!r} cannot be read ({error}); has the file changed "
                "since the start?"
            ) from error
        caption = _caption(text, pair.is_json)
        example: CaptionedImage = {
            "image": image, "text": caption, "key": key, "shard": shard.address,
        }  # fmt: skip
        if self._caption_files is not None:
            example["text_embedding"] = self._caption_files[number].read(place, caption)
        return example

    def captions(self, number: int) -> list[str | None]:
        """The captions of shard `number`, from 0, as the pairs have them; images are not read.

        Raises:
            TarSourceError: as for a pair.
        """
        shard, index = self._shards[number], self._indexes[number]
        try:
            table = PairTable(index)
            found = []
            with open_shard(shard) as read:
                for i in range(index.pairs):
                    pair = table[i]
                    text = read(pair.text_size, pair.text_offset)
                    if len(text) != pair.text_size:
                        raise ValueError(f"it is cut short at byte {pair.text_offset}")
                    found.append(_caption(text, pair.is_json))
        except (OSError, ValueError) as error:
            raise TarSourceError(
                f"{shard.address}: its captions cannot be read ({error}); has the file changed "
                "since the start?"
            ) from error
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what is opened when needed."""
        return {**self.__dict__, "_tables": {}}

    def __repr__(self) -> str:
        """The call that makes it, in short."""
        return f"TarSource({list(self.patterns)!r})"


def _find(patterns: Sequence[str], allow_missing: bool) -> tuple[Shard, ...]:
    found = find_shards(patterns)
    if found.missing:
        told = f"{found.missing} tar shards are missing: {'; '.join(found.problems)}"
        if not allow_missing or not found.shards:
            raise TarSourceError(
                f"{told}. Check the path and the range of the pattern"
                + (", or train without them: data.allow_missing_shards" if found.shards else "")
            )
        logging.warning("%s. Going on without them, with %d shards", told, len(found.shards))
    for gap in found.gaps:
        logging.warning("%s", gap)
    return found.shards


def _read(shard: Shard, places: list[tuple[int, int]]) -> list[bytes]:
    """The bytes at (offset, size)."""
    if remote.is_remote(shard.address):
        parts = remote.read_ranges(shard.address, places)
    else:
        with open_shard(shard) as read:
            parts = [read(size, offset) for offset, size in places]
    for part, (offset, size) in zip(parts, places, strict=True):
        if len(part) != size:
            raise ValueError(f"{len(part)} of {size} bytes at {offset}")
    return parts


def _caption(data: bytes, is_json: bool) -> str | None:
    """The text, or the field `caption` of a JSON object, if it is a string."""
    if not is_json:
        return data.decode("utf-8", "replace")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return None
    caption = content.get("caption") if isinstance(content, dict) else None
    return caption if isinstance(caption, str) else None
