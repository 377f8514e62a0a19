"""`python -m tcl_jax.convert`: every sub-command on real files, round trips, mistakes."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy

from tcl_jax import convert as command
from tcl_jax.errors import InputError
from tcl_jax.inference.model import load_model
from tcl_jax.weights.clip import clip_shapes, clip_state_dict, infer_clip_config
from tcl_jax.weights.load import load_clip
from tcl_jax.weights.tcl import infer_feature_layer
from tests.reference import GOLDEN, load
from tests.talk2dino_files import write_talk2dino
from tests.torch_files import save_state_dict, save_torchscript

CLIP, TCL = GOLDEN / "clip_state_dict.npz", GOLDEN / "tcl_state_dict.npz"


def assert_same(path: Path, expected: dict[str, np.ndarray]) -> None:
    tensors = safetensors.numpy.load_file(path)
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(tensors[name], tensor, strict=True)


def test_tcl_in_and_out_is_bit_exact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, tcl = tmp_path / "ViT.pt", tmp_path / "tcl.pth"
    save_torchscript(clip, load("clip_state_dict"), {"input_resolution": 64})
    save_state_dict(tcl, {"model": load("tcl_state_dict")})
    command.run(["tcl", str(tcl), f"--clip={clip}", str(tmp_path / "model")])
    assert "feature layer 3" in capsys.readouterr().out
    out = tmp_path / "back.safetensors"
    command.run(["export-torch", str(tmp_path / "model"), str(out)])
    assert_same(out, load("tcl_state_dict"))
    again = tmp_path / "again"
    command.run(["tcl", str(out), f"--clip={clip}", str(again)])
    first, second = load_model(tmp_path / "model"), load_model(again)
    assert first.method == second.method and first.method.feature_layer == 3
    for name in ("grounder", "sim2mask", "clip"):
        assert str(first.params[name]) == str(second.params[name])


def test_clip_in_and_out_keeps_half_precision(tmp_path: Path) -> None:
    command.run(["clip", str(CLIP), str(tmp_path / "model")])
    assert load_model(tmp_path / "model").method.name == "maskclip"
    command.run(["export-torch", str(tmp_path / "model"), str(tmp_path / "back.safetensors")])
    assert_same(tmp_path / "back.safetensors", load("clip_state_dict"))


def test_a_projection_of_talk2dino_out(tmp_path: Path) -> None:
    projection, backbone, clip = write_talk2dino(tmp_path)
    parts = {"projection": projection, "backbone": backbone, "clip": clip}
    weights = [f"--weights={part}={file}" for part, file in parts.items()]
    command.run(["model", "talk2dino", str(tmp_path / "model"), *weights])
    command.run(["export-torch", str(tmp_path / "model"), str(tmp_path / "back.safetensors")])
    golden = safetensors.numpy.load_file(projection)
    assert_same(tmp_path / "back.safetensors", {k: np.float32(x) for k, x in golden.items()})


def test_of_several_models_a_flag_chooses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {**load("clip_state_dict"), "logit_scale": np.array(1, np.float16)}
    both = {f"student.module.{name}": x for name, x in load("clip_state_dict").items()}
    both |= {f"teacher.{name}": x for name, x in other.items()} | {"loss.weight": np.zeros(3)}
    save_state_dict(tmp_path / "both.ckpt", {"state_dict": both, "epoch": 3})
    arguments = ["clip", str(tmp_path / "both.ckpt"), str(tmp_path / "model")]
    with pytest.raises(InputError, match="2 CLIPs.*'(.*student)', '(.*teacher)'.* --prefix"):
        command.run(arguments)
    command.run(["inspect", arguments[1]])
    prefix = re.search(r"'([\w.]*teacher)'", capsys.readouterr().out)
    assert prefix
    command.run([*arguments, f"--prefix={prefix[1]}"])
    model = load_model(tmp_path / "model")
    assert model.params["clip"]["logit_scale"] == 1
    assert model.origin["clip"]["prefix"] == f"{prefix[1]}."
    command.run(["inspect", arguments[1], f"--prefix={prefix[1]}"])
    assert "teacher'; 87 tensors beside it are passed over" in capsys.readouterr().out
    command.run(["inspect", str(CLIP), "--prefix=teacher"])
    assert "prefix 'teacher' is of no model" in capsys.readouterr().out


def test_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.run(["inspect", str(CLIP)])
    output = capsys.readouterr().out
    count = sum(tensor.size for tensor in load("clip_state_dict").values())
    assert "npz, a CLIP of other sizes" in output and "openai names" in output
    for size in ("resolution=64", "patch_size=16", "vision_width=128", "vision_layers=4"):
        assert size in output
    assert f"{count:,} parameters" in output and "float16" in output and "sha256" in output
    assert "visual.conv1.weight  [128, 3, 16, 16]  float16" in output
    command.run(["inspect", str(TCL)])
    assert "TCL's learned tensors" in capsys.readouterr().out
    command.run(["tcl", str(TCL), f"--clip={CLIP}", str(tmp_path / "model")])
    command.run(["inspect", str(tmp_path / "model")])
    assert "TCL, feature layer 3" in capsys.readouterr().out
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    command.run(["inspect", str(tmp_path / "other.npz")])
    assert "no single CLIP, TCL or backbone that is known here" in capsys.readouterr().out


def test_mistakes_are_explained_and_leave_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for arguments, message in (
        (["clip", "none.pt", str(out)], "none.pt"),
        (["clip", str(TCL), str(out)], "tcl_state_dict.npz"),
        (["tcl", str(CLIP), f"--clip={CLIP}", str(out)], "not a TCL checkpoint"),
        (["tcl", str(TCL), "--clip=builtin:shapes_clip", str(out)], "tcl_state_dict.npz"),
        (["export-torch", str(tmp_path), str(tmp_path / "x.safetensors")], "holds neither"),
        (["export-torch", str(tmp_path), str(tmp_path / "x.pt")], "must end in .safetensors"),
        (["inspect", "none.pt"], "none.pt"),
        (["tcl", str(TCL), f"--clip={CLIP}", "--prefix=a", str(out)], "where the prefix is '.';"),
        (["clip", str(CLIP), str(GOLDEN)], "is there already"),
    ):
        with pytest.raises(InputError) as caught:
            command.run(arguments)
        assert message in str(caught.value), arguments
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit) as ended:
        command.run(["transmute", "x"])
    assert ended.value.code == 2


def test_a_tcl_that_lacks_tensors(tmp_path: Path) -> None:
    tensors = load("tcl_state_dict")
    del tensors["masker.sim2mask.w"]
    np.savez(tmp_path / "tcl.npz", **tensors)
    with pytest.raises(InputError, match=r"tcl.npz': .* lacks 1 of \d+ tensors: masker.sim2mask.w"):
        command.run(["tcl", str(tmp_path / "tcl.npz"), f"--clip={CLIP}", str(tmp_path / "out")])


def test_feature_layer_is_inferred_from_the_block_indices() -> None:
    config = infer_clip_config(load("clip_state_dict"))
    tensors = load("tcl_state_dict")
    assert infer_feature_layer(tensors, config) == 3
    two = {name.replace("resblocks.3", "resblocks.2"): x for name, x in tensors.items()}
    assert infer_feature_layer({**tensors, **two}, config) == 2
    with pytest.raises(InputError, match=r"the blocks \[2\] of its CLIP.* has 4"):
        infer_feature_layer(two, config)


def renamed(tmp_path: Path, name: str, **metadata: str) -> Path:
    path = tmp_path / name
    safetensors.numpy.save_file(load("clip_state_dict"), path, metadata)
    return path


def test_the_gelu_is_told_kept_or_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = renamed(tmp_path, "vit_b_16-laion400m.safetensors")
    assert load_clip(bare).config.activation == "quick_gelu"
    assert "no config file beside it says what tensors do not tell" in caplog.text
    assert "Taken: quick_gelu" in caplog.text and "64 channels" in caplog.text
    command.run(["inspect", str(bare)])
    assert "Taken: quick_gelu" in capsys.readouterr().out
    caplog.clear()
    assert load_clip(bare).config.activation == "quick_gelu"
    assert not caplog.text, "told twice"
    command.run(["clip", str(bare), "--activation=gelu", str(tmp_path / "model")])
    assert "Taken: gelu" in caplog.text, "pooling and heads are not told by the flag"
    caplog.clear()
    command.run(["export-torch", str(tmp_path / "model"), str(tmp_path / "back.safetensors")])
    assert load_clip(tmp_path / "back.safetensors").config.activation == "gelu"
    assert load_clip("builtin:shapes_clip").config.activation == "quick_gelu"
    assert "GELU" not in caplog.text
    with pytest.raises(InputError, match="its activation 'tanh' is none of"):
        load_clip(renamed(tmp_path, "odd.safetensors", activation="tanh"))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("text_projection", lambda x: x.astype(np.int32), "is int32, which weights are not"),
        ("visual.proj", lambda x: x[:, :-1], r"has shape \(128, 31\), which does not fit"),
        ("visual.transformer.resblocks.0.mlp.c_fc.weight", np.transpose, "does not fit"),
        ("text_projection", lambda x: np.full_like(x, np.inf), "not finite"),
    ],
)
def test_weights_that_are_none(tmp_path: Path, name: str, change: Any, message: str) -> None:
    tensors = load("clip_state_dict")
    tensors[name] = change(tensors[name])
    np.savez(tmp_path / "clip.npz", **tensors)
    with pytest.raises(InputError, match=rf"clip\.npz': tensor '{name}' .*{message}"):
        command.run(["clip", str(tmp_path / "clip.npz"), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_double_precision_becomes_single(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "clip.npz", **{k: np.float64(v) for k, v in load("clip_state_dict").items()}
    )
    assert load_clip(tmp_path / "clip.npz", dtype=None).params["logit_scale"].dtype == np.float32


def test_vision_towers_with_other_heads_are_refused(tmp_path: Path) -> None:
    wide = dataclasses.replace(
        infer_clip_config(load("clip_state_dict")), vision_width=1280, vision_layers=1
    )
    tree = jax.tree.map(lambda x: np.zeros(x.shape, np.float16), clip_shapes(wide))
    np.savez(tmp_path / "h14.npz", **clip_state_dict(tree, wide))
    with pytest.raises(InputError, match="1280 wide, as OpenCLIP's H, g and bigG"):
        load_clip(tmp_path / "h14.npz")
