"""Files of the golden Talk2DINO under its authors' names."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import safetensors.numpy
from ml_collections import ConfigDict

from configs.talk2dino import get_config
from tcl_jax.models.clip import CLIP, CLIPConfig
from tcl_jax.weights.clip import clip_state_dict
from tests.reference import load
from tests.tiny import tiny_config

SIZES = CLIPConfig(
    embed_dim=32, resolution=32, patch_size=16, vision_width=64, vision_layers=1, text_width=64,
    text_layers=1,
)  # fmt: skip


def write_golden(path: Path, name: str, prefix: str = "w/", **changes: np.ndarray) -> Path:
    """The weights in tests/golden/NAME.npz whose names begin with a prefix."""
    tensors = {k.removeprefix(prefix): x for k, x in load(name).items() if k.startswith(prefix)}
    safetensors.numpy.save_file({**tensors, **changes}, path)
    return path


def write_talk2dino(folder: Path) -> tuple[Path, Path, Path]:
    """Projection, backbone, and a random CLIP of `SIZES`, whose texts fit the projection."""
    clip = folder / "clip.safetensors"
    params = jax.jit(CLIP(SIZES).init)(jax.random.key(1))
    safetensors.numpy.save_file(clip_state_dict(params, SIZES), clip)
    projection = write_golden(folder / "projection.safetensors", "talk2dino")
    return projection, write_golden(folder / "dino.safetensors", "dinov2"), clip


def tiny_talk2dino(folder: Path) -> ConfigDict:
    """Training a projection between a random CLIP and the golden backbone, on drawn scenes."""
    clip = tiny_config(folder)
    config = get_config()
    config.model.weights = clip.model.weights
    config.model.backbone = str(write_golden(folder / "dino.safetensors", "dinov2"))
    config.data.update(
        features=str(folder / "features"), source="shapes", num_examples=40, num_workers=0
    )
    config.optim.base_lr = config.optim.min_lr = 1e-3
    config.train.update(global_batch_size=8, total_steps=8, log_every=2, checkpoint_every=3)
    config.eval.update(every=4, num_scenes=128, batch_size=16, templates="shapes")
    return config
