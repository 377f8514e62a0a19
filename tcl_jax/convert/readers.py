"""Reading and writing weight files."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import numpy as np
import safetensors.numpy

from tcl_jax.convert.archives import MAGIC, Archive
from tcl_jax.convert.flat_files import read_npz, read_safetensors
from tcl_jax.convert.mapping import WeightError
from tcl_jax.convert.tensor_file import (
    UNREADABLE,
    BoundedReader,
    Contents,
    TensorFile,
    check_specs,
    explaining,
    file_size,
    open_file,
)
from tcl_jax.convert.torch_zip import read_torch
from tcl_jax.errors import RunError, machine_fault, why_unwritten
from tcl_jax.files import user_path, whole_file

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
            return read_npz(archive)
        for pattern, what in _ARCHIVES.items():
            if any(re.fullmatch(pattern, name) for name in archive.members):
                raise WeightError(f"it is {what}")
        raise WeightError(
            "it is a ZIP archive, but neither PyTorch's (NAME/data.pkl) nor NumPy's (*.npy); "
            "if the weights are inside, unpack it first"
        )
    if head[8:9] == b"{":
        contents, opened = read_safetensors(path, head)
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
