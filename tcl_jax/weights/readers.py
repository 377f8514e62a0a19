"""Weight files of every format: told apart by their first bytes, opened, and written."""

from __future__ import annotations

import contextlib
import os
import re
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.numpy
from absl import logging

from tcl_jax.errors import RunError, machine_fault, why_unwritten
from tcl_jax.files import user_path, whole_file
from tcl_jax.weights.mapping import WeightError
from tcl_jax.weights.tensor_file import Contents, TensorFile, TensorSpec, explaining
from tcl_jax.weights.torch_zip import read_torch

_SAFETENSORS_DTYPES = {
    "BOOL": np.dtype(np.bool_), "BF16": np.dtype(ml_dtypes.bfloat16), "C64": np.dtype(np.complex64),
    **{f"{kind}{n}": np.dtype(f"{kind.lower()}{n // 8}") for kind in "UI" for n in (8, 16, 32, 64)},
    **{f"F{n}": np.dtype(f"f{n // 8}") for n in (16, 32, 64)},
}  # fmt: skip
"""What `safetensors` gives for the dtypes that NumPy, with ml_dtypes, has."""

_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def open_weights(path: str | os.PathLike[str]) -> TensorFile:
    """Opens a weight file of any format that is known here, whatever its name ends in.

    Formats: safetensors; .npz; PyTorch's .pt and .pth since 1.6, be they a state dict, anything
    that a training run saved, or a scripted model such as OpenAI's CLIP. PyTorch is not needed,
    and nothing in the file is run.

    Returns:
        Its tensors, of which none is read yet; close it when done.

    Raises:
        WeightError: if the file is missing, damaged, too old, or holds anything but weights.
        RunError: if it cannot be read for a reason that is not the file's.
    """
    path = user_path(path)
    if not os.path.isfile(path):
        raise WeightError(
            f"weights {str(path)!r} do not exist or are no file; give the path of a .pt, .pth, "
            ".safetensors or .npz file"
        )
    with contextlib.ExitStack() as stack, explaining(path):
        contents = _read_contents(path, stack)
        if contents.left_out:
            name, why = next(iter(contents.left_out.items()))
            logging.warning(
                "%d tensors of weights %r are left out, since they are of kinds that are not known "
                "here, such as %r (%r)", len(contents.left_out), str(path), name[:80], why[:80],
            )  # fmt: skip
        return TensorFile(path, contents, stack.pop_all())


def _read_contents(path: Path, stack: contextlib.ExitStack) -> Contents:
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(b"PK\x03\x04"):
        archive = stack.enter_context(zipfile.ZipFile(path))
        names = archive.namelist()
        if pickles := [name for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]:
            return read_torch(archive, pickles[0])
        if any(name.endswith(".npy") for name in names):
            return _read_npz(archive)
    if head[8:9] == b"{":
        return _read_safetensors(path, stack)
    raise WeightError(
        f"it {'begins with ' + repr(head) if head else 'is empty'} and is none of safetensors, "
        ".npz and what torch.save writes since PyTorch 1.6; if it is a web page or a Git LFS "
        "pointer, get the file itself, and otherwise save the weights again as .safetensors with "
        "the tool that wrote it"
    )


def _read_safetensors(path: Path, stack: contextlib.ExitStack) -> Contents:
    file = stack.enter_context(safetensors.safe_open(path, framework="np"))
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    specs = {
        name: TensorSpec(tuple(part.get_shape()), _SAFETENSORS_DTYPES[part.get_dtype()])
        for name, part in slices.items()
        if part.get_dtype() in _SAFETENSORS_DTYPES
    }
    left_out = {name: str(slices[name].get_dtype()) for name in slices if name not in specs}
    scalars = dict(file.metadata() or {})
    return Contents("safetensors", specs, left_out, scalars, file.get_tensor)


def _read_npz(archive: zipfile.ZipFile) -> Contents:
    specs: dict[str, TensorSpec] = {}
    for member in archive.namelist():
        if member.endswith(".npy"):
            with archive.open(member) as content:
                header = _NPY_HEADERS.get(np.lib.format.read_magic(content))
                if header is None:
                    raise ValueError(f"array {member[:80]!r} is of an unknown version")
                shape, _, dtype = header(content)
            if dtype.kind not in "biufc":
                raise WeightError(
                    f"array {member[:80]!r} does not hold numbers of a kind that is known here "
                    f"({dtype.str}); save it again as float32 or float16 with numpy.savez"
                )
            specs[member.removesuffix(".npy")] = TensorSpec(shape, dtype.newbyteorder("="))

    def read(name: str) -> np.ndarray:
        with archive.open(f"{name}.npy") as content:
            array: np.ndarray = np.lib.format.read_array(content)
            content.read()  # its checksum is compared at the end
        return array

    return Contents("npz", specs, {}, {}, read)


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
