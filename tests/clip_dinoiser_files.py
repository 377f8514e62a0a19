"""The golden CLIP-DINOiser: files under its authors' names, and its images."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tcl_jax.inference.model import Model, model_from_torch
from tcl_jax.ops.images import CLIP_PIXELS
from tests.reference import GOLDEN as FOLDER
from tests.reference import load
from tests.torch_files import save_state_dict

GOLDEN = load("methods/dinoiser")
CLIP = FOLDER / "clip_state_dict.npz"
HEAD = {k.removeprefix("state/"): x for k, x in GOLDEN.items() if k.startswith("state/")}


def write_head(path: Path, tensors: dict[str, np.ndarray] = HEAD) -> Path:
    """A head as training saves it."""
    save_state_dict(path, {"epoch": 99, "model_state_dict": tensors})
    return path


@functools.cache
def golden_model() -> Model:
    """Of CLIP's golden weights."""
    with tempfile.TemporaryDirectory() as folder:
        head = write_head(Path(folder, "last.pt"))
        return model_from_torch(CLIP, method="clip_dinoiser", head=head, activation="gelu")


def golden_pixels(name: str) -> jax.Array:
    """An image [b, H, W, 3] in [0, 1], normalised as CLIP's authors do."""
    mean, deviation = (np.float32(x) for x in CLIP_PIXELS)
    return jnp.asarray((np.moveaxis(GOLDEN[name], 1, -1) - mean) / deviation)
