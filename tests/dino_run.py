"""A run of TCL on a backbone that is small enough for tests."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from configs.tcl_dino import get_config as dino_config
from tests.talk2dino_files import write_golden
from tests.tiny import tiny_settings, write_tiny_clip


def tiny_dino_config(folder: Path) -> ConfigDict:
    """Random CLIP of patches of 8, the golden DINOv2 of 14, drawn scenes of 56 pixels."""
    config = tiny_settings(str(folder / "clip.safetensors"))
    with config.unlocked():
        config.objective = "tcl_dino"
        config.model.sizes.resolution = 56
        config.model.projection = dino_config().model.projection
        config.model.update(
            backbone=str(write_golden(folder / "dino.safetensors", "dinov2")),
            backbone_heads=4,
            image_size=56,
        )
    write_tiny_clip(config)
    return config
