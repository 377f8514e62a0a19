"""Backbones against Hugging Face's own modules in PyTorch, from the files that it saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tcl_jax import Backbone

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3}
CASES = {  # sides of the image: Hugging Face resamples positions of DINO and DINOv2 in another way
    "ViT": ({"image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-6}, (32, 32), "dino"),
    "Dinov2": ({"image_size": 56, "patch_size": 14}, (56, 56), "dinov2"),
    "Dinov2WithRegisters": (
        {"image_size": 56, "patch_size": 14, "use_swiglu_ffn": True}, (42, 98), "dinov2-reg"
    ),
    "DINOv3ViT": (
        {"patch_size": 16, "intermediate_size": 192, "num_register_tokens": 4}, (32, 80), "dinov3"
    ),
    "DINOv3ViT gated": (
        {"patch_size": 16, "intermediate_size": 128, "num_register_tokens": 4,
         "use_gated_mlp": True, "hidden_act": "silu", "query_bias": False, "value_bias": False},
        (32, 80), "dinov3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_features_are_hugging_face_s(tmp_path: Path, name: str) -> None:
    settings, sides, family = CASES[name]
    kind = name.split()[0]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES, **settings)
    model: Any = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            vector = parameter.ndim < 2
            mean = 1.0 if vector and ("norm" in key or "lambda" in key) else 0.0
            mean -= 0.5 * key.endswith(".bias")
            parameter.normal_(mean, 0.3 if vector else parameter[0].numel() ** -0.5)
        images = torch.randn(2, 3, *sides)
        tokens = model(images).last_hidden_state.numpy()
    model.save_pretrained(tmp_path)
    backbone = Backbone.from_file(tmp_path)
    found = backbone.features(np.moveaxis(images.numpy(), 1, -1))
    assert backbone.family == family
    patches = np.asarray(found.patches).reshape(2, -1, 96)
    ours = np.concatenate([found.cls[:, None], found.registers, patches], axis=1)
    np.testing.assert_allclose(ours, tokens, atol=2e-5)
    # Its names in memory are others than those in its files.
    torch.save(model.state_dict(), tmp_path / "memory.pth")
    backbone = Backbone.from_file(tmp_path / "memory.pth", heads=3)
    jax.tree.map(
        np.testing.assert_array_equal, backbone.params, Backbone.from_file(tmp_path).params
    )
