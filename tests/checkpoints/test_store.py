"""Checkpoints of a run: exact, atomic, pruned, and refused with a reason."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from tcl_jax.checkpoints.store import CheckpointError, CheckpointStore, CheckpointWriteError
from tcl_jax.checkpoints.trained import read_trained
from tcl_jax.errors import RunError
from tests.devices import free_port

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


def abstract(state: Any, sharding: jax.sharding.Sharding | None = None) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), state
    )


def assert_same(got: State, want: State) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert isinstance(a, jax.Array) and a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def save(store: CheckpointStore, step: int, score: float | None = None) -> None:
    metrics = {} if score is None else {"miou": score, "other": -score}
    store.save(step, make_state(step), data_state={"next": step}, config=CONFIG, metrics=metrics)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A store of the steps 10 and 20."""
    with CheckpointStore(tmp_path / "run/checkpoints") as store:
        save(store, 10)
        save(store, 20)
    return tmp_path / "run/checkpoints"


def test_what_is_restored_is_exact_and_lies_as_asked_for(tmp_path: Path) -> None:
    mesh = jax.make_mesh((len(jax.devices()),), ("data",))
    spread, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["data"], []))
    state = make_state(1, size=8 * len(jax.devices()))
    shapes = abstract(state, everywhere)
    kernel = shapes.params["tower"]["kernel"]
    shapes.params["tower"]["kernel"] = kernel.update(sharding=spread)
    with CheckpointStore(tmp_path / "new") as store, jax.transfer_guard("disallow"):
        assert store.latest_step() is None
        store.save(1, state, data_state={"next": 1}, config=CONFIG)
        got = store.restore(shapes)
    assert (got.step, got.data_state, got.config) == (1, {"next": 1}, CONFIG)
    assert_same(got.state, state)
    assert got.state.params["tower"]["kernel"].sharding == spread
    assert got.state.step.sharding == everywhere


