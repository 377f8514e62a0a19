"""Matrices of MATLAB 5 files, from people one need not trust.

SciPy's reader crashes on some damaged files, and takes as much memory as a file says. This one
reads numbers alone, and no more than it is told to. The format is that of MathWorks' "MAT-File
Format": a header of 128 bytes, then elements of a type and a size. An element may be a zlib stream
of another one; a matrix is an element of four: flags, sizes, name and numbers.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from tcl_jax.errors import raise_machine_fault
from tcl_jax.evaluation.labels import LabelError

_HEADER = 128
_VERSION, _VERSION_HDF5 = 0x0100, 0x0200
_HDF5 = b"\x89HDF"
_HEADER_4 = 20  # five numbers, the first of which is small; later versions begin with text
_MATRIX = 14
_COMPRESSED = 15
_INT32, _UINT32 = 5, 6
# NumPy's types of numbers by MATLAB's; a matrix may be stored in a smaller one than its own.
_TYPES = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", _INT32: "i4", _UINT32: "u4", 7: "f4", 9: "f8", 12: "i8",
    13: "u8",
}  # fmt: skip
_CLASSES = {
    1: "a cell array", 2: "a struct", 3: "an object", 4: "text", 5: "a sparse matrix",
    6: "double", 7: "single", 8: "int8", 9: "uint8", 10: "int16", 11: "uint16", 12: "int32",
    13: "uint32", 14: "int64", 15: "uint64",
}  # fmt: skip
_FIRST_NUMERIC = 6
_LOGICAL, _COMPLEX = 0x200, 0x800
_LARGEST = 8  # bytes of a number
_OVERHEAD = 4096  # bytes of names and tags beside the numbers


def read_matrix(
    path: str | os.PathLike[str], name: str, *, max_size: int
) -> Shaped[np.ndarray, "h w"]:
    """A matrix of real numbers.

    Args:
        path: a MATLAB 5 file, as MATLAB writes with -v6 or -v7.
        name: the variable.
        max_size: largest number of entries; what is larger is refused before it is read.

    Returns:
        The matrix in the type in which it is stored, which may be smaller than its own.

    Raises:
        LabelError: if the file cannot be read, is damaged, too large or of another format, or the
            variable is missing or no such matrix. The message does not repeat the path.
    """
    limit = _LARGEST * max_size + _OVERHEAD
    try:
        with Path(path).open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise_machine_fault(str(path), error)
        raise LabelError(f"it cannot be read: {error.strerror or error}") from error
    order = {b"IM": "<", b"MI": ">"}.get(data[_HEADER - 2 : _HEADER], "")
    version = struct.unpack_from(f"{order}H", data, _HEADER - 4)[0] if order else None
    other = f"save it again, in MATLAB by save(file, {name!r}, '-v7'), or by SciPy's savemat"
    if version == _VERSION_HDF5 or data.startswith(_HDF5):
        raise LabelError(f"it is a MATLAB 7.3 (HDF5) file, and MATLAB 5 is read; {other}")
    if not order and len(data) > _HEADER_4 and 0 in data[:4]:
        raise LabelError(f"it is a MATLAB 4 file, and MATLAB 5 is read; {other}")
    if version != _VERSION:
        raise LabelError("it is not a MATLAB 5 file")
    if len(data) > limit:
        raise LabelError(f"it has more than {limit} bytes, too many for {name}")
    found = []
    for kind, content in _elements(data[_HEADER:], order):
        if kind == _COMPRESSED:
            kind, content = next(_elements(_inflate(content, limit), order), (0, b""))
        if kind != _MATRIX:
            continue
        parts = _elements(content, order)
        flags, sizes, label = (next(parts, (0, b"")) for _ in range(3))
        found.append(label[1].decode("latin-1"))
        if found[-1] == name:
            return _matrix(name, flags, sizes, next(parts, (0, b"")), order, max_size)
    raise LabelError(f"it has no variable {name}, but {', '.join(found) or 'none at all'}")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Types and contents of elements, one behind the other."""
    position = 0
    while position < len(data):
        tag = data[position : position + 8]
        if len(tag) < 8:
            raise LabelError("it is damaged: it ends within an element")
        kind, size = struct.unpack(f"{order}II", tag)
        if kind >> 16:  # up to 4 bytes are in the tag itself
            kind, size = kind & 0xFFFF, kind >> 16
            content, step = tag[4 : 4 + size], 8
            if size > 4:
                raise LabelError("it is damaged: a short element is too long")
        else:
            content = data[position + 8 : position + 8 + size]
            padding = 0 if kind == _COMPRESSED else -size % 8
            step = 8 + size + padding
            if len(content) < size:
                raise LabelError("it is damaged: it ends within an element")
        yield kind, content
        position += step


def _inflate(stream: bytes, limit: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(stream, limit)
    except zlib.error as error:
        raise LabelError(f"it is damaged: {error}") from error
    if inflater.unconsumed_tail:
        raise LabelError(f"it inflates to more than {limit} bytes")
    if not inflater.eof:
        raise LabelError("it is damaged: a stream is cut short, or its checksum is wrong")
    return data


def _matrix(
    name: str,
    flags: tuple[int, bytes],
    sizes: tuple[int, bytes],
    numbers: tuple[int, bytes],
    order: str,
    max_size: int,
) -> Shaped[np.ndarray, "h w"]:
    if flags[0] != _UINT32 or len(flags[1]) != 8 or sizes[0] != _INT32 or len(sizes[1]) % 4:
        raise LabelError(f"it is damaged: the description of {name} is wrong")
    word = int(np.frombuffer(flags[1], f"{order}u4")[0])
    shape = np.frombuffer(sizes[1], f"{order}i4").tolist()
    kind = _CLASSES.get(word & 0xFF, "of an unknown kind")
    for bit, adjective in ((_LOGICAL, "logical"), (_COMPLEX, "complex")):
        kind = adjective if word & bit else kind
    if word & (_LOGICAL | _COMPLEX) or not _FIRST_NUMERIC <= word & 0xFF <= max(_CLASSES):
        raise LabelError(f"its variable {name} is {kind}, and not a matrix of real numbers")
    if len(shape) != 2 or min(shape) < 1 or shape[0] * shape[1] > max_size:
        raise LabelError(f"its variable {name} has the size {shape}, which no such matrix has")
    dtype = np.dtype(order + _TYPES.get(numbers[0], "V1"))
    if dtype.kind == "V" or len(numbers[1]) != shape[0] * shape[1] * dtype.itemsize:
        raise LabelError(f"it is damaged: the numbers of {name} do not fill {shape}")
    values = np.frombuffer(numbers[1], dtype).reshape(shape, order="F")
    return np.ascontiguousarray(values.astype(dtype.newbyteorder("=")))
