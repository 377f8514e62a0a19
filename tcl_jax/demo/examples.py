"""Pictures to try the page with, drawn here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tcl_jax.inference.settings import InferenceSettings
from tcl_jax.pictures.overlays import save_png
from tcl_jax.shapes.source import CLASSES, ShapesSource
from tcl_jax.shapes.texture import texture_scene

COUNT = 4
_SCENE_SIDE = 384
_PHOTO_SIZE = 375, 500  # rows and columns
_LOOKED_AT = 60


class Example(NamedTuple):
    """A picture file and the words that fit it, one per line."""

    path: Path
    words: str


def knows_shapes(settings: InferenceSettings, origin: Mapping[str, Any]) -> bool:
    """Whether a model was made for drawn scenes, so that they suit it without texture."""
    clip = str(origin.get("clip", {}).get("file", ""))
    return settings.templates == "shapes" or Path(clip).stem == "shapes_clip"


def draw_examples(folder: str | os.PathLike[str], *, plain: bool) -> list[Example]:
    """Writes test scenes of several classes, plain or with the texture of photographs."""
    source = ShapesSource("test", num_examples=_LOOKED_AT, image_size=_SCENE_SIDE)
    examples: list[Example] = []
    for number in range(_LOOKED_AT):
        scene = source[number]
        if len(scene["class_ids"]) < 3:
            continue
        shapes = [CLASSES[i - 1] for i in scene["class_ids"]]
        # Of a textured scene the colours are left, of which any CLIP has heard.
        names = dict.fromkeys(shape.name if plain else shape.color for shape in shapes)
        if len(names) < 2:
            continue
        image = scene["image"] if plain else texture_scene(scene["image"], number, _PHOTO_SIZE)
        path = Path(folder) / f"scene{len(examples) + 1}.png"
        save_png(path, image)
        examples.append(Example(path, "\n".join(names)))
        if len(examples) == COUNT:
            break
    return examples
