"""CLIP-DINOiser's head by its authors' names, as in their last.pt."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from tcl_jax.models.clip import CLIPConfig
from tcl_jax.models.clip_dinoiser import init_head
from tcl_jax.weights.folders import open_model
from tcl_jax.weights.hub import locate_head
from tcl_jax.weights.load import Source, origin_of, prepending_path
from tcl_jax.weights.mapping import Rule, WeightError, linear, to_params, to_state_dict
from tcl_jax.weights.names import Renamed, find_part

PROJECTION, BACKGROUND = "obj_proj", "bkg_decoder"
FIRST = f"{PROJECTION}.weight"
SIGN = rf"{re.escape(FIRST)}$"

RULES: list[Rule] = [
    *linear(PROJECTION, ("projection",), (2, 3, 1, 0)),
    *linear(BACKGROUND, ("background",), (2, 3, 1, 0)),
]
"""The official names, and the parameters of `models.clip_dinoiser.init_head`."""


def find_head(tensors: Mapping[str, np.ndarray], prefix: str = "") -> Renamed:
    """A head; see `names.find_part`."""
    missing = (
        f"not a head of CLIP-DINOiser: it has no tensor {FIRST}; the released one is last.pt, and "
        "the CLIP is given apart"
    )
    return find_part(tensors, prefix, "head", SIGN, rf"({PROJECTION}|{BACKGROUND})\.", missing)


def load_head(
    source: Source, config: CLIPConfig, prefix: str = "", dtype: Any = np.float32
) -> tuple[dict[str, Any], dict[str, str]]:
    """A head of any number of channels, and where it is from as in `load.Pretrained`.

    Args:
        source: see `hub.locate_head`: "official", a file or a folder.
        config: of the CLIP that it was trained for.
        prefix: see `names.find_part`.
        dtype: of the parameters; None keeps each tensor's own.

    Raises:
        InputError: if the file is missing, damaged, holds no head, or one for another CLIP.
    """
    path = locate_head(source)
    with open_model(path) as file, prepending_path(path):
        tensors = find_head(file, prefix)
        channels, width = head_sizes(tensors)
        if width != config.vision_width:
            raise WeightError(
                f"this head is for a CLIP whose blocks are {width} wide, and those of the CLIP "
                f"given are {config.vision_width}; give the CLIP that it was trained with, which "
                "is LAION-2B's ViT-B/16 for the released one"
            )
        init = partial(init_head, width=width, channels=channels)
        params = to_params(RULES, tensors, jax.eval_shape(init, jax.random.key(0)), dtype)
        return params, origin_of(file, "clip_dinoiser", tensors.prefix)


def head_sizes(tensors: Renamed) -> tuple[int, int]:
    """Channels of a head's projection and of the blocks that it is for, as `find_head` gives it.

    Raises:
        WeightError: if it is no 3x3 convolution.
    """
    shape = tensors.specs[FIRST].shape
    if len(shape) != 4 or shape[2:] != (3, 3):
        raise WeightError(
            f"tensor {FIRST} has the shape {tuple(shape)}, and that of a 3x3 convolution has four "
            "axes and ends in 3, 3; choose a head of CLIP-DINOiser, such as its last.pt"
        )
    return shape[0], shape[1]


def head_state_dict(head: Any) -> dict[str, np.ndarray]:
    """Official names and layouts of a head."""
    return to_state_dict(RULES, jax.device_get(head))
