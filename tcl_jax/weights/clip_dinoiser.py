"""CLIP-DINOiser's head by its authors' names, as in their last.pt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from tcl_jax.models.clip import CLIPConfig
from tcl_jax.models.clip_dinoiser import init_head
from tcl_jax.weights.folders import open_model
from tcl_jax.weights.hub import locate_head
from tcl_jax.weights.load import Source, origin_of, prepending_path
from tcl_jax.weights.mapping import Rule, StateDict, WeightError, linear, to_params, to_state_dict
from tcl_jax.weights.names import WRAPPERS, Renamed, choose_prefix, plain_names

PROJECTION, BACKGROUND = "obj_proj", "bkg_decoder"
SIGN = f"{PROJECTION}.weight"

RULES: list[Rule] = [
    *linear(PROJECTION, ("projection",), (2, 3, 1, 0)),
    *linear(BACKGROUND, ("background",), (2, 3, 1, 0)),
]
"""The official names, and the parameters of `models.clip_dinoiser.init_head`."""


def holds_head(names: Iterable[str]) -> bool:
    """Whether there is a tensor by which `find_head` begins."""
    return any(f".{name}".endswith(f".{SIGN}") for name in names)


def find_head(tensors: Mapping[str, np.ndarray], prefix: str = "") -> Renamed:
    """A head by its official names, under any prefix in a file.

    Args:
        tensors: by name, of which none is read here; others beside a head are passed over.
        prefix: of the names of the one that is meant, where there are several.

    Raises:
        WeightError: if there is none, several that the prefix does not tell apart, or one that
            lacks tensors.
    """
    plain = plain_names(tensors, WRAPPERS)
    found = sorted(x.removesuffix(SIGN) for x in plain if f".{x}".endswith(f".{SIGN}"))
    if not found:
        raise WeightError(
            f"not a head of CLIP-DINOiser: it has no tensor {SIGN}; the released one is last.pt, "
            "and the CLIP is given apart"
        )
    chosen = choose_prefix(found, prefix, "head")
    names = {
        name.removeprefix(chosen): [theirs]
        for name, theirs in plain.items()
        if name.startswith((f"{chosen}{PROJECTION}.", f"{chosen}{BACKGROUND}."))
    }
    return Renamed(tensors, names, prefix=chosen)


def load_head(
    source: Source, config: CLIPConfig, prefix: str = "", dtype: Any = np.float32
) -> tuple[dict[str, Any], dict[str, str]]:
    """A head of any number of channels, and where it is from as in `load.Pretrained`.

    Args:
        source: see `hub.locate_head`: "official", a file or a folder.
        config: of the CLIP that it was trained for.
        prefix: see `find_head`.
        dtype: of the parameters; None keeps each tensor's own.

    Raises:
        InputError: if the file is missing, damaged, holds no head, or one for another CLIP.
    """
    path = locate_head(source)
    with open_model(path) as file, prepending_path(path):
        tensors = find_head(file, prefix)
        params = head_params(tensors, config, dtype)
        return params, origin_of(file, "clip_dinoiser", tensors.prefix)


def head_sizes(tensors: StateDict) -> tuple[int, int]:
    """Channels of a head's projection and of the blocks that it is for, as `find_head` gives it.

    Raises:
        WeightError: if it is no 3x3 convolution.
    """
    shape = getattr(tensors, "specs", tensors)[SIGN].shape
    if len(shape) != 4 or shape[2:] != (3, 3):
        raise WeightError(
            f"tensor {SIGN} has the shape {tuple(shape)}, and that of a 3x3 convolution has four "
            "axes and ends in 3, 3; choose a head of CLIP-DINOiser, such as its last.pt"
        )
    return shape[0], shape[1]


def head_params(tensors: StateDict, config: CLIPConfig, dtype: Any = np.float32) -> dict[str, Any]:
    """Parameters of a head for a CLIP of these sizes from its official names; see `to_params`.

    Args:
        tensors: as `find_head` gives them.
        config: of the CLIP.
        dtype: of the result; None keeps each tensor's own.
    """
    channels, width = head_sizes(tensors)
    if width != config.vision_width:
        raise WeightError(
            f"this head is for a CLIP whose blocks are {width} wide, and those of the CLIP given "
            f"are {config.vision_width}; give the CLIP that it was trained with, which is "
            "LAION-2B's ViT-B/16 for the released one"
        )
    init = partial(init_head, width=width, channels=channels)
    return to_params(RULES, tensors, jax.eval_shape(init, jax.random.key(0)), dtype)


def head_state_dict(head: Any) -> dict[str, np.ndarray]:
    """Official names and layouts of a head."""
    return to_state_dict(RULES, jax.device_get(head))
