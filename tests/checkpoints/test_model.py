"""Finished models on disk: whole, checked, exact; and the parameters of a run alone."""

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


@pytest.mark.parametrize(("width", "dtype"), [(512, np.float32), (768, np.float16)])
def test_token_embeddings_of_published_sizes(tmp_path: Path, width: int, dtype: type) -> None:
    rows = np.arange(49408, dtype=np.float32)[:, None] / 49408
    params = {"embedding": (rows + np.linspace(0, 1, width, dtype=np.float32)).astype(dtype)}
    write_model(tmp_path / "model", params, {})
    found = read_model(tmp_path / "model")[0]["embedding"]
    np.testing.assert_array_equal(found, params["embedding"], strict=True)
    with CheckpointStore(tmp_path / "run/checkpoints") as store:
        state = {"params": jax.tree.map(jnp.asarray, params)}
        store.save(1, state, data_state=None, config={})
    found = read_trained(tmp_path / "run").params["embedding"]
    np.testing.assert_array_equal(found, params["embedding"], strict=True)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left .* disk full or gone"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "quota exceeded: is the disk full or gone"),
        (
            ValueError("RESOURCE_EXHAUSTED: Error writing " + "e/c/0/0 " * 50 + f"Failed to write "
            f"9 bytes to file 14: No space left on device [os_error_code='{errno.ENOSPC}']"),
            "No space left .* disk full or gone",
        ),
        (MemoryError("no room for 9 bytes"), "there is too little memory. Nothing"),
    ],
)  # fmt: skip
def test_a_failed_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the library's own") from error

    monkeypatch.setattr(model_file, "write_checksums", fail)
    with pytest.raises(RunError, match=told) as raised:
        write_model(tmp_path / "model", PARAMS, {})
    assert ("disk" in str(raised.value)) == ("disk full" in told)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_the_files_fault_is_not_laid_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no room for 9 bytes")

    write_model(tmp_path / "model", PARAMS, {})
    monkeypatch.setattr(model_file.ocp, "load_checkpointables", fail)
    with pytest.raises(RunError, match="is intact but cannot be read: MemoryError: no room"):
        load_model(tmp_path / "model")


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
