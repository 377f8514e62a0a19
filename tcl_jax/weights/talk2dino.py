"""Talk2DINO's tensor names: its projection, alone in a file or beside the towers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from tcl_jax.files import user_path
from tcl_jax.models.talk2dino import init_projection
from tcl_jax.weights.folders import find_weights, open_model
from tcl_jax.weights.load import Source, origin_of, prepending_path
from tcl_jax.weights.mapping import Rule, StateDict, WeightError, linear, to_params, to_state_dict
from tcl_jax.weights.names import Renamed, find_part

FIRST, SECOND, OLD_SECOND = "linear_layer", "hidden_layers.0", "linear_layer2"
SIGN = rf"{FIRST}\.weight$"
_LAYER = rf"({FIRST}|{OLD_SECOND}|hidden_layers\.\d+)\.(weight|bias)$"

RULES: list[Rule] = [*linear(FIRST, ("hidden",)), *linear(SECOND, ("out",))]
"""The official names, and the parameters of `models.talk2dino.init_projection`."""


def find_projection(tensors: Mapping[str, np.ndarray], prefix: str = "") -> Renamed:
    """A projection, whose second layer old files call `linear_layer2`; see `names.find_part`.

    Raises:
        WeightError: also if it has another number of layers.
    """
    missing = (
        f"not a projection of Talk2DINO: it has no tensor {FIRST}.weight; the released ones are "
        "vitb_mlp_infonce.pth and the like, and the towers are given apart"
    )
    found = find_part(tensors, prefix, "projection", SIGN, _LAYER, missing)
    names = {name.replace(OLD_SECOND, SECOND): parts for name, parts in found.names.items()}
    needed = {rule.name for rule in RULES}
    if wrong := sorted(needed ^ names.keys()):
        raise WeightError(
            f"a projection of Talk2DINO has the tensors {', '.join(sorted(needed))}, and this one "
            f"differs by {', '.join(wrong)}; choose one of two layers"
        )
    return Renamed(tensors, names, prefix=found.prefix)


def load_projection(source: Source, prefix: str = "") -> tuple[dict[str, Any], dict[str, str]]:
    """A projection of any widths, and where it is from as in `load.Pretrained`.

    Args:
        source: a file or folder with the official names, alone or beside the towers.
        prefix: see `names.find_part`.

    Raises:
        InputError: if the file is missing, damaged, or holds no projection.
    """
    path = user_path(source)
    if not path.exists():
        raise WeightError(
            f"weights {str(path)!r} do not exist; give the path of a projection of Talk2DINO, such "
            "as vitb_mlp_infonce.pth of its repository (https://github.com/lorebianchi98/Talk2DINO)"
        )
    path = find_weights(path)
    with open_model(path) as file, prepending_path(path):
        tensors = find_projection(file, prefix)
        return projection_params(tensors), origin_of(file, "talk2dino", tensors.prefix)


def projection_params(tensors: StateDict) -> dict[str, Any]:
    """Parameters of a projection of any widths from its official names; see `to_params`."""
    shape = getattr(tensors, "specs", tensors)[f"{FIRST}.weight"].shape
    if len(shape) != 2:
        raise WeightError(f"tensor {FIRST}.weight has the shape {tuple(shape)}, and not two axes")
    shapes = jax.eval_shape(lambda key: init_projection(key, shape[1], shape[0]), jax.random.key(0))
    return to_params(RULES, tensors, shapes)


def projection_state_dict(projection: Any) -> dict[str, np.ndarray]:
    """Official names and layouts of a projection."""
    return to_state_dict(RULES, jax.device_get(projection))
