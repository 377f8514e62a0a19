"""Formats that hold nothing but arrays: safetensors and NumPy's .npz."""

from __future__ import annotations

import tokenize
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import safe_open

from tcl_jax.convert.archives import Archive
from tcl_jax.convert.mapping import WeightError
from tcl_jax.convert.tensor_file import UNREADABLE, Contents, TensorSpec

MAX_HEADER = 4 << 20
MAX_NPY_HEADER = 1000
DTYPES = {
    "BOOL": np.dtype(np.bool_), "BF16": np.dtype(ml_dtypes.bfloat16), "C64": np.dtype(np.complex64),
    **{f"{kind}{n}": np.dtype(f"{kind.lower()}{n // 8}") for kind in "UI" for n in (8, 16, 32, 64)},
    **{f"F{n}": np.dtype(f"f{n // 8}") for n in (16, 32, 64)},
}  # fmt: skip
"""What `safetensors` gives for the dtypes that NumPy, with ml_dtypes, has."""

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# What NumPy, which has Python parse the text, raises for one that describes no array.
_NO_HEADER = (ValueError, LookupError, TypeError, SyntaxError, RecursionError, tokenize.TokenError)


def read_safetensors(path: Path, head: bytes) -> tuple[Contents, Any]:
    """Contents of a safetensors file that begins with `head`, and what to close when done.

    Raises:
        ValueError or SafetensorError: if it is damaged.
    """
    length = int.from_bytes(head[:8], "little")
    if length > MAX_HEADER:
        raise ValueError(f"its header would take {length:,} bytes")
    file = safe_open(path, framework="np")
    names = file.keys()
    slices = {name: file.get_slice(name) for name in names}
    kinds = {name: part.get_dtype() for name, part in slices.items()}
    specs = {
        name: TensorSpec(tuple(part.get_shape()), DTYPES.get(kinds[name], UNREADABLE))
        for name, part in slices.items()
    }

    def read(name: str) -> np.ndarray:
        if kinds[name] not in DTYPES:
            raise WeightError(
                f"tensor {name[:80]!r} has the dtype {kinds[name]!r}, which is not known here; "
                "save it again as F32, F16 or BF16"
            )
        array: np.ndarray = file.get_tensor(name)
        return array

    return ("safetensors", specs, dict(file.metadata() or {}), read), file


def read_npz(archive: Archive) -> Contents:
    """Contents of a NumPy archive; members may be compressed.

    Raises:
        WeightError: if a member holds anything but numbers.
        ValueError: if it is damaged.
    """
    specs: dict[str, TensorSpec] = {}
    for member in archive.members.values():
        if not member.filename.endswith(".npy"):
            continue
        name = member.filename.removesuffix(".npy")
        with archive.open(member.filename) as content:
            spec = specs[name] = _read_npy_header(name, content)
            if content.tell() + spec.nbytes != member.file_size:
                raise ValueError(
                    f"array {name[:80]!r} takes more or fewer bytes than its shape needs"
                )

    def read(name: str) -> np.ndarray:
        with archive.open(f"{name}.npy") as content:
            array: np.ndarray = np.lib.format.read_array(content, max_header_size=MAX_NPY_HEADER)
        return array

    return "npz", specs, {}, read


def _read_npy_header(name: str, content: zipfile.ZipExtFile) -> TensorSpec:
    try:
        header = _HEADERS[np.lib.format.read_magic(content)]
        shape, _, dtype = header(content, max_header_size=MAX_NPY_HEADER)
    except _NO_HEADER as error:
        raise ValueError(f"{name[:80]!r} is no array: {error}") from error
    if dtype.kind not in "biufc":
        raise WeightError(
            f"array {name[:80]!r} does not hold numbers of a kind that is known here "
            f"({dtype.str}); save it again as float32 or float16 with numpy.savez"
        )
    return TensorSpec(shape, dtype.newbyteorder("="))
