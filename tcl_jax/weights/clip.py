"""OpenAI CLIP's tensor names, and the sizes that their shapes imply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from tcl_jax.models.clip import CLIP, CLIPConfig
from tcl_jax.weights.mapping import (
    Rule,
    StateDict,
    WeightError,
    block,
    block_numbers,
    layer_norm,
    to_params,
    to_state_dict,
)


def clip_rules(config: CLIPConfig) -> list[Rule]:
    """Mapping between OpenAI's names and `models.clip.CLIP`."""
    visual, text = ("visual",), ("text",)
    rules = [
        Rule("visual.conv1.weight", (*visual, "patch_kernel"), (2, 3, 1, 0)),
        Rule("visual.class_embedding", (*visual, "class_embedding")),
        Rule("visual.positional_embedding", (*visual, "positional_embedding")),
        *layer_norm("visual.ln_pre", (*visual, "ln_pre")),
        *layer_norm("visual.ln_post", (*visual, "ln_post")),
        Rule("visual.proj", (*visual, "proj")),
        Rule("token_embedding.weight", (*text, "token_embedding")),
        Rule("positional_embedding", (*text, "positional_embedding")),
        *layer_norm("ln_final", (*text, "ln_final")),
        Rule("text_projection", (*text, "text_projection")),
        Rule("logit_scale", ("logit_scale",)),
    ]
    for i in range(config.vision_layers):
        rules += block(f"visual.transformer.resblocks.{i}", (*visual, f"blocks_{i}"))
    for i in range(config.text_layers):
        rules += block(f"transformer.resblocks.{i}", (*text, f"blocks_{i}"))
    return rules


def infer_clip_config(state_dict: Mapping[str, Any], activation: str = "quick_gelu") -> CLIPConfig:
    """Sizes of a CLIP from the shapes of its tensors.

    Args:
        state_dict: anything with a `.shape` by OpenAI's names, all of them: arrays or specs.
        activation: a key of `models.layers.ACTIVATIONS`.

    Raises:
        WeightError: if a tensor that tells a size has an impossible shape.
    """
    try:
        conv = state_dict["visual.conv1.weight"].shape
        grid = round((state_dict["visual.positional_embedding"].shape[0] - 1) ** 0.5)
        context, text_width = state_dict["positional_embedding"].shape
        return CLIPConfig(
            embed_dim=state_dict["text_projection"].shape[1],
            resolution=grid * conv[-1],
            patch_size=conv[-1],
            vision_width=conv[0],
            vision_layers=len(block_numbers(state_dict, "visual.transformer.resblocks.")),
            text_width=text_width,
            text_layers=len(block_numbers(state_dict, "transformer.resblocks.")),
            context_length=context,
            vocab_size=state_dict["token_embedding.weight"].shape[0],
            activation=activation,
        )
    except (ValueError, IndexError) as error:
        raise WeightError(f"the shapes of this CLIP's tensors do not fit: {error}") from error


def clip_params(
    state_dict: StateDict, config: CLIPConfig, dtype: Any = np.float32
) -> dict[str, Any]:
    """Parameters of `CLIP(config)` from a state dict with OpenAI's names; see `to_params`."""
    return to_params(clip_rules(config), state_dict, clip_shapes(config), dtype)


def clip_state_dict(params: Any, config: CLIPConfig, dtype: Any = None) -> dict[str, np.ndarray]:
    """OpenAI's names and layouts of CLIP parameters, optionally cast."""
    tensors = to_state_dict(clip_rules(config), jax.device_get(params))
    return {k: v if dtype is None else v.astype(dtype) for k, v in tensors.items()}


def clip_shapes(config: CLIPConfig) -> Any:
    """Tree of `jax.ShapeDtypeStruct`, what `CLIP(config)` expects; nothing is computed."""
    return jax.eval_shape(CLIP(config).init, jax.random.key(0))
