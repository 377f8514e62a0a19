"""`bench masks` and `bench evaluate` on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tcl_jax.bench import __main__ as bench
from tcl_jax.errors import InputError, RunError
from tcl_jax.models.clip_method import CLIPMethod
from tcl_jax.models.flops import total
from tcl_jax.models.method import MaskOptions
from tcl_jax.models.methods import METHODS
from tcl_jax.training.build import abstract_experiment
from tests.bench.official_checkout import make_checkout, requests_of
from tests.released_files import WRITERS, weights_flags
from tests.tiny import tiny_config_file, tiny_settings

FAST = ["--windows=32", "--classes=3", "--calls=1", "--rounds=2", "--warmup=1"]


def test_masks_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, config = tmp_path / "masks.json", f"--config={tiny_config_file(tmp_path)}"
    bench.run(["masks", config, *FAST, "--batch_sizes=2", "--pamr=yes", f"--json={file}"])
    (row,) = json.loads(file.read_text())["masks"]
    assert (row["window"], row["classes"], row["batch_size"]) == (32, 3, 2) and row["pamr"]
    assert row["images_per_second"] == pytest.approx(2 / np.median(row["rounds"]))
    model = abstract_experiment(tiny_settings("")).objective.model
    assert row["image_flops"] == total(model.flops(32, 3, MaskOptions()))
    assert row["mfu"] is None
    assert f"{1000 * row['seconds']:.4g}" in capsys.readouterr().out


def test_masks_that_differ_end_it_before_anything_is_timed(tmp_path: Path) -> None:
    zeros = {"masks": np.zeros((1, 32, 32, 3), np.float32)}
    path, python = make_checkout(tmp_path, zeros)
    against = [f"--against={path}", f"--against_python={python}"]
    with pytest.raises(RunError, match="32, 3 classes, no PAMR, batch 1: float32 results differ"):
        bench.run(["masks", f"--config={tiny_config_file(tmp_path)}", *FAST, *against])
    asked = requests_of(path)
    assert [request["do"] for request in asked] == ["load", "prepare", "compare"]
    assert (asked[1]["pamr"], asked[1]["kp_weight"]) == (False, 0.3)


def test_an_evaluation_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, config = tmp_path / "evaluate.json", f"--config={tiny_config_file(tmp_path)}"
    bench.run(["evaluate", config, "--classes=3", "--images=3", f"--json={file}"])
    (row,) = json.loads(file.read_text())["evaluation"]
    # 500 x 375 pixels become 43 x 32, which two windows of 32 cover.
    assert (row["images"], row["windows_per_image"], row["classes"]) == (3, 2, 3)
    assert f"{row['images_per_second']:.4g}" in capsys.readouterr().out


def test_a_model_by_name_is_measured(tmp_path: Path) -> None:
    file, flags = tmp_path / "figures.json", weights_flags(WRITERS["talk2dino"](tmp_path))
    flags = ["--model=talk2dino", *flags, f"--json={file}"]
    bench.run(["masks", *flags, *FAST, "--pamr=no"])
    figures = json.loads(file.read_text())
    (row,) = figures["masks"]
    assert row["window"] == 32 and row["image_flops"] > 0
    assert "Talk2DINO on DINOv2 with registers" in figures["model"]
    bench.run(["evaluate", *flags, "--classes=3", "--images=2"])
    (row,) = json.loads(file.read_text())["evaluation"]
    assert row["windows_per_image"] == 2  # of 94 x 70 pixels
    checkout, python = make_checkout(tmp_path, {})
    for wrong, left_out in (
        (["--config.seed=1"], "--config.seed=1 out"),
        ([f"--against={checkout}", f"--against_python={python}"], "--against out"),
    ):
        with pytest.raises(InputError, match=f"--model='talk2dino'.*{left_out}"):
            bench.run(["masks", *flags, *FAST, *wrong])
    with pytest.raises(InputError, match="--weights belongs to --model"):
        bench.run(["masks", *flags[1:]])


def test_methods_are_measured_in_turn(tmp_path: Path) -> None:
    file, flags = tmp_path / "masks.json", [f"--config={tiny_config_file(tmp_path)}", "--pamr=no"]
    flags += [*FAST, "--windows=56", "--config.model.sizes.vision_layers=4"]
    bench.run(["masks", *flags, "--method=all", f"--json={file}"])
    rows = {row["method"]: row for row in json.loads(file.read_text())["masks"]}
    known = {n for n, kind in METHODS.items() if issubclass(kind, CLIPMethod)} - {"tcl_dino"}
    assert {*rows} == known and next(iter(rows)) == "maskclip"
    base = rows["maskclip"]
    assert (base["ratio"], base["lowest"], base["highest"]) == (1, 1, 1)
    for row in rows.values():
        ratios = [a / b for a, b in zip(row["rounds"], base["rounds"], strict=True)]
        assert row["ratio"] == pytest.approx(np.median(ratios)) and row["image_flops"] > 0
    with pytest.raises(InputError, match="'tips' is none of the methods on the CLIP of tcl"):
        bench.run(["masks", *flags, "--method=sclip,tips"])
    if "clip_dinoiser" in known:
        with pytest.raises(InputError, match="clip_dinoiser: this CLIP has 2 blocks"):
            bench.run(["masks", *flags[:-1], "--method=clip_dinoiser"])
    with pytest.raises(InputError, match="leave --against out"):
        bench.run(["masks", *flags, "--method=sclip", "--against=x"])


@pytest.mark.parametrize(
    ("command", "flag"),
    [("masks", "--windows=30"), ("evaluate", "--classes=300"), ("evaluate", "--rounds=3")],
)
def test_mistakes_are_explained(command: str, flag: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=flag.strip("-").partition("=")[0]):
        bench.run([command, f"--config={tiny_config_file(tmp_path)}", flag])