def test_arrays_may_be_donated_or_deleted_after_save(tmp_path: Path) -> None:
    want = {"w": np.arange(1 << 20, dtype=np.float32), "v": np.ones(1 << 20, np.float32)}
    state = jax.tree.map(lambda x: jnp.copy(jnp.asarray(x)), want)  # no host view is cached
    shapes = abstract(state)
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    with CheckpointStore(tmp_path) as store:
        store.save(1, state, data_state=None, config={})
        state["v"].delete()
        later = overwrite(state["w"])
        for _ in range(5):
            later = overwrite(later)
        jax.block_until_ready(later)
        got = store.restore(shapes).state
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_step_is_written_once(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as store:
        save(store, 1)
        store.save(1, make_state(99), data_state=None, config={}, wait=True)
        assert_same(store.restore(abstract(make_state(1))).state, make_state(1))


@pytest.mark.parametrize(
    ("metric", "scores", "kept"),
    [
        (None, [0.1, 0.9, 0.2, 0.5], [3, 4]),
        ("miou", [0.5, 0.5, float("nan"), None, None], [2, 4, 5]),  # of equals the newer
        ("unknown", [0.1, 0.9, 0.2, 0.5], [3, 4]),
    ],
)
def test_the_latest_and_the_best_are_kept(
    tmp_path: Path, metric: str | None, scores: list[float | None], kept: list[int]
) -> None:
    best = 3 if metric == "unknown" else 1
    how: Any = {"keep_latest": 2, "keep_best": best, "best_metric": metric}
    for steps in (range(1, 3), range(3, len(scores) + 1)):  # as two runs of the program
        with CheckpointStore(tmp_path, **how) as store:
            for step in steps:
                save(store, step, scores[step - 1])
            assert store.latest_step() == steps[-1]
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == kept


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def largest(directory: Path) -> Path:
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.filterwarnings("ignore")  # of what Orbax had begun to read besides
@pytest.mark.parametrize(
    "damage",
    [
        lambda step: truncate(largest(step / "state/d")),
        lambda step: (step / "state/manifest.ocdbt").unlink(),
        lambda step: truncate(step / "state/_METADATA"),
        lambda step: truncate(step / "info/data.json"),
        lambda step: (shutil.rmtree(step), step.mkdir(), (step / "notes.txt").write_text("x")),
    ],
    ids=["array cut", "index gone", "shapes", "info", "foreign"],
)  # fmt: skip
def test_a_damaged_step_is_named_and_the_one_before_it_is_of_use(
    saved: Path, damage: Callable[[Path], Any]
) -> None:
    damage(saved / "20")
    told = pytest.raises(CheckpointError, match=f"{saved / '20'}: is damaged or no .*delete it")
    with CheckpointStore(saved) as store, told:
        store.restore(abstract(make_state(20)))
    shutil.rmtree(saved / "20")
    with CheckpointStore(saved) as store:
        assert_same(store.restore(abstract(make_state(10))).state, make_state(10))


def test_a_fault_of_the_machine_is_not_laid_on_the_files(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the library's own") from OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(ocp, "load_checkpointables", fail)
    with CheckpointStore(saved) as store, pytest.raises(RunError, match="20 cannot be read: Too"):
        store.restore(abstract(make_state(20)))


def test_steps_that_are_not_there_and_states_that_do_not_fit(saved: Path) -> None:
    empty = CheckpointStore(saved.parent / "empty")
    with empty, pytest.raises(CheckpointError, match="no complete checkpoint"):
        empty.restore(abstract(make_state(1)))
    with CheckpointStore(saved) as store:
        other = abstract(make_state(1, size=16)).replace(step=jax.ShapeDtypeStruct((), jnp.float32))
        other.params["extra"] = {"w": other.step}
        del other.params["scale"]["b"]
        with pytest.raises(CheckpointError) as error:
            store.restore(other)
    for part in (str(saved / "20"), "params/tower/kernel is (8, 4) float32", "(16, 4)", "int32",
                 "params/extra/w is absent", "params/scale/b is () float32"):  # fmt: skip
        assert part in str(error.value)


def test_bad_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for name in ("file", "file/below"):
        with pytest.raises(CheckpointError, match="file is a file; choose another"):
            CheckpointStore(tmp_path / name)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(CheckpointError, match=f"{tmp_path}: .* cannot be read and written"):
        CheckpointStore(tmp_path)


def test_a_failed_write_is_told_and_the_steps_before_it_stay(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        pytest.raises(CheckpointWriteError, match="step 30 .* No space .*disk full.*are as they"),
        CheckpointStore(saved) as store,
        monkeypatch.context() as patch,
    ):
        patch.setattr("orbax.checkpoint._src.path.async_path.write_text", fail)
        save(store, 30)
        store.wait()
    assert "Traceback" not in capfd.readouterr().err
    with CheckpointStore(saved) as store:
        assert store.steps() == [10, 20]
        assert_same(store.restore(abstract(make_state(20))).state, make_state(20))


def test_what_a_killed_write_left_is_no_step_and_goes(saved: Path) -> None:
    (saved / "30.orbax-checkpoint-tmp/state").mkdir(parents=True)
    for name in ("metrics.json", "20/checksums.json"):  # which earlier versions wrote
        (saved / name).write_text('{"20": {"miou": 1}}')
    with CheckpointStore(saved) as store:
        assert store.steps() == [10, 20]
        assert_same(store.restore(abstract(make_state(20))).state, make_state(20))
        save(store, 30)
    assert sorted(path.name for path in saved.iterdir()) == ["20", "30", "metrics.json"]


def test_an_error_of_the_body_is_not_hidden(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError), CheckpointStore(saved) as store:
        monkeypatch.setattr(store._checkpointer, "close", lambda: 1 / 0)
        raise KeyError


WRITER = """
import sys, jax.numpy as jnp
from tcl_jax.checkpoints.store import CheckpointStore
store = CheckpointStore(sys.argv[1], keep_latest=2, keep_best=1, best_metric="score")
start = store.latest_step() or 0
for step in range(start + 1, start + 10_000):
    state = {"w": jnp.arange(600_000, dtype=jnp.float32) * step, "step": jnp.int32(step)}
    store.save(step, {"params": state}, data_state={"next": step}, config={"a": step},
               metrics={"score": float(step % 5)})
    print(step, flush=True)
"""


def test_kill_9_leaves_only_readable_steps(tmp_path: Path) -> None:
    pause, seen, folder = random.Random(0), 0, tmp_path / "run/checkpoints"
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)],
            stdout=subprocess.PIPE,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            text=True,
        ) as writer:
            assert writer.stdout is not None
            steps = [int(writer.stdout.readline()) for _ in range(4)]
            time.sleep(pause.uniform(0.0, 0.2))
            writer.send_signal(signal.SIGKILL)
            steps += [int(line) for line in writer.stdout.read().split()]
        newest = read_trained(tmp_path / "run")
        assert newest.step >= steps[-1] - 1 > seen
        assert newest.step == newest.config["a"] == int(newest.params["step"])
        want = np.arange(600_000, dtype=np.float32) * newest.step
        np.testing.assert_array_equal(newest.params["w"], want)
        seen = newest.step


TWO_PROCESSES = """
import sys, jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tcl_jax.checkpoints.store import CheckpointStore, ocp
from tcl_jax.errors import InputError, RunError
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
    got = store.restore(shapes)
    assert got.step == 3 and got.data_state == {"rank": "x" * (rank + 1), "s": 3}, got
    for shard in got.state["w"].addressable_shards:
        np.testing.assert_array_equal(shard.data, 3 * full[shard.index])
    if rank == 1:  # which cannot read, and so the other process goes no further
        ocp.load_checkpointables = None
    try:
        store.restore(shapes)
    except (InputError, RunError) as error:
        assert ("process 1 reports" in str(error)) == (rank == 0), error
        print("refused", flush=True)
"""


def test_two_processes_share_a_store(tmp_path: Path) -> None:
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(rank), port, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=90)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert all("refused" in output for output in outputs)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {"w": jnp.zeros((4, 2), device=one), "n": jnp.zeros((), jnp.int32, device=one)}
    with CheckpointStore(tmp_path) as store:  # one process reads what two wrote
        got = store.restore(abstract(wanted))
    assert got.step == 3 and got.data_state is None
    np.testing.assert_array_equal(got.state["w"], 3 * np.arange(8).reshape(4, 2))
