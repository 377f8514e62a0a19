"""Names of DINOv3's tensors, the authors' and Hugging Face's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tcl_jax.models.families import Sizes
from tcl_jax.models.vit import rope_periods
from tcl_jax.weights import dinov2, mapping
from tcl_jax.weights.dinov2 import BLOCKS, HUGGING_FACE_BLOCK
from tcl_jax.weights.mapping import Rule, StateDict

PERIODS = "rope_embed.periods"

HUGGING_FACE = {
    "embeddings.register_tokens": "storage_tokens",
    "embeddings.patch_embeddings.": "patch_embed.proj.",
    "embeddings.": "",
    "model.layer.": BLOCKS,  # in memory; the next in its files
    "layer.": BLOCKS,
    **HUGGING_FACE_BLOCK,
}
"""Parts of the names of `DINOv3ViTModel`, to be replaced in this order."""


def sizes(specs: Mapping[str, Any]) -> Sizes:
    """See `dinov2.sizes`; the periods of the rotary embedding tell the size of a head."""
    found = dinov2.sizes(specs, "storage_tokens")
    if PERIODS not in specs:
        return found
    size = 4 * specs[PERIODS].shape[0]
    return dataclasses.replace(found, heads=found.width // size, head_size=size)


def to_params(
    tensors: StateDict, found: Sizes, heads: int, dtype: Any = np.float32
) -> dict[str, Any]:
    """Parameters of the tower of `models.vit`; see `dinov2.to_params`.

    Keys have no bias: the reference multiplies a third of the fused one by `bias_mask`, which is
    zero there, or not a number in files that were written before it was set. The periods of the
    rotary embedding are float32 whatever the dtype: rounding them moves features.
    """
    rules = [*dinov2.tower(tensors, key_bias=False), Rule("cls_token", ("class_embedding",))]
    if "storage_tokens" in tensors:
        rules.append(Rule("storage_tokens", ("register_tokens",)))
    params = mapping.to_params(rules, tensors, found.shapes(heads), dtype)
    number = (found.head_size or found.width // heads) // 4
    if PERIODS in tensors:
        rule = Rule(PERIODS, ("rope_periods",))
        periods = rule.to_flax(rule.read(tensors), (number,))
    else:
        periods = rope_periods(number)
    return {**params, "rope_periods": periods}
