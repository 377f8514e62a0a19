"""`bench masks` and `bench evaluate` on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tcl_jax.bench import __main__ as bench
from tcl_jax.errors import InputError, RunError
from tcl_jax.inference.masks import MaskOptions
from tcl_jax.models.flops import total
from tcl_jax.training.build import abstract_task
from tests.bench.original_checkout import make_checkout, requests_of
from tests.tiny import tiny_config_file, tiny_settings


@pytest.fixture
def masks(tmp_path: Path) -> list[str]:
    flags = ["--windows=32", "--classes=3", "--calls=1", "--rounds=2", "--warmup=1"]
    return ["masks", f"--config={tiny_config_file(tmp_path)}", *flags]


def test_masks_and_their_parts_are_measured(
    masks: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "masks.json"
    bench.run([*masks, "--batch_sizes=2", "--pamr=yes", f"--json={file}"])
    report, told = json.loads(file.read_text()), capsys.readouterr().out
    network = abstract_task(tiny_settings("")).network
    flops = total(network.flops(32, 3, MaskOptions(kp_weight=0.3)))
    (row,) = report["masks"]
    assert (row["window"], row["classes"], row["batch_size"]) == (32, 3, 2) and row["pamr"]
    assert row["seconds_per_image"] == pytest.approx(np.median(row["seconds"]["seconds"]) / 2)
    assert row["segmenter_seconds"] > 0 and row["mfu"] is None
    assert row["flops_per_image"] == flops and row["program"]["flops"] > 0
    assert f"{1000 * row['seconds_per_image']:.4g}" in told
    (parts,) = report["parts"].values()
    assert list(parts) == [
        "image tower", "grounder with decoder", "similarity", "PAMR", "upsampling",
    ]  # fmt: skip
    assert min(parts.values()) > 0


def test_masks_that_differ_end_it_before_anything_is_timed(
    masks: list[str], tmp_path: Path
) -> None:
    path, python = make_checkout(tmp_path)
    np.save(Path(path) / "masks.npy", np.zeros((1, 3, 32, 32), np.float32))
    with pytest.raises(RunError, match="32, 3 classes, no PAMR, batch 1: float32 results differ"):
        bench.run([*masks, f"--against={path}", f"--against_python={python}"])
    asked = requests_of(path)
    assert [request["do"] for request in asked] == ["hello", "load", "compare_masks"]
    assert (asked[-1]["pamr"], asked[-1]["kp_weight"]) == (False, 0.3)


def test_judging_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "evaluate.json"
    config = f"--config={tiny_config_file(tmp_path)}"
    flags = ["--sizes=48x32", "--classes=3", "--images=3", f"--json={file}"]
    bench.run(["evaluate", config, *flags])
    (row,) = json.loads(file.read_text())["evaluate"]
    assert (row["width"], row["height"], row["images"], row["windows"]) == (48, 32, 3, 6)
    assert min(row["images_per_second"], row["device_share"], row["host_share"]) > 0
    assert f"{row['images_per_second']:.3g}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["masks", "--windows=30"], "--windows=30: is not a multiple of the patch size, 8"),
        (["evaluate", "--classes=300"], "give at least 1 image and pixel, and 2 to 254 classes"),
        (["evaluate", "--rounds=3"], "Unknown command line flag 'rounds'"),
        (
            ["masks", "--config.train.accumulation_steps=0"],
            "train.accumulation_steps=0 must be positive",
        ),
    ],
)
def test_mistakes_are_explained(arguments: list[str], message: str, tmp_path: Path) -> None:
    command, *flags = arguments
    with pytest.raises(InputError, match=message):
        bench.run([command, f"--config={tiny_config_file(tmp_path)}", *flags])
