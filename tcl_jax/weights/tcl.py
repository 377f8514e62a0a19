"""TCL's own tensor names: the official `tcl.pth` holds only what is learned."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from tcl_jax.models.clip import CLIPConfig
from tcl_jax.models.tcl import TCL
from tcl_jax.weights.mapping import (
    Rule,
    StateDict,
    WeightError,
    block,
    block_numbers,
    layer_norm,
    linear,
    to_params,
    to_state_dict,
)
from tcl_jax.weights.names import Renamed, find_part

BLOCKS = "masker.image_encoder.backbone.transformer.resblocks."
DECODER = "masker.image_encoder.decoder"
SIGN = rf"{re.escape(BLOCKS)}\d"


def tcl_rules(config: CLIPConfig, feature_layer: int) -> list[Rule]:
    """Mapping between the official names and the learned parameters of `models.tcl.TCL`.

    The grounder's blocks keep CLIP's index there, so the first is number `feature_layer` (from 0).
    """
    rules = []
    for i in range(feature_layer, config.vision_layers):
        rules += block(f"{BLOCKS}{i}", ("grounder", f"blocks_{i - feature_layer}"))
    for stage in range(2):
        for j, layer in enumerate(("conv", "conv2")):
            name = f"{DECODER}.decoder.net.{stage}.{layer}"
            path = ("grounder", "decoder", f"convs_{stage}_{j}")
            rules += layer_norm(f"{name}.norm", (*path, "norm"))
            rules += linear(f"{name}.conv", (*path, "conv"), (2, 3, 1, 0))
            rules += [Rule(f"{name}.gate.gate", (*path, "gate"))]
    rules += layer_norm(f"{DECODER}.image_proj.ln", ("grounder", "ln_post"))
    rules += [
        Rule(f"{DECODER}.image_proj.proj", ("grounder", "proj")),
        Rule("masker.sim2mask.w", ("sim2mask", "w")),
        Rule("masker.sim2mask.b", ("sim2mask", "b")),
        Rule("tclf_loss.logit_scale", ("tclf_logit_scale",)),
        Rule("tcli_loss.logit_scale", ("tcli_logit_scale",)),
    ]
    return rules


def find_tcl(tensors: Mapping[str, np.ndarray], prefix: str = "") -> Renamed:
    """What TCL learned; see `names.find_part`."""
    missing = (
        f"not a TCL checkpoint: it has no tensor {BLOCKS}N.*; the official one is tcl.pth, and "
        "CLIP's own weights are given apart"
    )
    return find_part(tensors, prefix, "TCL", SIGN, r"masker\.|tcl", missing)


def infer_feature_layer(state_dict: StateDict, config: CLIPConfig) -> int:
    """`ie_freeze` of a TCL checkpoint: CLIP's blocks before the first that the grounder copies.

    Raises:
        WeightError: if one is missing, or they are not CLIP's last ones.
    """
    blocks = block_numbers(state_dict, BLOCKS)
    if not blocks or blocks != list(range(blocks[0], config.vision_layers)) or not blocks[0]:
        raise WeightError(
            f"this TCL has the blocks {blocks} of its CLIP, and the CLIP given has "
            f"{config.vision_layers}, of which it must hold the last ones and not all; give the "
            "CLIP that it was trained from"
        )
    return blocks[0]


def tcl_params(
    state_dict: StateDict, config: CLIPConfig, feature_layer: int, dtype: Any = np.float32
) -> dict[str, Any]:
    """What `TCL(config, feature_layer)` learned, from the official names; see `to_params`."""
    template = tcl_shapes(config, feature_layer)
    return to_params(tcl_rules(config, feature_layer), state_dict, template, dtype)


def tcl_state_dict(params: Any, config: CLIPConfig, feature_layer: int) -> dict[str, np.ndarray]:
    """Official names and layouts of the learned parameters."""
    return to_state_dict(tcl_rules(config, feature_layer), jax.device_get(params))


def tcl_shapes(config: CLIPConfig, feature_layer: int) -> Any:
    """Tree of `jax.ShapeDtypeStruct` of the learned parameters, CLIP left out."""
    model = TCL(config, feature_layer)
    clip = jax.eval_shape(model.clip_model.init, jax.random.key(0))
    return jax.eval_shape(model.init_learned, jax.random.key(0), clip["visual"])
