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

from tcl_jax.errors import RunError, machine_fault, why_unwritten
from tcl_jax.files import user_path, whole_file
from tcl_jax.weights.archives import MAGIC, Archive
from tcl_jax.weights.mapping import WeightError
from tcl_jax.weights.tensor_file import (
    UNREADABLE,
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

_AGAIN = "save the weights again as .safetensors with the tool that wrote it"
_OTHERS = {
    rb"version https://git-lfs": "a Git LFS pointer; fetch the file itself with `git lfs pull`",
    rb"(\xef\xbb\xbf)?\s*<": "a web page; download the file itself",
    rb"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19\.": (
        "of the format of torch.save before PyTorch 1.6; if you trust it, save it again with a "
        'current PyTorch: torch.save(torch.load("old.pt", map_location="cpu"), "new.pt")'
    ),
    rb"\x80[\x00-\x05]": (
        "a bare pickle, as torch.save wrote before PyTorch 1.6 and other tools do; if you trust "
        "it, load it in Python and save its tensors with torch.save or safetensors"
    ),
    rb"MATLAB |\x89HDF\r\n\x1a\n.*MATLAB": f"a MATLAB file; {_AGAIN}",
    rb"\x89HDF\r\n\x1a\n": f"an HDF5 file, such as Keras's; {_AGAIN}",
    rb"\x93NUMPY": "a single NumPy array; pack the arrays by name with numpy.savez",
    rb"GGUF|ggml|lmgg|tjgg": f"of GGUF or GGML; choose the model's .safetensors, or {_AGAIN}",
    rb"(ONNX|\x08[\x01-\x1f]\x12.(pytorch|tf2onnx|onnx))": f"an ONNX model; {_AGAIN}",
    rb"....TFL3": f"a TensorFlow Lite model; {_AGAIN}",
    rb"([\x81-\x8f]|\xde..|\xdf....)([\xa1-\xbf]|\xd9.|\xda..)": (
        "a msgpack, as Flax writes; load it with flax.serialization.msgpack_restore and save its "
        "arrays by PyTorch's names as .safetensors"
    ),
    rb".*\x57\xfb\x80\x8b\x24\x75\x47\xdb\Z": f"a checkpoint of TensorFlow's; {_AGAIN}",
}
"""How files of other formats begin, or end, and what they are."""

_ARCHIVES = {
    r"([^/]+/)?(models/model\.json|serialized_(exported_program\.json|state_dict\.(pt|json)))": (
        "a program of torch.export (.pt2); save its weights with PyTorch: "
        'torch.save(torch.export.load("x.pt2").state_dict, "weights.pt")'
    ),
    r"(.*/)?model\.weights\.h5": f"a Keras model; {_AGAIN}",
    r"\[Content_Types\]\.xml|META-INF/.*": "a document or a program, and no weights",
}
"""Members by which other ZIP archives are told, and what they are."""

DISTRIBUTED = (
    "a distributed checkpoint of PyTorch's; make one file of its folder with "
    "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pt`"
)
_PARTS = {
    r"\.data-\d+-of-\d+$": f"a checkpoint of TensorFlow's; {_AGAIN}",
    r"\.distcp$|^\.metadata$": DISTRIBUTED,
}
"""Names of files that are of no use alone, and what they belong to."""


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
            kind, specs, scalars, read = _read_contents(path, file, stack)
            specs = check_specs(specs, file_size(file))
        opened = TensorFile(path, (kind, specs, scalars, read), stack.pop_all())
    if opened.specs and all(spec.dtype == UNREADABLE for spec in opened.specs.values()):
        with opened:
            next(iter(opened.values()))  # tells why
    return opened


def _read_contents(path: Path, file: BoundedReader, stack: contextlib.ExitStack) -> Contents:
    for name, what in _PARTS.items():
        if re.search(name, path.name):
            raise WeightError(f"it is a part of {what}")
    head = file.read(1024)
    if head.startswith(MAGIC):
        archive = Archive(file)
        pickles = [name for name in archive.members if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) == 1:
            return read_torch(archive, pickles[0])
        if any(name.endswith(".npy") for name in archive.members):
            return _read_npz(archive)
        for pattern, what in _ARCHIVES.items():
            if any(re.fullmatch(pattern, name) for name in archive.members):
                raise WeightError(f"it is {what}")
        raise WeightError(
            "it is a ZIP archive, but neither PyTorch's (NAME/data.pkl) nor NumPy's (*.npy); "
            "if the weights are inside, unpack it first"
        )
    if head[8:9] == b"{":
        contents, opened = _read_safetensors(path, head)
        stack.push(opened)
        return contents
    file.seek(max(file_size(file) - 8, 0))
    ends = head + file.read(8)
    for begin, what in _OTHERS.items():
        if re.match(begin, ends, re.DOTALL):
            raise WeightError(f"it is {what}")
    raise WeightError(
        f"it {'begins with ' + repr(head[:12]) if head else 'is empty'}, which is none of "
        "safetensors, .npz and PyTorch's .pt or .pth; get it again or choose another file"
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
    names = file.keys()
    slices = {name: file.get_slice(name) for name in names}
    kinds = {name: part.get_dtype() for name, part in slices.items()}
    specs = {
        name: TensorSpec(tuple(part.get_shape()), _SAFETENSORS_DTYPES.get(kinds[name], UNREADABLE))
        for name, part in slices.items()
    }

    def read(name: str) -> np.ndarray:
        if kinds[name] not in _SAFETENSORS_DTYPES:
            raise WeightError(
                f"tensor {name[:80]!r} has the dtype {kinds[name]!r}, which is not known here; "
                "save it again as F32, F16 or BF16"
            )
        array: np.ndarray = file.get_tensor(name)
        return array

    return ("safetensors", specs, dict(file.metadata() or {}), read), file


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

    return "npz", specs, {}, read


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
