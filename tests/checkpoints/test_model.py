"""Finished models on disk: whole, checked, exact; and the parameters of a run alone."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tcl_jax.checkpoints import model as model_file
from tcl_jax.checkpoints.model import is_model, read_model, write_model
from tcl_jax.checkpoints.store import CheckpointError, CheckpointStore
from tcl_jax.checkpoints.trained import read_trained
from tcl_jax.errors import InputError

PARAMS = {
    "clip": {"proj": np.arange(6, dtype=np.float16).reshape(2, 3)},
    "w": np.full((), 3.5, np.float32),
    "half": np.array([1.5, -2], ml_dtypes.bfloat16),
}


def test_round_trip_keeps_values_shapes_and_dtypes(tmp_path: Path) -> None:
    write_model(tmp_path / "new/model", PARAMS, {"method": "tcl"})
    params, settings = read_model(tmp_path / "new/model")
    assert settings["method"] == "tcl"
    assert params.keys() == PARAMS.keys()
    np.testing.assert_array_equal(params["clip"]["proj"], PARAMS["clip"]["proj"], strict=True)
    np.testing.assert_array_equal(params["half"], PARAMS["half"], strict=True)
    np.testing.assert_array_equal(params["w"], PARAMS["w"], strict=True)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for name in ("there", "file"):
        with pytest.raises(InputError, match="is there already"):
            write_model(tmp_path / name, PARAMS, {})
    assert (tmp_path / "there/thesis.tex").read_text() == "years of work"
    with pytest.raises(InputError, match="file is a file; choose another place"):
        write_model(tmp_path / "file/below", PARAMS, {})
    (tmp_path / "empty").mkdir()
    write_model(tmp_path / "empty", PARAMS, {})
    assert is_model(tmp_path / "empty")


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_file, "write_checksums", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write_model(tmp_path / "model", PARAMS, {})
    assert list(tmp_path.iterdir()) == []


def test_damage_is_seen(tmp_path: Path) -> None:
    write_model(tmp_path / "model", PARAMS, {})
    files = [path for path in (tmp_path / "model/params/params").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"damaged: .*{largest.name} has changed"):
        read_model(tmp_path / "model")


def test_settings_may_be_edited(tmp_path: Path) -> None:
    write_model(tmp_path / "model", PARAMS, {"inference": {"threshold": 0.5}})
    config = tmp_path / "model/config.json"
    config.write_text(config.read_text().replace("0.5", "0.7"))
    assert read_model(tmp_path / "model")[1]["inference"] == {"threshold": 0.7}


def test_other_directories_and_later_versions(tmp_path: Path) -> None:
    assert not is_model(tmp_path)
    with pytest.raises(CheckpointError, match="is not a model"):
        read_model(tmp_path)
    write_model(tmp_path / "model", PARAMS, {})
    config = tmp_path / "model/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "version": 99}))
    with pytest.raises(CheckpointError, match="version 99"):
        read_model(tmp_path / "model")


def test_parameters_of_a_run_without_its_optimiser(tmp_path: Path) -> None:
    def state(value: float) -> dict[str, dict[str, jnp.ndarray]]:
        return {"params": {"w": jnp.full((3,), value)}, "opt_state": {"m": jnp.ones((3,))}}

    with CheckpointStore(tmp_path / "run/checkpoints", keep_latest=2) as store:
        for step in (5, 9):
            store.save(step, state(step), data_state={}, config={"seed": 7})
    newest = read_trained(tmp_path / "run")
    assert (newest.step, newest.config) == (9, {"seed": 7})
    assert newest.params.keys() == {"w"}
    np.testing.assert_array_equal(newest.params["w"], np.full(3, 9, np.float32))
    assert read_trained(tmp_path / "run/checkpoints").step == 9
    older = read_trained(tmp_path / "run/checkpoints/5")
    assert older.step == 5 and older.params["w"][0] == 5
    with pytest.raises(CheckpointError, match="holds no run"):
        read_trained(tmp_path)
