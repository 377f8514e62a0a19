"""Features of images and captions by frozen towers, computed once and read in place of the pairs.

A folder belongs to one source of pairs and to the towers, and has both in its name: `DATA-TOWERS`.
It has a file for every `BLOCK` examples, which is written whole or not at all, and which training
maps into memory. A file is three arrays as `numpy.save` writes them, one after the other: for each
example the number of its captions, 0 if it cannot be used; for each its image's features `values`,
float16 [m, c] of length 1 each, and their CRC-32, `check`; and for each caption its embedding,
float32 [d], and its CRC-32 likewise. So each row that is read shows whether it is whole.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import math
import mmap
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Float16, Float32

from tcl_jax.data.caption_cache import embed_command
from tcl_jax.data.training_examples import Source, fingerprint_of
from tcl_jax.errors import InputError, raise_machine_fault, shorten, unwritten
from tcl_jax.files import short_hash, user_path, whole_file

BLOCK = 512
"""Examples of a file."""
SUFFIX = ".features"

_MAPPED = 256
"""Files that a process has mapped at a time; each counts as open, and many systems allow 1,024."""


def feature_folder(root: str, source: Source, towers: str) -> Path:
    """Where the features of a source's pairs are.

    Args:
        root: `data.features`.
        source: of pairs. Two are taken for the same if their fingerprints are, or else what they
            print, and the first, the middle and the last example.
        towers: 16 characters that tell them from others.
    """
    length = len(source)
    shown = [_content(source[i]) for i in (0, length // 2, length - 1)]
    data = short_hash([fingerprint_of(source) or repr(source), length, shown])
    return user_path(root) / f"{data}-{towers}"


def _content(example: Any) -> list[Any]:
    image = example["image"]
    data = image if isinstance(image, bytes) else np.ascontiguousarray(image).tobytes()
    return [hashlib.sha256(data).hexdigest(), example["text"]]


def blocks_of(folder: Path, length: int) -> list[tuple[Path, range]]:
    """The files of a folder for so many examples, there or not, and the examples of each."""
    begins = range(0, length, BLOCK)
    return [
        (folder / f"{k:06d}{SUFFIX}", range(begin, min(begin + BLOCK, length)))
        for k, begin in enumerate(begins)
    ]


def write_block(
    path: Path,
    counts: Sequence[int],
    images: Float16[np.ndarray, "n m c"],
    texts: Float32[np.ndarray, "k d"],
) -> int:
    """Writes a file.

    Args:
        path: one of `blocks_of`.
        counts: captions of each example.
        images: features of those that have any, in order.
        texts: embeddings of all captions, in order.

    Returns:
        Its size in bytes.

    Raises:
        InputError: it cannot be written.
    """
    every = np.zeros((len(counts), *images.shape[1:]), np.float16)
    every[np.array(counts) > 0] = images
    try:
        with whole_file(path) as temporary, temporary.open("wb") as file:
            for array in (np.array(counts, np.int32), _with_checks(every), _with_checks(texts)):
                np.save(file, array)
            return file.tell()
    except OSError as error:
        advice = "set data.features to a folder with space that can be written"
        raise unwritten(f"the features cannot be written to {path}", error, advice) from error


class FeatureSource:
    """Every caption of a source of pairs as an example, with its image, both as features.

    An object costs four bytes for each image. Any number of files will do: those that were read
    last are mapped.

    Args:
        source: of the pairs.
        root, towers: see `feature_folder`.

    Raises:
        InputError: features are missing, or are of other data or other towers alone; it says which.
    """

    def __init__(self, source: Source, root: str, towers: str) -> None:
        folder = feature_folder(root, source, towers)
        blocks = blocks_of(folder, len(source))
        if lacking := [path.name for path, _ in blocks if not path.is_file()]:
            raise InputError(
                f"data.features={root!r} lacks {len(lacking)} of {len(blocks)} files of the "
                f"features of {source!r} by this run's towers: {folder}/{shorten(lacking)}"
                f"{_others(folder)}. Make them once: {embed_command('embed_images')}"
            )
        self._told, self._paths = repr(source), [str(path) for path, _ in blocks]
        counts = [_mapped(path)[0].copy() for path in self._paths]
        for path, count, (_, block) in zip(self._paths, counts, blocks, strict=True):
            if len(count) != len(block):
                raise _damaged(path, f"it is of {len(count)} examples, and not of {len(block)}")
        # Captions up to and with each image; and before each file.
        self._ends = np.concatenate(counts).cumsum(dtype=np.int32)
        sizes = [int(count.sum()) for count in counts]
        self._begins = np.cumsum([0, *sizes], dtype=np.int32)
        self._name = folder.name

    @property
    def fingerprint(self) -> str:
        """Tells these captions and towers from others."""
        return short_hash([self._name, zlib.crc32(self._ends.tobytes())])

    def __len__(self) -> int:
        """Number of captions."""
        return int(self._ends[-1])

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """`heads`, float16 [m, c], and `text_embedding`, float32 [d], of a caption.

        Raises:
            IndexError: outside of 0 to len - 1.
            InputError: its file is gone or damaged.
        """
        i = index.__index__()
        if not 0 <= i < len(self):
            raise IndexError(f"caption {i}: there are {len(self)}.")
        block, row = divmod(bisect.bisect_right(self._ends, i), BLOCK)
        path = self._paths[block]
        _, images, texts = _mapped(path)
        return {
            "heads": _checked(path, images, row),
            "text_embedding": _checked(path, texts, i - int(self._begins[block])),
        }

    def __repr__(self) -> str:
        """What it is made of."""
        return f"FeatureSource({self._told})"


def _with_checks(values: np.ndarray) -> np.ndarray:
    rows = np.zeros(len(values), [("values", values.dtype, values.shape[1:]), ("check", "<u4")])
    rows["values"] = values
    rows["check"] = [zlib.crc32(row.tobytes()) for row in values]
    return rows


def _checked(path: str, rows: np.ndarray, number: int) -> np.ndarray:
    row = rows[number]
    values = np.array(row["values"])
    if zlib.crc32(values.data) != row["check"]:
        raise _damaged(path, f"the checksum of its row {number} is another")
    return values


@functools.lru_cache(_MAPPED)
def _mapped(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arrays of a file, in memory that is filled when it is read."""
    try:
        with open(path, "rb") as file:
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            arrays = []
            for _ in range(3):
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                flat = np.frombuffer(whole, dtype, math.prod(shape), file.tell())
                arrays.append(flat.reshape(shape))
                file.seek(flat.nbytes, 1)
        counts, images, texts = arrays
        if len(images) != len(counts) or len(texts) != counts.sum():
            raise ValueError("its arrays do not fit each other")
    except (OSError, ValueError) as error:
        raise_machine_fault(f"the features {path}", error)
        raise _damaged(path, str(error)) from error
    return counts, images, texts


def _damaged(path: str, reason: str) -> InputError:
    return InputError(
        f"the features {path} cannot be read ({reason}); remove the file and make it again: "
        f"{embed_command('embed_images')}"
    )


def _others(folder: Path) -> str:
    """Which features are there beside those of a folder, as half a sentence."""
    if folder.is_dir() or not folder.parent.is_dir():
        return ""
    data, _, towers = folder.name.partition("-")
    names = [path.name.partition("-") for path in folder.parent.iterdir() if path.is_dir()]
    if any(other == data for other, _, _ in names):
        return " (there are some of this data, but by other towers)"
    if any(other == towers for _, _, other in names):
        return " (there are some by these towers, but of other data)"
    return " (there are some of other data by other towers)" if names else ""
