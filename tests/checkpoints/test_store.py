"""Checkpoints: exact, atomic, pruned, and checked."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from tcl_jax.checkpoints.store import (
    CheckpointError,
    CheckpointMismatchError,
    CheckpointReadError,
    CheckpointStore,
    CheckpointWriteError,
)

CONFIG = {"seed": 3, "model": {"width": 96, "taps": [1, 2]}, "note": None}


@struct.dataclass
class State:
    step: jax.Array
    params: dict[str, dict[str, jax.Array]]
    moments: tuple[jax.Array, ...]


def make_state(step: int, size: int = 8) -> State:
    keys = jax.random.split(jax.random.key(step), 3)
    return State(
        step=jnp.int32(step),
        params={
            "tower": {"kernel": jax.random.normal(keys[0], (size, 4))},
            "scale": {"w": jax.random.normal(keys[1], ()), "b": jnp.float32(1e-40)},
        },
        moments=(jax.random.normal(keys[2], (3, 5)).astype(jnp.bfloat16), jnp.full((1,), jnp.nan)),
    )


def abstract(state: State, sharding: jax.sharding.Sharding | None = None) -> State:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), state
    )


def assert_same(got: State, want: State) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert isinstance(a, jax.Array) and a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def save(store: CheckpointStore, step: int, **kwargs) -> bool:
    state = kwargs.pop("state", None) or make_state(step)
    return store.save(step, state, data_state={"next": step}, config=CONFIG, **kwargs)


def data_file(directory: Path, step: int) -> Path:
    files = [p for p in (directory / str(step) / "state").rglob("*") if p.is_file()]
    return max(files, key=lambda p: p.stat().st_size)


def test_round_trip_is_exact(tmp_path):
    saved = make_state(7)
    with CheckpointStore(tmp_path / "a" / "b") as store, jax.transfer_guard("disallow"):
        assert store.latest_step() is None and store.steps() == [] and store.best_step() is None
        assert save(store, 7, state=saved)
    with CheckpointStore(tmp_path / "a" / "b") as store, jax.transfer_guard("disallow"):
        got = store.restore(abstract(saved))
    assert (got.step, got.data_state) == (7, {"next": 7})
    assert_same(got.state, saved)


def test_restores_into_the_given_sharding(tmp_path):
    mesh = jax.make_mesh((len(jax.devices()),), ("data",))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    state = make_state(1, size=8 * len(jax.devices()))
    shapes = abstract(state, everywhere)
    kernel = shapes.params["tower"]["kernel"]
    shapes.params["tower"]["kernel"] = jax.ShapeDtypeStruct(
        kernel.shape, kernel.dtype, sharding=spread
    )
    with CheckpointStore(tmp_path) as store:
        save(store, 1, state=state)
        got = store.restore(shapes).state
    assert_same(got, state)
    assert got.params["tower"]["kernel"].sharding == spread
    assert got.step.sharding == everywhere


def test_a_leaf_without_sharding_goes_to_the_first_device(tmp_path):
    with CheckpointStore(tmp_path) as store:
        save(store, 1)
        got = store.restore(jax.eval_shape(lambda: make_state(1)))
    assert_same(got.state, make_state(1))
    assert got.state.step.devices() == {jax.local_devices()[0]}


def test_arrays_may_be_donated_or_deleted_after_save(tmp_path):
    state = {"w": jnp.arange(1 << 20, dtype=jnp.float32), "v": jnp.ones((1 << 20,))}
    want = {k: np.array(v, copy=True) for k, v in state.items()}
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    state = jax.tree.map(jnp.copy, state)  # no host view is cached on these
    overwrite = jax.jit(lambda t: jax.tree.map(lambda x: x * 0 - 1, t), donate_argnums=0)
    with CheckpointStore(tmp_path) as store:
        store.save(1, state, data_state=None, config={})
        state["v"].delete()
        later = {"w": overwrite(state["w"])}
        for _ in range(5):
            later = overwrite(later)
        jax.block_until_ready(later)
        got = store.restore(shapes).state
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])


def test_keeps_the_latest_and_the_best(tmp_path):
    scores = {1: 0.1, 2: 0.9, 3: 0.2, 4: 0.5, 5: 0.3}
    with CheckpointStore(tmp_path, keep_latest=2, keep_best=1, best_metric="miou") as store:
        for step, score in scores.items():
            save(store, step, metrics={"miou": score, "other": -score})
        assert store.steps() == [2, 4, 5]
        assert store.best_step() == 2 and store.latest_step() == 5
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["2", "4", "5"]
    with CheckpointStore(tmp_path, keep_latest=1, keep_best=2, best_metric="miou") as store:
        assert store.best_step() == 2
        save(store, 6)
        assert store.steps() == [2, 4, 6]


def test_without_a_metric_only_the_latest_stay(tmp_path):
    with CheckpointStore(tmp_path, keep_latest=1) as store:
        for step in (1, 2, 3):
            save(store, step, metrics={"miou": 1.0 / step})
        assert store.steps() == [3] and store.best_step() is None


def test_nan_never_ranks_and_the_newer_of_equals_wins(tmp_path):
    with CheckpointStore(tmp_path, keep_latest=9, best_metric="miou") as store:
        for step, score in {1: 0.5, 2: 0.5, 3: float("nan")}.items():
            save(store, step, metrics={"miou": score})
        assert store.best_step() == 2
    with CheckpointStore(tmp_path, best_metric="miou") as store:
        assert store.best_step() == 2


def test_metrics_of_a_saved_step_are_recorded_later(tmp_path):
    with CheckpointStore(tmp_path, keep_latest=1, keep_best=1, best_metric="miou") as store:
        assert save(store, 1)
        assert not save(store, 1, state=make_state(99), metrics={"miou": 0.8})
        assert save(store, 2, metrics={"miou": 0.1})
        assert save(store, 3, metrics={"miou": 0.2}, wait=True)
        assert store.steps() == [1, 3] and store.best_step() == 1
        assert_same(store.restore(abstract(make_state(1)), 1).state, make_state(1))


def test_an_unreadable_ranking_is_survived(tmp_path):
    with CheckpointStore(tmp_path, best_metric="miou") as store:
        save(store, 1, metrics={"miou": 0.8})
    (tmp_path / "metrics.json").write_text("{")
    with CheckpointStore(tmp_path, best_metric="miou") as store:
        assert store.best_step() is None and store.steps() == [1]


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, os.unlink])
def test_a_damaged_newest_falls_back_and_is_replaced(tmp_path, caplog, damage):
    with CheckpointStore(tmp_path) as store:
        save(store, 10)
        save(store, 20)
    damage(data_file(tmp_path, 20))
    logging.use_absl_handler()
    with CheckpointStore(tmp_path) as store:
        with caplog.at_level("WARNING"):
            got = store.restore(abstract(make_state(10)))
        assert got.step == 10
        assert_same(got.state, make_state(10))
        assert f"{tmp_path / '20'} is damaged" in caplog.text
        assert store.steps() == [10]
        with pytest.raises(CheckpointError, match="no step 20"):
            store.restore(abstract(make_state(20)), 20)
        assert save(store, 20)
        assert store.steps() == [10, 20]
        assert_same(store.restore(abstract(make_state(20))).state, make_state(20))


def test_damage_without_checksums_falls_back_too(tmp_path):
    with CheckpointStore(tmp_path) as store:
        save(store, 10)
        save(store, 20)
    truncate(data_file(tmp_path, 20))
    (tmp_path / "20" / "checksums.json").unlink()
    with CheckpointStore(tmp_path) as store:
        assert store.restore(abstract(make_state(10))).step == 10


def test_a_sound_step_that_cannot_be_read_is_not_dropped(tmp_path, monkeypatch):
    with CheckpointStore(tmp_path) as store:
        save(store, 10)
        save(store, 20)

    def fail(*_, **__):
        raise MemoryError("out of memory")

    with CheckpointStore(tmp_path) as store:
        with monkeypatch.context() as patch:
            patch.setattr("tcl_jax.checkpoints.store.ocp.load_checkpointables", fail)
            with pytest.raises(CheckpointError, match="20: is intact but .*out of memory"):
                store.restore(abstract(make_state(20)))
        assert store.restore(abstract(make_state(20))).step == 20


def test_a_step_whose_files_cannot_be_checked_is_not_dropped(tmp_path, monkeypatch):
    with CheckpointStore(tmp_path) as store:
        for step in (1, 2):
            store.save(step, make_state(step), data_state=None, config=CONFIG, wait=True)

    def fails(*_args, **_shares):
        raise OSError(errno.EMFILE, "Too many open files")

    with CheckpointStore(tmp_path) as store, monkeypatch.context() as patch:
        patch.setattr("tcl_jax.checkpoints.store.find_damage", fails)
        with pytest.raises(CheckpointReadError, match="2: cannot be read: .*Too many open files"):
            store.restore(abstract(make_state(0)))
    with CheckpointStore(tmp_path) as store:
        assert store.restore(abstract(make_state(0))).step == 2


def test_a_damaged_step_does_not_push_a_good_one_out(tmp_path):
    with CheckpointStore(tmp_path) as store:
        save(store, 10)
        save(store, 20)
    truncate(data_file(tmp_path, 20))
    with CheckpointStore(tmp_path) as store:
        store.restore(abstract(make_state(10)))
        save(store, 15)
        assert store.steps() == [10, 15]
    assert not (tmp_path / "20").exists()


def test_nothing_readable_names_directory_and_reason(tmp_path):
    with CheckpointStore(tmp_path) as store:
        save(store, 10)
    truncate(data_file(tmp_path, 10))
    for step in (None, 10):
        with CheckpointStore(tmp_path) as store, pytest.raises(CheckpointError) as error:
            store.restore(abstract(make_state(10)), step)
        assert str(tmp_path) in str(error.value) and "step 10" in str(error.value)
        assert "bytes instead of" in str(error.value)


def test_an_empty_store_and_an_absent_step(tmp_path):
    with CheckpointStore(tmp_path) as store:
        with pytest.raises(CheckpointError, match="no complete checkpoint"):
            store.restore(abstract(make_state(1)))
        save(store, 1)
        with pytest.raises(CheckpointError, match=r"no step 5; the steps are \[1\]"):
            store.restore(abstract(make_state(1)), 5)
        with pytest.raises(CheckpointError, match="no step 5"):
            store.first_readable(5, str)


def test_a_mismatch_names_the_leaf_and_both_shapes(tmp_path):
    with CheckpointStore(tmp_path) as store:
        save(store, 1)
        save(store, 2)
        with pytest.raises(CheckpointMismatchError) as error:
            store.restore(abstract(make_state(1, size=16)))
        for part in ("params/tower/kernel", "(8, 4)", "(16, 4)"):
            assert part in str(error.value)
        other = abstract(make_state(1))
        other.params["extra"] = {"w": other.step}
        del other.params["scale"]["b"]
        other = other.replace(step=jax.ShapeDtypeStruct((), jnp.float32))
        with pytest.raises(CheckpointMismatchError) as error:
            store.restore(other)
        for part in ("params/extra/w is not in", "params/scale/b is in the", "int32", "float32"):
            assert part in str(error.value)
        assert store.steps() == [1, 2]


def test_only_complete_steps_are_listed_and_leftovers_go(tmp_path):
    with CheckpointStore(tmp_path) as store:
        save(store, 1)
        save(store, 2)
    (tmp_path / "2" / "commit_success.txt").unlink()
    for name in ("3.orbax-checkpoint-tmp", "4", "007", "notes"):
        (tmp_path / name).mkdir()
    with CheckpointStore(tmp_path, read_only=True) as store:
        assert store.steps() == [1] and store.restore(abstract(make_state(1))).step == 1
        assert (tmp_path / "3.orbax-checkpoint-tmp").exists()  # may be a write of another process
    with CheckpointStore(tmp_path) as store:
        save(store, 2)
        assert store.steps() == [1, 2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["007", "1", "2", "notes"]


def test_an_interrupted_deletion_leaves_nothing_to_list(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("interrupted")

    with CheckpointStore(tmp_path, keep_latest=1) as store:
        save(store, 1, wait=True)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", fail)
            save(store, 2, wait=True)
        assert store.steps() == [2]
    assert (tmp_path / "1" / "state").exists()
    with CheckpointStore(tmp_path, keep_latest=1) as store:
        assert store.steps() == [2]
        save(store, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3"]


def test_bad_directories(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        CheckpointStore(tmp_path / "file")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        CheckpointStore(tmp_path / "file" / "below")
    with CheckpointStore(tmp_path / "absent", read_only=True) as store:
        assert store.steps() == []
        with pytest.raises(CheckpointError, match="read_only"):
            save(store, 1)
    assert not (tmp_path / "absent").exists()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(CheckpointError, match="not writable"):
        CheckpointStore(tmp_path)


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="keep_latest"):
        CheckpointStore(tmp_path, keep_latest=0)
    with CheckpointStore(tmp_path) as store:
        with pytest.raises(ValueError, match="step -1"):
            save(store, -1)
        with pytest.raises(ValueError, match="data_state"):
            store.save(1, make_state(1), data_state=object(), config={})
        with pytest.raises(ValueError, match="config"):
            store.save(1, make_state(1), data_state=None, config={"x": {1, 2}})
        for leaf, why in (
            (np.ones(2), "ndarray"),
            (jax.random.key(0), "PRNG"),
            (jnp.ones(0), "em"),
        ):
            with pytest.raises(ValueError, match=f"a/b: is .*{why}"):
                store.save(1, {"a": {"b": leaf}}, data_state=None, config={})
        assert store.steps() == []


def test_a_failed_write_is_reported_and_the_older_steps_stay(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    save(store, 1, wait=True)

    def fail(*_, **__):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tcl_jax.checkpoints.store.ocp.save_checkpointables_async", fail)
        with pytest.raises(CheckpointWriteError, match="step 2 could not be written.*No space"):
            save(store, 2)
    assert store.steps() == [1]
    assert save(store, 2, wait=True)
    with monkeypatch.context() as patch:
        broken = types.SimpleNamespace(result=fail)  # fails in the background
        patch.setattr(
            "tcl_jax.checkpoints.store.ocp.save_checkpointables_async", lambda *_, **__: broken
        )
        assert save(store, 3)
        with pytest.raises(CheckpointWriteError, match="step 3 could not be written.*No space"):
            store.steps()
    assert store.steps() == [1, 2]
    store.close()


WRITER = """
import sys, jax.numpy as jnp
from tcl_jax.checkpoints.store import CheckpointStore
store = CheckpointStore(sys.argv[1], keep_latest=2, keep_best=1, best_metric="score")
start = store.latest_step() or 0
for step in range(start + 1, start + 10_000):
    state = {"w": jnp.arange(600_000, dtype=jnp.float32) * step, "step": jnp.int32(step)}
    store.save(step, state, data_state={"next": step}, config={"a": 1},
               metrics={"score": float(step % 5)})
    print(step, flush=True)
