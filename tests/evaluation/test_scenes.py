"""Drawn scenes while a run trains: compiled once, and settings that cannot work refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tcl_jax.errors import InputError
from tcl_jax.evaluation import scenes
from tcl_jax.evaluation.results import best_thresholds
from tcl_jax.evaluation.scenes_report import MISSED_BY, ShapesEvaluator
from tcl_jax.evaluation.scores import Counts, count_pixels
from tcl_jax.evaluation.tasks import find_tasks, make_evaluators
from tcl_jax.inference.engine import MaskEngine
from tcl_jax.inference.masks import MaskOptions
from tcl_jax.inference.merging import SoftMasks
from tcl_jax.inference.windows import SlidingWindow
from tcl_jax.shapes.source import UNSEEN, ShapesSource, class_names
from tcl_jax.training.build import Experiment, build_experiment
from tests.tiny import tiny_clip_config, tiny_config

FEW = 16


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "RETRIEVAL_SIZE", FEW)


def evaluator_of(config: ConfigDict) -> tuple[ShapesEvaluator, Experiment]:
    with config.unlocked():
        config.eval.num_scenes = FEW
    experiment = build_experiment(config)
    (evaluator,) = make_evaluators(config, experiment, find_tasks(config)).values()
    assert isinstance(evaluator, ShapesEvaluator)
    return evaluator, experiment


def sizes(evaluator: ShapesEvaluator) -> dict[str, int]:
    """Programs compiled for each method, one without PAMR and one with it."""
    return {name: row.engine._compiled._cache_size() for name, row in evaluator._rows.items()}


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("methods", [("clip", "tcl"), ("clip",)])
def test_a_run_compiles_each_method_once(
    methods: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(tmp_path) if "tcl" in methods else tiny_clip_config()
    evaluator, experiment = evaluator_of(config)
    first = evaluator(experiment.params, experiment.frozen)
    again = evaluator(experiment.params, experiment.frozen)
    assert again.scores == first.scores and again.images.keys() == first.images.keys()
    for name, image in again.images.items():
        np.testing.assert_array_equal(image, first.images[name])
    evaluator.report(experiment.params, experiment.frozen, tmp_path, 3)
    said, results = capsys.readouterr().out, json.loads((tmp_path / "results.json").read_text())
    rows = [f"{name}{refined}" for name in methods for refined in ("", "+pamr")]
    assert list(results) == rows
    with pytest.raises(InputError, match=r"they are of drawn scenes; .*clip\+pamr, [\d.]+"):
        best_thresholds(tmp_path, "tcl")
    assert all(np.isfinite(list(scores.values())).all() for scores in results.values())
    assert set(results["clip"]) - set(results["clip+pamr"]) == {"retrieval_at_1"}
    everything = evaluator._join(experiment.params, experiment.frozen)
    search = evaluator._search(evaluator._shown[-1], everything, evaluator.validation)
    assert results[evaluator._shown[-1]]["threshold"] == search.best == first.scores["threshold"]
    assert ("at eval.background=" in said) == (search.loss(search.own) > MISSED_BY)
    programs = scenes._similarity._cache_size()
    rng = np.random.default_rng(0)
    shifted = jax.tree.map(
        lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), experiment.params
    )
    assert evaluator(shifted, experiment.frozen).scores != first.scores
    assert scenes._similarity._cache_size() == programs
    assert sizes(evaluator) == dict.fromkeys(rows, 2)
    assert (tmp_path / "scene.png").exists() == ("tcl" in methods)


@pytest.mark.parametrize(("count", "processes"), [(12, 1), (13, 2), (1, 3)])
def test_each_scene_is_evaluated_once(
    count: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    sliding, rng = SlidingWindow.over((32, 32), 32, 32, 8), np.random.default_rng(0)
    grids = rng.random((count, 1, 8, 8, 24), np.float32)

    def record(engine: Any, params: Any, texts: Any, options: Any, mine: Any) -> Iterator[Any]:
        for scene in mine:
            seen.append(scene["key"])
            yield scene, SoftMasks(sliding, grids[int(scene["key"][-6:])])

    source = ShapesSource("test", num_examples=count, image_size=32)
    engine, texts = MaskEngine.__new__(MaskEngine), np.zeros((24, 16), np.float32)
    monkeypatch.setattr(scenes, "scene_masks", record)
    monkeypatch.setattr(scenes, "sum_over_processes", lambda counts: counts)
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    searches = []
    for index in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        searches.append(scenes.count_scenes(engine, {}, texts, MaskOptions(), source, 0.95))
    expected = [source[i] for i in range(count)]
    assert sorted(seen) == [scene["key"] for scene in expected]
    counts = sum((one.counts for one in searches[1:]), searches[0].counts)
    whole = dataclasses.replace(searches[0], counts=counts)
    # As one by one, at the config's own threshold.
    alone = Counts.zeros(25)
    for scene, grid in zip(expected, grids, strict=True):
        masks = SoftMasks(sliding, grid)
        alone += count_pixels(masks.labels((32, 32), 0.95), scene["label"], 25)
    scores = alone.scores()
    assert scenes.scores_at(whole, 0.95) == {
        "miou": 100 * scores.miou,
        "miou_unseen": 100 * alone.mean_iou([1 + class_names().index(name) for name in UNSEEN]),
        "boundary": 100 * scores.boundary,
        "threshold": 0.95,
    }


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("eval.num_scenes", 127, "num_scenes=127"),
        ("eval.batch_size", 0, "batch_size=0"),
        ("model.sizes.resolution", 24, "eval.tasks: image_size is 24"),
    ],
)
def test_what_cannot_be_finished_is_refused_before_training(
    field: str, value: int, message: str
) -> None:
    config = tiny_clip_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=message):
        make_evaluators(config, build_experiment(config), find_tasks(config))


def test_a_batch_must_divide_over_the_devices() -> None:
    mesh = Mesh(np.array(jax.devices()[:1] * 3), "data")
    scenes.check_scenes(128, 6, mesh)
    with pytest.raises(InputError, match="batch_size=8 .* 3 devices"):
        scenes.check_scenes(128, 8, mesh)
