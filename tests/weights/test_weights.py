"""Tensor names, layouts and files: exact both ways, and clear about what does not fit."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tcl_jax.weights.clip import clip_params, clip_state_dict, infer_clip_config
from tcl_jax.weights.hub import locate_clip
from tcl_jax.weights.mapping import WeightError, block_numbers
from tcl_jax.weights.tcl import tcl_params, tcl_state_dict
from tests.reference import GOLDEN, TAP_LAYER, load, read_state_dict


def test_clip_round_trip_is_exact() -> None:
    state_dict = read_state_dict(GOLDEN / "clip_state_dict.npz")
    config = infer_clip_config(state_dict)
    back = clip_state_dict(clip_params(state_dict, config), config, np.float16)
    assert back.keys() == state_dict.keys()
    for name, tensor in state_dict.items():
        np.testing.assert_array_equal(back[name], tensor, strict=True)


def test_tcl_round_trip_is_exact() -> None:
    state_dict, config = load("tcl_state_dict"), infer_clip_config(load("clip_state_dict"))
    back = tcl_state_dict(tcl_params(state_dict, config, TAP_LAYER), config, TAP_LAYER)
    assert back.keys() == state_dict.keys()
    for name, tensor in state_dict.items():
        np.testing.assert_array_equal(back[name], tensor, strict=True)


def test_block_numbers_are_each_told_once_in_order() -> None:
    names = ["a.10.x", "a.2.x", "a.2.y", "b.a.3.x", "a.x.4.y", "a.1234.x", "a.5", "a.٣.x"]
    assert block_numbers(names, "a.") == [2, 10]
    assert block_numbers(names, "a") == []


def test_sizes_are_inferred() -> None:
    config = infer_clip_config(load("clip_state_dict"))
    assert (config.vision_layers, config.vision_width, config.vision_heads) == (4, 128, 2)
    assert (config.patch_size, config.resolution, config.embed_dim) == (16, 64, 32)
    assert (config.vocab_size, config.context_length, config.text_layers) == (600, 77, 2)


def test_the_shipped_clip_is_read_like_any_other() -> None:
    path = locate_clip("builtin:shapes_clip")
    assert path.stat().st_size <= 8e6
    state_dict = read_state_dict(path)
    config = infer_clip_config(state_dict)
    params = clip_params(state_dict, config)
    assert params["text"]["token_embedding"].shape == (49408, config.text_width)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("visual.proj", (128, 33)), ("visual.transformer.resblocks.0.mlp.c_fc.weight", (128, 512))],
)
def test_a_shape_that_does_not_fit_is_named_though_its_size_may(
    name: str, shape: tuple[int, ...]
) -> None:
    state_dict = load("clip_state_dict")
    config = infer_clip_config(state_dict)
    state_dict[name] = np.zeros(shape, np.float16)
    told = f"'{name}' has shape {shape}, which does not fit"
    with pytest.raises(WeightError, match=re.escape(told)):
        clip_params(state_dict, config)


def test_missing_tensors_are_named() -> None:
    state_dict = load("clip_state_dict")
    config = infer_clip_config(state_dict)
    del state_dict["ln_final.weight"]
    with pytest.raises(WeightError, match=r"lacks 1 of \d+ tensors: ln_final.weight"):
        clip_params(state_dict, config)
    with pytest.raises(WeightError, match="visual.conv1.weight"):
        infer_clip_config({"something": np.zeros(3)})
