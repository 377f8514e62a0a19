"""Reading and writing weight files."""

from __future__ import annotations

import os
import re

import numpy as np
import safetensors.numpy

from tcl_jax.convert.archives import MAGIC, Archive
from tcl_jax.convert.flat_files import read_npz, read_safetensors
from tcl_jax.convert.mapping import WeightError
from tcl_jax.convert.tensor_file import ByteFile, Contents, TensorFile, explaining
from tcl_jax.convert.torch_zip import read_torch
from tcl_jax.files import user_path, whole_file

_NOT_WEIGHTS = {
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself with `git lfs pull`",
    b"<": "a web page; download the file itself",
    b"\x89HDF": "an HDF5 file; save the weights again as .safetensors",
}


def open_weights(path: str | os.PathLike[str]) -> TensorFile:
    """Opens a weight file of any format that is known here, whatever its name ends in.

    Formats: safetensors; .npz; PyTorch's .pt and .pth since 1.6, be they a state dict, one inside
    of what a training run saved, or a scripted model such as OpenAI's CLIP. PyTorch is not needed,
    and nothing in the file is run. Of a state dict whose names all begin with `module.`, that is
    taken off.

    Args:
        path: of the file; ~ is the home directory.

    Returns:
        Its tensors, of which none is read yet; close it when done.

    Raises:
        WeightError: if the file is missing, damaged, too old, or holds anything but weights.
    """
    path = user_path(path)
    file = ByteFile(path)
    try:
        with explaining(path):
            return TensorFile(path, file, _read_contents(file))
    except BaseException:
        file.close()
        raise


def _read_contents(file: ByteFile) -> Contents:
    head = file.read(0, min(file.size, 64))
    if head.startswith(MAGIC):
        archive = Archive(file)
        pickles = [name for name in archive.members if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) == 1:
            return read_torch(archive, pickles[0])
        if any(name.endswith(".npy") for name in archive.members):
            return read_npz(archive)
        raise WeightError(
            "it is a ZIP archive, but neither PyTorch's (NAME/data.pkl) nor NumPy's (*.npy); "
            "if the weights are inside, unpack it first"
        )
    if head[8:9] == b"{":
        return read_safetensors(file)
    if head.startswith(b"\x80"):
        raise WeightError(
            "it is a bare pickle, as torch.save wrote before PyTorch 1.6; if you trust it, "
            "save it again with a current PyTorch: "
            'torch.save(torch.load("old.pt", map_location="cpu"), "new.pt")'
        )
    for magic, what in _NOT_WEIGHTS.items():
        if head.startswith(magic):
            raise WeightError(f"it is {what}")
    raise WeightError(
        f"it {'begins with ' + repr(head[:12]) if head else 'is empty'}, which is none of "
        "safetensors, .npz and PyTorch's .pt or .pth; get it again or choose another file"
    )


def write_safetensors(
    path: str | os.PathLike[str], tensors: dict[str, np.ndarray], metadata: dict[str, str]
) -> None:
    """Writes tensors by name, whole or not at all."""
    with whole_file(path) as temporary:
        try:
            safetensors.numpy.save_file(tensors, temporary, metadata)
        except safetensors.SafetensorError as error:
            raise WeightError(f"output {os.fspath(path)!r} cannot be written: {error}") from error
        temporary.chmod(0o644)  # the library makes files that only their owner reads
