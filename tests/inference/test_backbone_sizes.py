"""A tower by name has the sizes of that name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tcl_jax import Backbone
from tcl_jax.errors import InputError
from tcl_jax.models.families import FAMILIES, Size
from tcl_jax.weights.backbones import load_backbone
from tests.inference.test_backbone import OWN, Tensors, weights_of, write


def test_towers_of_one_width_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the kind of their MLPs: those of ViT-S are plain, and those of ViT-S+ SwiGLUs."""
    gated: Tensors = {}
    plain = {k: x for k, x in weights_of("dinov3").items() if k.startswith(OWN["dinov3"])}
    for name, x in plain.items():
        *_, layer, _ = name.split(".")
        for other in {"fc1": ("w1", "w2"), "fc2": ("w3",)}.get(layer, (layer,)):
            gated[name.replace(layer, other)] = x
    sizes, depth = FAMILIES["dinov3"].sizes, sum(name.endswith("ls1.gamma") for name in plain)
    monkeypatch.setitem(sizes, "S/16", Size(96, depth, 2, ()))
    monkeypatch.setitem(sizes, "S+/16", Size(96, depth, 2, (), gated=True))
    for own, other, tensors in (("S/16", "S+/16", plain), ("S+/16", "S/16", gated)):
        path = write(tmp_path / f"{other.replace('/', '')}.safetensors", tensors)
        assert load_backbone(path, name=f"dinov3:{own}").params["blocks_0"]
        wanted = rf"size of {re.escape(own)} .* not dinov3:{re.escape(other)}"
        with pytest.raises(InputError, match=wanted):
            load_backbone(path, name=f"dinov3:{other}")


def test_by_name_the_sizes_must_be_those_of_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    path = write(tmp_path / "weights/dinov2_vitb14_reg4_pretrain.pth", weights_of("dinov2-reg"))
    with pytest.raises(InputError, match=f"{path.name}.*4 blocks.*not dinov2-reg:B/14"):
        Backbone.from_pretrained("dinov2-reg:B/14")
