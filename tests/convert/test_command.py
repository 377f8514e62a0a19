"""`python -m tcl_jax.convert`: every sub-command on real files, round trips, mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tcl_jax.convert import __main__ as command
from tcl_jax.convert.clip import infer_clip_config
from tcl_jax.convert.tcl import infer_tap_layer
from tcl_jax.errors import InputError
from tcl_jax.inference.model import load_model
from tests.reference import GOLDEN, load
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
    assert "tap layer 3" in capsys.readouterr().out
    out = tmp_path / "back.safetensors"
    command.run(["export-torch", str(tmp_path / "model"), str(out)])
    assert_same(out, load("tcl_state_dict"))
    again = tmp_path / "again"
    command.run(["tcl", str(out), f"--clip={clip}", str(again)])
    first, second = load_model(tmp_path / "model"), load_model(again)
    assert first.config == second.config and first.tap_layer == second.tap_layer == 3
    for name in ("grounder", "sim2mask", "clip"):
        assert str(first.params[name]) == str(second.params[name])


def test_clip_in_and_out_keeps_half_precision(tmp_path: Path) -> None:
    command.run(["clip", str(CLIP), str(tmp_path / "model")])
    assert load_model(tmp_path / "model").tap_layer is None
    command.run(["export-torch", str(tmp_path / "model"), str(tmp_path / "back.safetensors")])
    assert_same(tmp_path / "back.safetensors", load("clip_state_dict"))


def test_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.run(["inspect", str(CLIP)])
    told = capsys.readouterr().out
    count = sum(tensor.size for tensor in load("clip_state_dict").values())
    assert "npz, a CLIP of other sizes" in told and "openai names" in told
    assert f"{count:,} parameters" in told and "float16" in told and "sha256" in told
    assert "visual.conv1.weight  [128, 3, 16, 16]  float16" in told
    command.run(["inspect", str(TCL)])
    assert "TCL's learned tensors" in capsys.readouterr().out
    command.run(["tcl", str(TCL), f"--clip={CLIP}", str(tmp_path / "model")])
    command.run(["inspect", str(tmp_path / "model")])
    assert "TCL, tap layer 3" in capsys.readouterr().out
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    command.run(["inspect", str(tmp_path / "other.npz")])
    assert "no CLIP or TCL that is known here" in capsys.readouterr().out


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
        (["clip", str(CLIP), str(GOLDEN)], "is there already"),
    ):
        with pytest.raises(InputError) as caught:
            command.run(arguments)
        assert message in str(caught.value), arguments
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit) as ended:
        command.run(["transmute", "x"])
    assert ended.value.code == 2


def test_tap_layer_is_inferred_from_the_block_indices() -> None:
    config = infer_clip_config(load("clip_state_dict"))
    tensors = load("tcl_state_dict")
    assert infer_tap_layer(tensors, config) == 3
    two = {name.replace("resblocks.3", "resblocks.2"): x for name, x in tensors.items()}
    assert infer_tap_layer({**tensors, **two}, config) == 2
    with pytest.raises(InputError, match=r"the blocks \[2\] of its CLIP.* has 4"):
        infer_tap_layer(two, config)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    tensors = load("clip_state_dict")
    tensors["visual.proj"] = tensors["visual.proj"].copy()
    tensors["visual.proj"][3, 4] = np.inf
    np.savez(tmp_path / "clip.npz", **tensors)
    with pytest.raises(InputError, match=r"clip\.npz': tensor 'visual\.proj' .* not finite"):
        command.run(["clip", str(tmp_path / "clip.npz"), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
