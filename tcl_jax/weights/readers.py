"""Weight files of every format: told apart by their first bytes, opened, and written."""

from __future__ import annotations

import contextlib
import os
import re
import tokenize
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy
from absl import logging

from tcl_jax.errors import RunError, machine_fault, why_unwritten
from tcl_jax.files import user_path, whole_file
from tcl_jax.weights.archives import MAGIC, Archive
from tcl_jax.weights.mapping import WeightError
from tcl_jax.weights.tensor_file import (
    BoundedReader,
    Contents,
    TensorFile,
    TensorSpec,
    check_specs,
    explaining,
    file_size,
    open_file,
)
from tcl_jax.weights.torch_zip import read_torch

_MAX_HEADER = 4 << 20
_MAX_NPY_HEADER = 1000
_SAFETENSORS_DTYPES = {
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


def open_weights(path: str | os.PathLike[str]) -> TensorFile:
    """Opens a weight file of any format that is known here, whatever its name ends in.

    Formats: safetensors; .npz; PyTorch's .pt and .pth since 1.6, be they a state dict, anything
    that a training run saved, or a scripted model such as OpenAI's CLIP. PyTorch is not needed,
    and nothing in the file is run.

    Args:
        path: of the file; ~ is the home directory.

    Returns:
        Its tensors, of which none is read yet; close it when done.

    Raises:
        WeightError: if the file is missing, damaged, too old, or holds anything but weights.
        RunError: if it cannot be read for a reason that is not the file's.
    """
    path = user_path(path)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_file(path))
        with explaining(path):
            kind, specs, left_out, scalars, read = _read_contents(path, file, stack)
            specs = check_specs(specs, file_size(file))
        if left_out:
            name, why = next(iter(left_out.items()))
            logging.warning(
                "%d tensors of weights %r are left out, for they are of kinds that are not known "
                "here, such as %r (%r)", len(left_out), str(path), name[:80], why[:80],
            )  # fmt: skip
        return TensorFile(path, (kind, specs, left_out, scalars, read), stack.pop_all())


def _read_contents(path: Path, file: BoundedReader, stack: contextlib.ExitStack) -> Contents:
    head = file.read(1024)
    if head.startswith(MAGIC):
        archive = Archive(file)
        pickles = [name for name in archive.members if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) == 1:
            return read_torch(archive, pickles[0])
        if any(name.endswith(".npy") for name in archive.members):
            return _read_npz(archive)
    if head[8:9] == b"{":
        contents, opened = _read_safetensors(path, head)
        stack.push(opened)
        return contents
    raise WeightError(
        f"it {'begins with ' + repr(head[:12]) if head else 'is empty'} and is none of "
        "safetensors, .npz and what torch.save writes since PyTorch 1.6; if it is a web page or a "
        "Git LFS pointer, get the file itself, and otherwise save the weights again as "
        ".safetensors with the tool that wrote it"
    )


def _read_safetensors(path: Path, head: bytes) -> tuple[Contents, Any]:
    """Contents of a safetensors file that begins with `head`, and what to close when done.

    Raises:
        ValueError or SafetensorError: if it is damaged.
    """
    length = int.from_bytes(head[:8], "little")
    if length > _MAX_HEADER:
        raise ValueError(f"its header would take {length:,} bytes")
    file = safetensors.safe_open(path, framework="np")
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    specs = {
        name: TensorSpec(tuple(part.get_shape()), _SAFETENSORS_DTYPES[part.get_dtype()])
        for name, part in slices.items()
        if part.get_dtype() in _SAFETENSORS_DTYPES
    }
    left_out = {name: str(slices[name].get_dtype()) for name in slices if name not in specs}
    return ("safetensors", specs, left_out, dict(file.metadata() or {}), file.get_tensor), file


def _read_npz(archive: Archive) -> Contents:
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
            array: np.ndarray = np.lib.format.read_array(content, max_header_size=_MAX_NPY_HEADER)
        return array

    return "npz", specs, {}, {}, read


def _read_npy_header(name: str, content: zipfile.ZipExtFile) -> TensorSpec:
    try:
        header = _HEADERS[np.lib.format.read_magic(content)]
        shape, _, dtype = header(content, max_header_size=_MAX_NPY_HEADER)
    except _NO_HEADER as error:
        raise ValueError(f"{name[:80]!r} is no array: {error}") from error
    if dtype.kind not in "biufc":
        raise WeightError(
            f"array {name[:80]!r} does not hold numbers of a kind that is known here "
            f"({dtype.str}); save it again as float32 or float16 with numpy.savez"
        )
    return TensorSpec(shape, dtype.newbyteorder("="))


def write_safetensors(
    path: str | os.PathLike[str], tensors: dict[str, np.ndarray], metadata: dict[str, str]
) -> None:
    """Writes tensors by name, whole or not at all.

    Raises:
        WeightError: if they cannot be written there.
        RunError: if that is the machine's fault.
    """
    with whole_file(path) as temporary:
        try:
            safetensors.numpy.save_file(tensors, temporary, metadata)
        except safetensors.SafetensorError as error:
            kind = RunError if machine_fault(error) else WeightError
            why = why_unwritten(error)
            raise kind(f"output {os.fspath(path)!r} cannot be written: {why}") from error
        temporary.chmod(0o644)  # the library makes files that only their owner reads
