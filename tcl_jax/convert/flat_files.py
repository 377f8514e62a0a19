"""Formats that hold nothing but arrays: safetensors and NumPy's .npz.

Formats: the README of huggingface/safetensors, and `numpy.lib.format`.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import ml_dtypes
import numpy as np

from tcl_jax.convert.archives import Archive
from tcl_jax.convert.mapping import WeightError
from tcl_jax.convert.tensor_file import (
    ByteFile,
    Contents,
    Scalar,
    TensorSpec,
    as_array,
    as_shape,
)

MAX_HEADER = 4 << 20
DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8), "U16": np.dtype(np.uint16),
    "U32": np.dtype(np.uint32), "U64": np.dtype(np.uint64),
    "I8": np.dtype(np.int8), "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32), "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16), "F32": np.dtype(np.float32), "F64": np.dtype(np.float64),
    "BF16": np.dtype(ml_dtypes.bfloat16), "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2), "C64": np.dtype(np.complex64),
}  # fmt: skip
_NPY = re.compile(
    rb"""\{\s*'descr':\s*'([<>|=][a-zA-Z][0-9]*)',\s*'fortran_order':\s*(True|False),"""
    rb"""\s*'shape':\s*\(([0-9, ]*)\),?\s*\}\s*"""
)
_NUMBERS = frozenset((
    "b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16",
))  # fmt: skip
_MAX_NPY = 4096


def read_safetensors(file: ByteFile) -> Contents:
    """Contents of a safetensors file.

    Raises:
        WeightError: if it has a dtype that is not known here.
        ValueError: if it is damaged: what it says of itself must account for each byte.
    """
    length = int.from_bytes(file.read(0, 8), "little")
    if length > MAX_HEADER:
        raise ValueError(f"its header would take {length:,} bytes")
    text = file.read(8, length).decode("utf-8")
    header = json.loads(text, object_pairs_hook=_without_duplicates)
    if not isinstance(header, dict):
        raise ValueError("its header is no table")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(x, str) for x in metadata.values()):
        raise ValueError("its metadata is not text by name")
    scalars: dict[str, Scalar] = dict(metadata)
    specs, spans = {}, {}
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"its header says too little of tensor {name[:80]!r}")
        if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
            raise WeightError(
                f"tensor {name[:80]!r} has the dtype {str(entry['dtype'])[:20]!r}, which is not "
                "known here; save it again as F32, F16 or BF16"
            )
        dtype, offsets = DTYPES[entry["dtype"]], entry["data_offsets"]
        spec = specs[name] = TensorSpec(as_shape(entry["shape"], dtype), dtype)
        if not isinstance(offsets, list) or [type(x) for x in offsets] != [int, int]:
            raise ValueError(f"tensor {name[:80]!r} has no place in it")
        if offsets[1] - offsets[0] != spec.nbytes:
            raise ValueError(f"tensor {name[:80]!r} takes more or fewer bytes than its shape needs")
        spans[name] = (offsets[0], offsets[1])
    position = 0
    for start, stop in sorted(spans.values()):
        if start != position:
            raise ValueError("its tensors overlap, or leave bytes between them")
        position = stop
    data = 8 + length
    if data + position != file.size:
        raise ValueError(f"it has {file.size:,} bytes and should have {data + position:,}")

    def read(name: str) -> np.ndarray:
        start, stop = spans[name]
        raw = file.read_array(data + start, stop - start)
        return as_array(raw, specs[name].dtype, specs[name].shape)

    return Contents("safetensors", specs, scalars, read)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("its header has a name twice")
    return table


def read_npz(archive: Archive) -> Contents:
    """Contents of a NumPy archive; members may be compressed.

    Raises:
        WeightError: if a member holds anything but numbers.
        ValueError: if it is damaged.
    """
    specs: dict[str, TensorSpec] = {}
    layouts = {}
    for member in archive.members.values():
        if not member.name.endswith(".npy"):
            continue
        name = member.name.removesuffix(".npy")
        dtype, shape, fortran, start = _read_npy_header(name, archive.head(member.name, _MAX_NPY))
        if start + math.prod(shape) * dtype.itemsize != member.size:
            raise ValueError(f"array {name[:80]!r} takes more or fewer bytes than its shape needs")
        specs[name] = TensorSpec(shape, dtype.newbyteorder("="))
        layouts[name] = dtype, fortran, start

    def read(name: str) -> np.ndarray:
        dtype, fortran, start = layouts[name]
        shape = specs[name].shape
        data = archive.read(f"{name}.npy", start)
        if fortran:
            return np.ascontiguousarray(as_array(data, dtype, shape[::-1]).T).reshape(shape)
        return as_array(data, dtype, shape)

    return Contents("npz", specs, {}, read)


def _read_npy_header(name: str, head: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    """dtype, shape, whether in Fortran's order, and where the data begin."""
    if head[:6] != b"\x93NUMPY" or len(head) < 12:
        raise ValueError(f"{name[:80]!r} is no array")
    wide = head[6] > 1
    begin = 12 if wide else 10
    end = begin + int.from_bytes(head[8:begin], "little")
    match = _NPY.fullmatch(head[begin:end]) if end <= len(head) else None
    kind = match[1].decode() if match else ""
    if match is None or kind[1:] not in _NUMBERS:
        raise WeightError(
            f"array {name[:80]!r} does not hold numbers of a kind that is known here "
            f"({kind or head[begin:end][:60]!r}); save it again as float32 or float16 with "
            "numpy.savez"
        )
    dtype = np.dtype(kind)
    sizes = [int(size) for size in match[3].decode().replace(" ", "").split(",") if size]
    return dtype, as_shape(sizes, dtype), match[2] == b"True", end
