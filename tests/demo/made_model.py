"""A TCL with random weights on the CLIP that ships, and pictures to ask it about."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
from PIL import Image

from tcl_jax.inference.model import Model, model_from_torch
from tcl_jax.models.tcl import TCL
from tcl_jax.shapes.source import ShapesSource

WORDS = ("striped red", "plain blue", "dotted green")


@functools.cache
def random_tcl() -> Model:
    """Its masks mean nothing, but differ from word to word and from picture to picture."""
    clip = model_from_torch("builtin:shapes_clip")
    config = clip.method.config
    method = TCL(config, config.vision_layers - 1)
    random = jax.jit(method.init)(jax.random.key(2))
    sim2mask = {**random["sim2mask"], "w": 3 * random["sim2mask"]["w"]}  # scores of all heights
    settings = dataclasses.replace(clip.settings, refine="none", threshold=0.3, templates="shapes")
    return dataclasses.replace(
        clip,
        method=method,
        params={**random, "sim2mask": sim2mask, "clip": clip.params["clip"]},
        settings=settings,
    )


def write_scene(path: Path, number: int, size: int = 96) -> Path:
    """A drawn scene as a file."""
    Image.fromarray(ShapesSource("test", num_examples=9, image_size=size)[number]["image"]).save(
        path
    )
    return path