"""


def test_kill_9_leaves_only_readable_steps(tmp_path):
    pause = random.Random(0)
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    shapes = {
        "w": jax.ShapeDtypeStruct((600_000,), jnp.float32),
        "step": jax.ShapeDtypeStruct((), jnp.int32),
    }
    seen = 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            stdout=subprocess.PIPE,
            env=env,
            text=True,
        ) as writer:
            assert writer.stdout is not None
            told = [int(writer.stdout.readline()) for _ in range(4)]
            time.sleep(pause.uniform(0.0, 0.2))
            writer.send_signal(signal.SIGKILL)
            told += [int(line) for line in writer.stdout.read().split()]
        with CheckpointStore(tmp_path, read_only=True) as store:
            steps = store.steps()
            assert steps and steps[-1] >= told[-1] - 1 > seen
            for step in steps:
                got = store.restore(shapes, step)
                assert got.step == got.data_state["next"] == int(got.state["step"]) == step
                np.testing.assert_array_equal(
                    got.state["w"], np.arange(600_000, dtype=np.float32) * step
                )
        seen = steps[-1]


TWO_PROCESSES = """
import sys, jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tcl_jax.checkpoints.store import CheckpointStore
rank, port, directory = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=rank)
sharding = NamedSharding(jax.make_mesh((2,), ("data",)), PartitionSpec("data"))
full = np.arange(8, dtype=np.float32).reshape(4, 2)
w = jax.make_array_from_callback(full.shape, sharding, lambda i: full[i])
n = jax.make_array_from_callback(
    (), NamedSharding(sharding.mesh, PartitionSpec()), lambda i: np.int32(5)[i])
shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                      {"w": w, "n": n})
with CheckpointStore(directory, keep_latest=2) as store:
    for step in (1, 2, 3):
        store.save(step, {"w": w * step, "n": n}, data_state={"rank": "x" * (rank + 1), "s": step},
                   config={"a": 1})
    assert store.steps() == [2, 3], store.steps()
with CheckpointStore(directory, keep_latest=2) as store:
    if rank == 0:
        import pathlib
        file = max((f for f in pathlib.Path(directory, "3", "state").rglob("*") if f.is_file()),
                   key=lambda f: f.stat().st_size)
        file.write_bytes(file.read_bytes()[:-9])
    from jax.experimental import multihost_utils
    multihost_utils.sync_global_devices("damaged")
    got = store.restore(shapes)
    assert got.step == 2 and got.data_state == {"rank": "x" * (rank + 1), "s": 2}, got
    for shard in got.state["w"].addressable_shards:
        np.testing.assert_array_equal(shard.data, 2 * full[shard.index])
print("done", flush=True)
"""


def test_two_processes_share_a_store(tmp_path):
    import socket

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(rank), port, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [p.communicate(timeout=90)[0] for p in processes]
    finally:
        for process in processes:
            process.kill()
    assert [p.returncode for p in processes] == [0, 0], "\n".join(outputs)
    with CheckpointStore(tmp_path, read_only=True) as store:  # one process reads what two wrote
        shapes = {
            "w": jax.ShapeDtypeStruct((4, 2), jnp.float32),
            "n": jax.ShapeDtypeStruct((), jnp.int32),
        }
        got = store.restore(shapes)
    assert got.step == 2 and got.data_state is None
    np.testing.assert_array_equal(got.state["w"], 2 * np.arange(8).reshape(4, 2))
