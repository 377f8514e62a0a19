"""Embeddings of captions, computed once by a frozen text tower and kept beside the shards' indexes.

A file belongs to one shard and one text tower, and has both in its name: `X.tar.TOWER.captions`. It
is written whole or not at all, is read a row at a time, and costs no memory.

The layout, little-endian: a header (`_HEADER`, then its CRC-32), and for each pair of the index as
many rows as the pair with most captions has. A row is the embedding as float32, or as the upper two
bytes of float32 where in the whole file the lower two are zero, as where a tower computes in
bfloat16; and then the CRC-32 of caption and embedding, so that each row shows that it is whole and
of that caption.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import struct
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from tcl_jax.data.shard_names import CAPTIONS_SUFFIX, INDEX_SUFFIX, Shard, lookup_threads
from tcl_jax.data.tar_index import ShardIndex
from tcl_jax.errors import InputError, RunError, machine_fault, raise_machine_fault, shorten
from tcl_jax.files import whole_file

_MAGIC = b"TCLTEXT2"
# Magic; text tower; pairs and checksum of the index; rows of a pair; dimension; bytes of a number.
_HEADER = struct.Struct("<8s16sIIIII")
_CHECK = struct.Struct("<I")
_BEGIN = _HEADER.size + _CHECK.size


@dataclasses.dataclass(frozen=True)
class CaptionFile:
    """The embeddings of one shard's captions.

    Attributes:
        path: the file on this machine.
        rows: of a pair, at least 1.
        dimension: of the embeddings.
        width: bytes of a number, 4 or 2.
    """

    path: str
    rows: int
    dimension: int
    width: int

    @property
    def row(self) -> np.dtype[np.void]:
        """The type of a row."""
        return np.dtype([("values", f"<u{self.width}", self.dimension), ("check", "<u4")])

    def read(self, number: int, captions: Sequence[str]) -> Float32[np.ndarray, "n d"]:
        """The embeddings of the captions of pair `number`; zeros where one is empty.

        The file is opened for each, as an index is.

        Raises:
            InputError: the file is gone, or a row is damaged or of another caption.
        """
        offset = _BEGIN + number * self.rows * self.row.itemsize
        try:
            rows = np.fromfile(self.path, self.row, len(captions), offset=offset)
        except OSError as error:
            raise_machine_fault(f"the caption embeddings {self.path}", error)
            raise InputError(
                f"the caption embeddings {self.path} cannot be read ({error.strerror}); make them "
                f"again: {embed_command()}"
            ) from error
        for i, caption in enumerate(captions):
            whole = i < min(len(rows), self.rows)
            if not whole or rows["check"][i] != _checksum(caption, rows["values"][i].tobytes()):
                raise InputError(
                    f"{self.path}: row {number} is damaged, or of another caption than "
                    f"{caption!r}; remove the file and make it again: {embed_command()}"
                )
        return (rows["values"].astype(np.uint32) << (32 - 8 * self.width)).view(np.float32)


def caption_path(index: ShardIndex, text_tower: str) -> Path:
    """Where the embeddings of a shard are: beside its index."""
    return Path(f"{index.path.removesuffix(INDEX_SUFFIX)}.{text_tower}{CAPTIONS_SUFFIX}")


def embed_command() -> str:
    """The command that makes what is missing, with the config's flags of the command that runs."""
    given = [a for a in sys.argv[1:] if a.startswith(("--config=", "--config."))]
    return shlex.join(["python", "-m", "tcl_jax.embed_captions", *(given or ["--config=FILE"])])


def find_caption_file(index: ShardIndex, text_tower: str) -> CaptionFile | None:
    """The embeddings of a shard by a text tower, if they are there, whole, and of that index.

    Args:
        index: of the shard.
        text_tower: 16 characters that tell it from others.
    """
    path = caption_path(index, text_tower)
    try:
        with path.open("rb") as file:
            start, size = file.read(_BEGIN), os.fstat(file.fileno()).st_size
    except OSError:
        return None
    header = start[: _HEADER.size]
    if len(start) < _BEGIN or start[_HEADER.size :] != _CHECK.pack(zlib.crc32(header)):
        return None
    magic, tower, pairs, checksum, rows, dimension, width = _HEADER.unpack(header)
    found = CaptionFile(os.fspath(path), rows, dimension, width)
    expected = (_MAGIC, text_tower.encode(), index.pairs, index.checksum)
    if (magic, tower, pairs, checksum) != expected or size != (
        _BEGIN + pairs * rows * found.row.itemsize
    ):
        return None
    return found


def open_caption_files(
    shards: Sequence[Shard], indexes: Sequence[ShardIndex], text_tower: str
) -> list[CaptionFile]:
    """The embeddings of every shard by a text tower.

    Raises:
        InputError: shards have none; says how many and what to do.
    """
    with lookup_threads() as pool:
        found = list(pool.map(lambda index: find_caption_file(index, text_tower), indexes))
    lacking = [s.address for s, file in zip(shards, found, strict=True) if file is None]
    if lacking:
        raise InputError(
            f"data.caption_cache=True, but {len(lacking)} of {len(shards)} tar shards have no "
            f"embeddings of their captions by this run's text tower (its weights, tokenizer, "
            f"context length and model.dtype): {shorten(lacking)}. Make them once: "
            f"{embed_command()}"
        )
    return [file for file in found if file is not None]


def write_caption_file(
    index: ShardIndex,
    text_tower: str,
    captions: Sequence[Sequence[str]],
    embeddings: Float32[np.ndarray, "n d"],
) -> int:
    """Writes the embeddings of a shard.

    Args:
        index: of the shard.
        text_tower: as in `find_caption_file`.
        captions: of its pairs, in order.
        embeddings: a row for each caption.

    Returns:
        Size of the file in bytes.

    Raises:
        InputError: it cannot be written.
    """
    bits = np.ascontiguousarray(embeddings).view(np.uint32)
    path = caption_path(index, text_tower)
    width = 4 if np.any(bits & 0xFFFF) else 2
    file = CaptionFile(os.fspath(path), max(1, *map(len, captions)), embeddings.shape[1], width)
    table = np.zeros((index.pairs, file.rows), file.row)
    following = iter((bits >> (32 - 8 * width)).astype(f"<u{width}"))
    for number, several in enumerate(captions):
        for i, caption in enumerate(several):
            values = next(following)
            table[number, i] = values, _checksum(caption, values.tobytes())
    header = _HEADER.pack(
        _MAGIC, text_tower.encode(), index.pairs, index.checksum, file.rows, file.dimension, width
    )
    content = header + _CHECK.pack(zlib.crc32(header)) + table.tobytes()
    try:
        with whole_file(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise (RunError if machine_fault(error) else InputError)(
            f"the caption embeddings cannot be written to {path} ({error.strerror or error}); set "
            "data.index_dir to a folder with space that can be written"
        ) from error
    return len(content)


def _checksum(caption: str, values: bytes) -> int:
    # A caption in JSON may hold halves of a character, which plain UTF-8 refuses.
    return zlib.crc32(values, zlib.crc32(caption.encode("utf-8", "surrogatepass")))
