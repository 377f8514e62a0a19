"""The loop end to end on the smallest run: steps, resume, refusals, failures."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.tcl import get_config as paper_config
from tcl_jax import segment
from tcl_jax.checkpoints.store import CheckpointStore
from tcl_jax.commands import load_model_from
from tcl_jax.errors import InputError
from tcl_jax.files import sha256_of
from tcl_jax.inference.model import load_model
from tcl_jax.training import loop
from tcl_jax.training.build import Experiment, build_adamw, build_experiment
from tcl_jax.training.loop import Evaluation, NonFiniteError, Outcome, train
from tcl_jax.training.state import create_state
from tcl_jax.training.workdir import build_experiment_in
from tcl_jax.weights.identity import identify_clip
from tcl_jax.weights.load import load_clip
from tcl_jax.weights.readers import write_safetensors
from tests.data.shards import picture, write_shard
from tests.reference import read_state_dict
from tests.tiny import tiny_clip_config, tiny_config


@pytest.fixture
def config(tmp_path: Path) -> ConfigDict:
    return tiny_config(tmp_path)


@pytest.fixture
def one_phase(config: ConfigDict) -> ConfigDict:
    """Of which one step is compiled."""
    config.train.backbone_from_step = 0
    return config


def run(config: ConfigDict, workdir: Path, evaluators: Any = None) -> Outcome:
    return train(config, str(workdir), build_experiment(config), evaluators or {})


def records(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def double(file: Path) -> None:
    """Makes other weights of a CLIP's."""
    tensors = read_state_dict(file)
    write_safetensors(file, {**tensors, "visual.proj": tensors["visual.proj"] * 2}, {})


def interrupt_after(calls: int) -> Callable[[Any, Any], Evaluation]:
    """An evaluator that presses Ctrl-C on its nth call."""
    count = 0

    def evaluate(params: Any, frozen: Any) -> Evaluation:
        nonlocal count
        count += 1
        if count == calls:
            os.kill(os.getpid(), signal.SIGINT)
        return Evaluation({"miou": float(count)})

    return evaluate


@pytest.mark.slow
def test_whole_run(config: ConfigDict, tmp_path: Path) -> None:
    scores = iter((1.0, 2.0))

    def evaluate(params: Any, frozen: Any) -> Evaluation:
        with pytest.raises(InputError, match="workdir .* another run is writing to it"):
            run(config, tmp_path / "run")
        return Evaluation({"miou": next(scores)})

    outcome = run(config, tmp_path / "run", {"task": evaluate})
    assert outcome.finished and outcome.step == 9
    rows = records(tmp_path / "run")
    train_rows = [row for row in rows if "train/total" in row]
    assert [row["step"] for row in train_rows] == [2, 4, 6, 8, 9]
    names = {"tclf", "tcli", "area", "neg_area", "tv_img", "tv_mask", "total", "grad_norm", "lr"}
    names |= {"mask_area", "sim2mask_w", "sim2mask_b"}
    assert {f"train/{name}" for name in names} <= set(train_rows[0])
    assert all(np.isfinite(row["train/total"]) for row in train_rows)
    assert any("train/images_per_second" in row for row in train_rows)
    assert [row["task/miou"] for row in rows if "task/miou" in row] == [1.0, 2.0]
    assert json.loads((tmp_path / "run/config.json").read_text())["seed"] == config.seed
    with CheckpointStore(tmp_path / "run/checkpoints") as store:
        assert store.latest_step() == 9
    assert list((tmp_path / "run/tensorboard").glob("events*"))

    before = (tmp_path / "run/metrics.jsonl").read_text()
    again = run(config, tmp_path / "run")
    assert again.finished and again.step == 9
    assert_same(again.params, outcome.params)
    assert (tmp_path / "run/metrics.jsonl").read_text() == before

    base_lr, config.optim.base_lr, config.seed = config.optim.base_lr, 0.5, 3
    with pytest.raises(InputError) as error:
        run(config, tmp_path / "run")
    assert f"optim.base_lr: {base_lr} there, 0.5 now" in str(error.value)
    assert "seed: 0 there, 3 now" in str(error.value)
    (tmp_path / "run/config.json").unlink()  # the checkpoints know it, too
    with pytest.raises(InputError, match="seed: 0 there, 3 now"):
        run(config, tmp_path / "run")


