"""Embeddings of captions, computed once by a frozen text tower and kept beside the shards' indexes.

A file belongs to one shard, its pairs and one text tower, and has all three in its name:
`X.tar.TOWER-CHECKSUM.captions`. It is written whole or not at all, is read a row at a time, and
costs no memory.

It holds an array as `numpy.save` writes it: for each pair of the index as many rows as the pair
with most captions has. A row is the embedding as float32, or as the upper two bytes of float32
where in the whole file the lower two are zero, as where a tower computes in bfloat16; and then the
CRC-32 of caption and embedding, so that each row shows that it is of that caption.
"""

from __future__ import annotations

import shlex
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from tcl_jax.data.shard_names import CAPTIONS_SUFFIX, INDEX_SUFFIX, Shard, lookup_threads
from tcl_jax.data.tar_index import ShardIndex
from tcl_jax.errors import InputError, raise_machine_fault, shorten, unwritten
from tcl_jax.files import whole_file


def caption_path(index: ShardIndex, text_tower: str) -> Path:
    """Where the embeddings of a shard by a text tower are: beside its index.

    Args:
        text_tower: 16 characters that tell it from others.
    """
    beside = index.path.removesuffix(INDEX_SUFFIX)
    return Path(f"{beside}.{text_tower}-{index.checksum:08x}{CAPTIONS_SUFFIX}")


def embed_command(door: str = "embed_captions") -> str:
    """The command that makes what is missing, with the config's flags of the command that runs."""
    given = [a for a in sys.argv[1:] if a.startswith(("--config=", "--config."))]
    return shlex.join(["python", "-m", f"tcl_jax.{door}", *(given or ["--config=FILE"])])


def check_caption_files(
    shards: Sequence[Shard], indexes: Sequence[ShardIndex], text_tower: str
) -> None:
    """Looks whether every shard has embeddings by a text tower.

    Raises:
        InputError: shards have none; says how many and what to do.
    """
    with lookup_threads() as pool:
        found = pool.map(lambda index: caption_path(index, text_tower).is_file(), indexes)
        lacking = [shard.address for shard, there in zip(shards, found, strict=True) if not there]
    if lacking:
        raise InputError(
            f"data.caption_cache=True, but {len(lacking)} of {len(shards)} tar shards have no "
            f"embeddings of their captions by this run's text tower (its weights, tokenizer, "
            f"context length and model.dtype): {shorten(lacking)}. Make them once: "
            f"{embed_command()}"
        )


def read_embeddings(path: Path, number: int, captions: Sequence[str]) -> Float32[np.ndarray, "n d"]:
    """The embeddings of the captions of pair `number`; zeros where one is empty.

    The file is opened for each, as an index is.

    Raises:
        InputError: the file is gone or damaged, or a row is of another caption.
    """
    try:
        rows = np.lib.format.open_memmap(path, mode="r")[number, : len(captions)]
        bits = rows["values"].astype(np.uint32) << (32 - 8 * rows["values"].itemsize)
        checks = [_checksum(*row) for row in zip(captions, rows["values"], strict=True)]
        if checks != rows["check"].tolist():
            raise ValueError("it is damaged, or of other captions")
    except (OSError, ValueError) as error:
        raise_machine_fault(f"the caption embeddings {path}", error)
        raise InputError(
            f"the caption embeddings {path}: row {number} cannot be read ({error}); remove the "
            f"file and make it again: {embed_command()}"
        ) from error
    return bits.view(np.float32)


def write_caption_file(
    index: ShardIndex,
    text_tower: str,
    captions: Sequence[Sequence[str]],
    embeddings: Float32[np.ndarray, "n d"],
) -> int:
    """Writes the embeddings of a shard.

    Args:
        captions: of its pairs, in order.
        embeddings: a row for each caption.

    Returns:
        Size of the file in bytes.

    Raises:
        InputError: it cannot be written.
    """
    bits = np.ascontiguousarray(embeddings).view(np.uint32)
    width = 4 if np.any(bits & 0xFFFF) else 2
    row = np.dtype([("values", f"<u{width}", embeddings.shape[1]), ("check", "<u4")])
    table = np.zeros((index.pairs, max(1, *map(len, captions))), row)
    following = iter((bits >> (32 - 8 * width)).astype(f"<u{width}"))
    for number, several in enumerate(captions):
        for i, caption in enumerate(several):
            values = next(following)
            table[number, i] = values, _checksum(caption, values)
    path = caption_path(index, text_tower)
    try:
        with whole_file(path) as temporary, temporary.open("wb") as file:
            np.save(file, table)
    except OSError as error:
        what = f"the caption embeddings cannot be written to {path}"
        advice = "set data.index_dir to a folder with space that can be written"
        raise unwritten(what, error, advice) from error
    return table.nbytes


def _checksum(caption: str, values: np.ndarray) -> int:
    # A caption in JSON may hold halves of a character, which plain UTF-8 refuses.
    return zlib.crc32(values.tobytes(), zlib.crc32(caption.encode("utf-8", "surrogatepass")))
