"""A run small enough for tests: drawn scenes and a CLIP of two blocks."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs.shapes import get_config as shapes_config
from configs.shapes_clip import get_config as shapes_clip_config
from tcl_jax.models.clip import CLIP, CLIPConfig, choose_sizes
from tcl_jax.weights.clip import clip_state_dict
from tcl_jax.weights.readers import write_safetensors


def tiny_clip_config() -> ConfigDict:
    """Training a CLIP."""
    return _shrink(shapes_clip_config())


def tiny_config(folder: Path) -> ConfigDict:
    """Training TCL on a random CLIP that is written to `folder`."""
    config = tiny_settings(str(folder / "clip.safetensors"))
    write_tiny_clip(config)
    return config


def tiny_settings(weights: str) -> ConfigDict:
    """Training TCL on the CLIP that `tiny_config` wrote."""
    config = _shrink(shapes_config())
    config.model.weights = weights
    return config.lock()


def tiny_config_file(folder: Path) -> str:
    """The value of --config for `tiny_settings`, with random weights or none."""
    file = folder / "tiny_run.py"
    file.write_text(
        "from tests.tiny import tiny_settings\n\n\ndef get_config():\n"
        f"    return tiny_settings({str(folder / 'clip.safetensors')!r}).unlock()\n"
    )
    return str(file)


def write_tiny_clip(config: ConfigDict) -> None:
    """Random weights of the config's sizes at `model.weights`."""
    sizes = choose_sizes(config.model.variant, config.model.sizes.to_dict())
    write_safetensors(config.model.weights, _random_clip(sizes), {})


@functools.cache
def _random_clip(sizes: CLIPConfig) -> dict[str, np.ndarray]:
    """Made once in a process: to trace and compile it takes longer than many a test."""
    return clip_state_dict(jax.jit(CLIP(sizes).init)(jax.random.key(1)), sizes)


def _shrink(config: ConfigDict) -> ConfigDict:
    sizes: dict[str, Any] = {
        "embed_dim": 16, "resolution": 32, "patch_size": 8, "vision_width": 64,
        "vision_layers": 2, "text_width": 64, "text_layers": 1, "context_length": 40,
        "vocab_size": 49408,
    }  # fmt: skip
    config.model.variant = "custom"
    config.model.sizes.update(sizes)
    config.data.num_examples = 40
    config.data.num_workers = 0
    config.train.update(
        global_batch_size=8,
        total_steps=8,
        backbone_from_step=4 if config.objective == "tcl" else 0,
        log_every=2,
        checkpoint_every=3,
    )
    config.eval.update(every=4, num_scenes=128, batch_size=16)
    return config
