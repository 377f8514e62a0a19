"""Talk2DINO's projection from files, by its official names and others."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tcl_jax.models.talk2dino import project_text
from tcl_jax.weights.description import describe_file
from tcl_jax.weights.mapping import WeightError
from tcl_jax.weights.talk2dino import load_projection
from tests.reference import load
from tests.torch_files import save_state_dict

SECOND = "hidden_layers.0"


def official() -> dict[str, np.ndarray]:
    golden = load("talk2dino")
    return {k.removeprefix("w/"): x for k, x in golden.items() if k.startswith("w/")}


def write(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    safetensors.numpy.save_file({k: np.ascontiguousarray(x) for k, x in tensors.items()}, path)
    return path


def test_a_released_file_an_old_one_and_one_with_the_towers(tmp_path: Path) -> None:
    tensors, golden = official(), load("talk2dino")
    raw = golden["text/raw"].astype(np.float32)
    released, old = tmp_path / "vitb_mlp_infonce.pth", tmp_path / "old.pth"
    save_state_dict(released, tensors)
    save_state_dict(old, {k.replace(SECOND, "linear_layer2"): x for k, x in tensors.items()})
    whole = {f"module.proj.{k}": x for k, x in tensors.items()}
    beside = write(tmp_path / "whole.safetensors", {**whole, "model.cls_token": np.zeros(3)})
    for path, prefix in ((released, ""), (old, ""), (beside, "proj.")):
        projection, origin = load_projection(path)
        found = project_text(projection, jnp.asarray(raw.mean(axis=1)))
        np.testing.assert_allclose(found, golden["text/projected"], atol=5e-6)
        assert origin["prefix"] == prefix and origin["file"] == path.name
        assert "Talk2DINO's projection of 32 to 128 channels" in describe_file(str(path))


def test_files_without_a_projection_of_two_layers_are_named(tmp_path: Path) -> None:
    tensors = official()
    bias = f"{SECOND}.bias"
    cases = {
        "another": ({"weight": tensors[bias]}, "linear_layer.weight"),
        "short": ({k: x for k, x in tensors.items() if k != bias}, bias),
        "deep": ({**tensors, "hidden_layers.1.bias": tensors[bias]}, "hidden_layers.1.bias"),
        "wide": ({**tensors, bias: tensors[bias][:5]}, bias),
        "flat": ({**tensors, "linear_layer.weight": tensors[bias]}, "linear_layer.weight"),
        "two": ({f"{x}.{k}": v for x in "ab" for k, v in tensors.items()}, "2 projections"),
    }
    for name, (content, message) in cases.items():
        path = write(tmp_path / f"{name}.safetensors", content)
        with pytest.raises(WeightError, match=f"{name}.safetensors.*{message}"):
            load_projection(path)
        describe_file(str(path))  # without an error
    with pytest.raises(WeightError, match="absent.pth.*do not exist"):
        load_projection(tmp_path / "absent.pth")
