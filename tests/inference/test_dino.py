"""DINO from files under its authors' names, against their own module."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tcl_jax import Backbone
from tcl_jax.errors import InputError
from tcl_jax.models.vit import resize_positions
from tcl_jax.ops.images import IMAGENET, renormalize
from tcl_jax.weights.backbones import load_backbone
from tcl_jax.weights.description import describe_file
from tests.inference.test_backbone import Tensors, write
from tests.reference import load, nchw_to_nhwc, relative_error

CLIPS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""CLIP's own statistics, with which the golden images are normalised."""


def dino_of(golden: str) -> Tensors:
    """The tensors of the tower in a golden file as float32."""
    tensors, start = load(f"methods/{golden}"), "dino_state/"
    named = {k.removeprefix(start): x for k, x in tensors.items() if k.startswith(start)}
    return {k: x.astype(np.float32) for k, x in named.items()}


def test_tokens_are_the_references(tmp_path: Path) -> None:
    golden = load("methods/proxyclip")
    backbone = Backbone.from_file(write(tmp_path / "dino.pth", dino_of("proxyclip")))
    assert (backbone.family, backbone.patch_size) == ("dino", 8)
    for size in ("s64x64", "s64x96"):
        image = renormalize(nchw_to_nhwc(golden[f"{size}/image"]), CLIPS, IMAGENET)
        found = backbone.features(image)
        tokens = np.concatenate([found.cls[:, None], found.patches.reshape(1, -1, 128)], axis=1)
        # An epsilon of 1e-5 in place of 1e-6 is 4e-6 away.
        assert relative_error(tokens, golden[f"{size}/dino_tokens"]) < 3e-6
        positions = resize_positions(
            backbone.params["positional_embedding"], found.patches.shape[1:3], backbone.vit.resample
        )
        assert relative_error(positions, golden[f"{size}/dino_positions"]) < 1e-6
        ragged = np.pad(image, ((0, 0), (0, 7), (0, 1), (0, 0)), constant_values=9.0)
        assert relative_error(backbone.features(ragged).patches, np.asarray(found.patches)) < 1e-7


def test_whole_checkpoints(tmp_path: Path) -> None:
    """Of a run of the authors' code, which have both networks with their heads."""
    tensors = {**dino_of("proxyclip"), "head.mlp.0.weight": np.ones((4, 128), np.float32)}
    start = {k: k if k.startswith("head") else f"backbone.{k}" for k in tensors}
    both = {f"teacher.{start[k]}": x for k, x in tensors.items()}
    both |= {f"student.module.{start[k]}": 2 * x for k, x in tensors.items()}
    path = write(tmp_path / "checkpoint.pth", both)
    with pytest.raises(InputError, match="2 backbones.*student.*teacher"):
        Backbone.from_file(path)
    teacher, image = Backbone.from_file(path, prefix="teacher"), np.ones((1, 64, 64, 3), np.float32)
    plain = Backbone.from_file(write(tmp_path / "plain.npz", dino_of("proxyclip")))
    np.testing.assert_array_equal(teacher.features(image).cls, plain.features(image).cls)


def test_other_plain_vision_transformers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors, extra = dino_of("proxyclip"), np.ones((3, 128), np.float32)
    for name in ("head.weight", "decoder_embed.weight"):  # timm's, MAE's
        path = write(tmp_path / f"{name}.npz", tensors | {name: extra})
        with pytest.raises(InputError, match=f"with {name}, as.* MAE .*family='dino'"):
            Backbone.from_file(path)
        assert f"with {name}, as classifiers of timm" in describe_file(str(path))
        with pytest.raises(InputError, match="holds no dinov2, but DINO .*one of dino in place"):
            load_backbone(path, "dinov2")
        caplog.clear()
        assert Backbone.from_file(path, "dino").family == "dino" and not caplog.text
        # A part of a model, or of a run that was begun with it.
        assert load_backbone(path).family.name == "dino"
        assert f"{path} is taken for DINO" in caplog.text and name in caplog.text
    plain = write(tmp_path / "plain.npz", tensors)
    assert "of what training it is they do not tell" in describe_file(str(plain))


def test_what_is_damaged_or_another_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = dino_of("proxyclip")
    lacking = {k: x for k, x in tensors.items() if k != "blocks.1.norm2.bias"}
    with pytest.raises(InputError, match="a.npz.*lacks 1 of .*blocks.1.norm2.bias"):
        Backbone.from_file(write(tmp_path / "a.npz", lacking))
    distilled = tensors | {"pos_embed": np.zeros((1, 66, 128), np.float32)}
    with pytest.raises(InputError, match="66 of pos_embed.*square"):
        Backbone.from_file(write(tmp_path / "b.npz", distilled))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    # As deep and wide as B/8, but with other patches.
    large = {
        "cls_token": np.zeros((1, 1, 768), np.float32),
        "pos_embed": np.zeros((1, 5, 768), np.float32),
        "patch_embed.proj.weight": np.zeros((768, 3, 16, 16), np.float32),
        **{f"blocks.{i}.mlp.fc1.weight": np.zeros((1, 768), np.float32) for i in range(12)},
    }
    write(tmp_path / "weights/dino_vitbase8_pretrain.pth", large)
    with pytest.raises(InputError, match="DINO of the size of B/16 .*not dino:B/8"):
        Backbone.from_pretrained("dino:B/8")
