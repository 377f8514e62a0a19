"""Tensor names, layouts and files: exact both ways, and clear about what does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tcl_jax.convert.clip import clip_params, clip_state_dict, infer_clip_config
from tcl_jax.convert.hub import locate_clip
from tcl_jax.convert.mapping import WeightError, block_numbers
from tcl_jax.convert.readers import write_safetensors
from tcl_jax.convert.tcl import tcl_params, tcl_state_dict
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


def test_safetensors_round_trip(tmp_path: Path) -> None:
    tensors = load("clip_state_dict")
    write_safetensors(tmp_path / "new/clip.safetensors", tensors, {"format": "pt"})
    back = read_state_dict(tmp_path / "new/clip.safetensors")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, strict=True)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["clip.safetensors"]


def test_the_shipped_clip_is_read_like_any_other() -> None:
    path = locate_clip("builtin:shapes_clip")
    assert path.stat().st_size <= 8e6
    state_dict = read_state_dict(path)
    config = infer_clip_config(state_dict)
    params = clip_params(state_dict, config)
    assert params["text"]["token_embedding"].shape == (49408, config.text_width)


def test_shape_that_does_not_fit_names_tensor_and_both_shapes() -> None:
    state_dict = load("clip_state_dict")
    config = infer_clip_config(state_dict)
    state_dict["visual.proj"] = np.zeros((128, 33), np.float16)
    with pytest.raises(WeightError, match=r"'visual.proj' has shape \(128, 33\).*\(128, 32\)"):
        clip_params(state_dict, config)


def test_transposed_tensor_is_refused_though_its_size_fits() -> None:
    state_dict = load("clip_state_dict")
    config = infer_clip_config(state_dict)
    name = "visual.transformer.resblocks.0.mlp.c_fc.weight"
    state_dict[name] = state_dict[name].T
    with pytest.raises(WeightError, match="c_fc.weight"):
        clip_params(state_dict, config)


def test_missing_tensors_are_named() -> None:
    state_dict = load("clip_state_dict")
    config = infer_clip_config(state_dict)
    del state_dict["ln_final.weight"]
    with pytest.raises(WeightError, match=r"lacks 1 of \d+ tensors: ln_final.weight"):
        clip_params(state_dict, config)
    with pytest.raises(WeightError, match="visual.conv1.weight"):
        infer_clip_config({"something": np.zeros(3)})


@pytest.mark.parametrize("name", ["clip.safetensors", "clip.npz"])
@pytest.mark.parametrize("content", [b"", b"garbage that is no archive at all"])
def test_damaged_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightError, match=rf"{name}' cannot be read"):
        read_state_dict(tmp_path / name)


def test_truncated_file(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "clip.safetensors", load("clip_state_dict"), {})
    content = (tmp_path / "clip.safetensors").read_bytes()
    (tmp_path / "clip.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightError, match="cannot be read"):
        read_state_dict(tmp_path / "clip.safetensors")


def test_absent_or_unknown_file(tmp_path: Path) -> None:
    with pytest.raises(WeightError, match="do not exist"):
        read_state_dict(tmp_path / "none.npz")
    (tmp_path / "clip.onnx").write_bytes(b"x")
    with pytest.raises(WeightError, match="none of safetensors, .npz and PyTorch"):
        read_state_dict(tmp_path / "clip.onnx")
