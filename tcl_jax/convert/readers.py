"""Reading weight files: safetensors and NumPy archives."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from tcl_jax.convert.mapping import WeightError
from tcl_jax.files import whole_file

ASSETS = Path(__file__).parent.parent / "assets"
BUILT_IN = {"builtin:shapes_clip": ASSETS / "shapes_clip.safetensors"}
"""Weights that come with the package, by the name that a config gives."""


DAMAGED = (OSError, EOFError, ValueError, zipfile.BadZipFile, safetensors.SafetensorError)
"""What the libraries raise when a file is not what its name says."""


def resolve_weights(name: str) -> Path:
    """Path of weights given as a path or as `builtin:NAME`.

    Raises:
        WeightError: if no name is given or no built-in weights have that name.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    if not name or name.startswith("builtin:"):
        raise WeightError(
            f"model.weights={name!r} names no weights; give the path of a CLIP checkpoint, or one "
            f"of {', '.join(BUILT_IN)}"
        )
    return Path(name).expanduser()


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Tensors of a `.safetensors` or `.npz` file by name.

    Raises:
        WeightError: if the file is missing, of another kind, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightError(
            f"weights {str(path)!r} do not exist; give the path of a .safetensors or .npz file "
            "with OpenAI CLIP's tensor names (configs/tcl.py says where CLIP's weights come from)"
        )
    try:
        if path.suffix == ".safetensors":
            return safetensors.numpy.load_file(path)
        if path.suffix == ".npz":
            with np.load(path) as archive:
                return dict(archive)
    except DAMAGED as error:
        raise WeightError(
            f"weights {str(path)!r} cannot be read: {error}; the file is damaged or was cut "
            "short, so copy it again"
        ) from error
    raise WeightError(
        f"weights {str(path)!r} end in {path.suffix or 'nothing'!r}; .safetensors and .npz are read"
    )


def write_safetensors(
    path: str | os.PathLike[str], tensors: dict[str, np.ndarray], metadata: dict[str, str]
) -> None:
    """Writes tensors by name, whole or not at all."""
    with whole_file(path) as temporary:
        safetensors.numpy.save_file(tensors, temporary, metadata)
        temporary.chmod(0o644)  # the library makes files that only their owner reads