@pytest.mark.slow
def test_interrupted_equals_uninterrupted(
    config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first and the last step of both phases, and during an evaluation."""
    experiment = build_experiment(config)
    whole = run(config, tmp_path / "whole", {"task": interrupt_after(-1)})
    real, begun = loop.put_batch, itertools.count(1)
    stops = (1, 4, 8)

    def interrupting(*args: Any) -> Any:
        if next(begun) in stops:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    def backbone(params: Any) -> Any:
        return params["grounder"]["blocks_0"]

    monkeypatch.setattr(loop, "put_batch", interrupting)
    for step, calls in ((1, -1), (4, -1), (5, 1), (8, -1)):
        part = run(config, tmp_path / "parts", {"task": interrupt_after(calls)})
        assert not part.finished and part.step == step
        if step == 4:  # phase 2 alone moves the backbone
            assert_same(backbone(part.params), backbone(experiment.params))
    last = run(config, tmp_path / "parts", {"task": interrupt_after(-1)})
    assert last.finished
    assert_same(last.params, whole.params)
    start, moved = (
        x["mlp"]["c_fc"]["kernel"] for x in map(backbone, (experiment.params, last.params))
    )
    assert np.abs(np.asarray(moved) - start).max() > 0
    ours, theirs = (
        {r["step"]: r["train/total"] for r in records(tmp_path / d) if "train/total" in r}
        for d in ("parts", "whole")
    )
    assert ours[9] == theirs[9]


@pytest.mark.slow
def test_a_run_knows_its_clip(
    one_phase: ConfigDict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """When it goes on and when it is used: the same arrays in whatever file, and no others."""
    config = one_phase
    workdir, file = tmp_path / "run", Path(config.model.weights)
    part = run(config, workdir, {"task": interrupt_after(1)})
    recorded = json.loads((workdir / "config.json").read_text())["frozen"]["clip"]
    tensors, trained_on = read_state_dict(file), sha256_of(file)
    assert recorded["weights"] == str(file) and recorded["file_sha256"] == trained_on
    double(file)
    other = identify_clip(file, load_clip(file))["arrays_sha256"]
    for use in (lambda: run(config, workdir), lambda: load_model(workdir)):
        with pytest.raises(InputError) as error:
            use()
        for part_of_it in (str(file), trained_on, recorded["arrays_sha256"], other):
            assert part_of_it in str(error.value)
    file.unlink()
    with pytest.raises(InputError, match=f"do not exist.*trained on {file}.*{trained_on}"):
        load_model(workdir)
    write_safetensors(file, tensors, {"saved": "again"})
    assert sha256_of(file) != trained_on
    told = f"unfinished, at step 5 of 9; .* --workdir={workdir}"
    for path, says in ((workdir / "checkpoints/5", False), (workdir, True)):
        flags = segment.parser().parse_args([f"--checkpoint={path}"])
        assert load_model_from(flags).origin["run"]["step"] == part.step == 5
        assert bool(re.search(told, caplog.text)) is says
    assert run(config, workdir).finished
    caplog.clear()
    load_model_from(flags)
    assert "unfinished" not in caplog.text

    monkeypatch.setattr(Experiment, "record", {})  # as an earlier version had it
    run(config, tmp_path / "old")
    for use, lacking in (
        (lambda: load_model(tmp_path / "old"), "trained"),
        (lambda: run(config, tmp_path / "old"), "frozen"),
    ):
        with pytest.raises(InputError, match=f"'{lacking}'.*another version"):
            use()


def test_a_run_goes_on_after_its_clip_was_trained_longer(
    one_phase: ConfigDict, tmp_path: Path
) -> None:
    config, clip, workdir = one_phase, tmp_path / "clip", tmp_path / "run"
    (clip / "checkpoints").mkdir(parents=True)
    (clip / "config.json").write_text('{"objective": "clip"}')
    shutil.copy(config.model.weights, clip / "clip_5.safetensors")
    config.model.weights = str(clip)

    def go(evaluators: Any = None) -> Outcome:
        return train(
            config, str(workdir), build_experiment_in(str(workdir), config), evaluators or {}
        )

    assert not go({"task": interrupt_after(1)}).finished
    recorded = json.loads((workdir / "config.json").read_text())["frozen"]
    shutil.copy(clip / "clip_5.safetensors", clip / "clip_9.safetensors")
    double(clip / "clip_9.safetensors")
    assert go().finished
    assert json.loads((workdir / "config.json").read_text())["frozen"] == recorded
    assert recorded["clip"]["given"] == str(clip)
    (clip / "clip_5.safetensors").unlink()
    with pytest.raises(InputError, match=r"Then: .*clip_5.*Now: .*clip_9.*Put the former back"):
        go()


def test_several_processes_stop_at_a_log_that_is_to_come() -> None:
    stops = {(0, 0): 10, (9, 0): 10, (10, 0): 10, (10, 10): 20, (11, 10): 20, (5, 5): 10}
    assert {key: loop.common_stop(*key, 10) for key in stops} == stops


def test_non_finite_loss_stops_and_keeps_the_last_good(
    one_phase: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, real, count = one_phase, loop.put_batch, 0

    def poisoned(batch: Any, mesh: Any) -> Any:
        nonlocal count
        count += 1
        image = batch["image"].astype(np.float32) / 255
        return real({**batch, "image": image * np.float32(np.nan if count == 6 else 1)}, mesh)

    monkeypatch.setattr(loop, "put_batch", poisoned)
    monkeypatch.setattr(loop.ExampleMasks, "pictures", lambda *_: {})  # takes bytes only
    with pytest.raises(NonFiniteError, match=r"at step 5: .*tclf=nan.*total=nan"):
        run(config, tmp_path / "run")
    experiment = build_experiment(config)
    empty = jax.eval_shape(
        lambda: create_state(experiment.params, experiment.objective, build_adamw(config))
    )
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    empty = jax.tree.map(lambda x: x.update(sharding=one), empty)
    with CheckpointStore(tmp_path / "run/checkpoints") as store:
        assert store.latest_step() == 5  # saved after the evaluation of step 4
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(store.restore(empty).state.params))


def test_clip_trains_with_the_same_loop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config, workdir = tiny_clip_config(), tmp_path / "run"
    config.model.weights = tiny_config(tmp_path).model.weights
    outcome = run(config, workdir)
    assert outcome.finished
    assert "train/contrastive" in records(workdir)[0]

    def begun_from() -> Any:
        return json.loads((workdir / "config.json").read_text())["begun_from"]["clip"]

    before = begun_from()
    double(Path(config.model.weights))
    config.eval.background = 0.9
    with caplog.at_level("INFO", logger="absl"):
        run(config, workdir)
    assert begun_from() == before
    assert "eval.background: given otherwise until now" in caplog.text


def test_the_papers_config_on_tar_shards(tmp_path: Path) -> None:
    """configs/tcl.py shrunk: tar shards, crops, bfloat16, learning rate scaled with the batch."""
    tiny, config = tiny_config(tmp_path), paper_config()
    members = {}
    for i in range(12):
        members |= {f"{i:04d}.jpg": picture(i, side=40), f"{i:04d}.txt": f"thing {i}".encode()}
    write_shard(tmp_path / "pairs-000.tar", members)
    config.model.update(variant="custom", weights=tiny.model.weights, feature_layer=1)
    config.model.sizes.update(tiny.model.sizes)
    config.data.update(shards=(str(tmp_path / "pairs-{000..000}.tar"),), num_workers=0)
    config.train.update(
        global_batch_size=8, total_steps=4, backbone_from_step=9, log_every=1, accumulation_steps=2
    )
    config.loss.area_group = 4
    config.optim.warmup_steps = 2
    config.eval.every = 4
    outcome = run(config, tmp_path / "run")
    assert outcome.finished and outcome.step == 5
    rows = records(tmp_path / "run")
    assert rows[2]["train/lr"] == pytest.approx(3e-4 * 8 / 4096)
    assert all(np.isfinite(row["train/total"]) for row in rows)
    with config.unlocked():
        config.data.shards = (str(tmp_path / "missing-{000..002}.tar"),)
    with pytest.raises(InputError, match="missing-000.tar"):
        run(config, tmp_path / "other")
    assert not (tmp_path / "other").exists()
