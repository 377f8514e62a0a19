"""Finished models on disk, and the parameters of a run alone."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tcl_jax.checkpoints import model as model_file
from tcl_jax.checkpoints.model import is_model, read_model, write_model
from tcl_jax.checkpoints.store import CheckpointError, CheckpointStore
from tcl_jax.checkpoints.trained import read_trained
from tcl_jax.errors import InputError, RunError
from tcl_jax.inference.model import load_model

PARAMS = {
    "clip": {"proj": np.arange(6, dtype=np.float16).reshape(2, 3)},
    "w": np.full((), 3.5, np.float32),
    "half": np.array([1.5, -2], ml_dtypes.bfloat16),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_model(tmp_path / "new/model", PARAMS, {"method": "tcl", "threshold": 0.5})
    return tmp_path / "new/model"


def test_values_shapes_and_dtypes_are_kept_and_settings_may_be_edited(model: Path) -> None:
    config = model / "config.json"
    config.write_text(config.read_text().replace("0.5", "0.7"))
    params, settings = read_model(model)
    assert (settings["method"], settings["threshold"]) == ("tcl", 0.7)
    assert jax.tree.structure(params) == jax.tree.structure(PARAMS)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), params, PARAMS)
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for name in ("there", "file"):
        with pytest.raises(InputError, match=f"{name}' is there already"):
            write_model(tmp_path / name, PARAMS, {})
    assert (tmp_path / "there/thesis.tex").read_text() == "years of work"
    with pytest.raises(InputError, match="file is a file; choose another place"):
        write_model(tmp_path / "file/below", PARAMS, {})
    (tmp_path / "empty").mkdir()
    write_model(tmp_path / "empty", PARAMS, {})
    assert is_model(tmp_path / "empty")


def test_arrays_larger_than_the_write_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_file, "_WRITE_BUFFER", 1 << 10)
    large = np.arange(1 << 12, dtype=np.float32).reshape(64, 64)
    write_model(tmp_path / "model", {"embedding": large, **PARAMS}, {})
    found = read_model(tmp_path / "model")[0]["embedding"]
    np.testing.assert_array_equal(found, large, strict=True)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ValueError(f"RESOURCE_EXHAUSTED: Error writing [os_error_code='{errno.ENOSPC}']"),
            "No space left .* disk full or gone",
        ),
        (MemoryError("no room for 9 bytes"), "there is too little memory. Nothing"),
    ],
)
def test_a_failed_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the library's own") from error

    monkeypatch.setattr(model_file, "write_json", fail)
    with pytest.raises(RunError, match=message):
        write_model(tmp_path / "model", PARAMS, {})
    assert list(tmp_path.iterdir()) == []


def test_damage_and_faults_of_the_machine(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no room for 9 bytes")

    with monkeypatch.context() as patch:
        patch.setattr(model_file.ocp, "load_checkpointables", fail)
        with pytest.raises(RunError, match="params cannot be read: there is too little memory"):
            load_model(model)
    max((model / "params/params/d").iterdir(), key=lambda path: path.stat().st_size).unlink()
    with pytest.raises(InputError, match=f"{model}/params: is damaged .*convert it again"):
        load_model(model)


def test_other_directories_and_later_versions(model: Path) -> None:
    assert not is_model(model.parent)
    with pytest.raises(CheckpointError, match=r"new: is not a model .*config\.json"):
        read_model(model.parent)
    config = model / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "version": 99}))
    with pytest.raises(CheckpointError, match="version 99"):
        read_model(model)
    config.write_text(config.read_text()[:-9])
    with pytest.raises(InputError, match=f"{config}: cannot be read: .* Correct it"):
        load_model(model)


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
    (tmp_path / "run/checkpoints/5/state/_METADATA").unlink()
    with pytest.raises(CheckpointError, match="checkpoints/5: is damaged"):
        read_trained(tmp_path / "run/checkpoints/5")
    with pytest.raises(CheckpointError, match=r"no step 7; the steps are \[5, 9\]"):
        read_trained(tmp_path / "run/checkpoints/7")
    with pytest.raises(CheckpointError, match="holds no run"):
        read_trained(tmp_path)
