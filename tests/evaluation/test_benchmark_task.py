"""Benchmarks while a run trains: the scores of `evaluate` on the same parameters."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from tcl_jax.errors import InputError
from tcl_jax.evaluation.benchmark import load_benchmark
from tcl_jax.evaluation.examples import list_examples
from tcl_jax.evaluation.run import evaluate
from tcl_jax.evaluation.tasks import find_tasks, make_evaluators
from tcl_jax.inference.model import Model
from tcl_jax.inference.settings import default_settings
from tcl_jax.parallel.mesh import data_mesh, put_replicated
from tcl_jax.training.build import build_experiment
from tests.reference import GOLDEN
from tests.tiny import tiny_clip_config, tiny_config


def with_benchmarks(config: ConfigDict) -> ConfigDict:
    with config.unlocked():
        config.eval.update(
            tasks=("voc20", "cityscapes"), data=str(GOLDEN / "eval/data"), split="val",
            templates="simple", pamr=False, kp_weight=0.3, background=0.5, best_metric="",
        )  # fmt: skip
    return config


def test_scores_are_those_of_the_command(tmp_path: Path) -> None:
    config = with_benchmarks(tiny_config(tmp_path))
    experiment = build_experiment(config)
    evaluators = make_evaluators(config, experiment, find_tasks(config))
    assert list(evaluators) == ["voc20", "cityscapes"]
    mesh = data_mesh()
    params, frozen = (
        put_replicated(experiment.params, mesh),
        put_replicated(experiment.frozen, mesh),
    )
    found = {name: evaluator(params, frozen) for name, evaluator in evaluators.items()}
    model = Model(
        experiment.method,
        experiment.join(experiment.params, experiment.frozen),
        default_settings(experiment.method),
    )
    indices = [list_examples(load_benchmark(name), GOLDEN / "eval/data") for name in evaluators]
    expected = evaluate(
        model, indices, tmp_path / "out", progress=False, pamr=False, templates="simple"
    )["TCL"]
    for name, evaluation in found.items():
        scores = expected.results[name].scores
        assert evaluation.scores == pytest.approx(
            {"miou": 100 * scores.miou, "macc": 100 * scores.macc, "aacc": 100 * scores.aacc}
        )
        assert set(evaluation.images) == {"best", "worst"}
        assert all(image.dtype == np.uint8 for image in evaluation.images.values())

    evaluator = evaluators["voc20"]._evaluator
    doubled = jax.tree.map(lambda x: 2 * x, params)
    again = evaluators["voc20"](doubled, frozen)
    assert again.scores != found["voc20"].scores
    assert evaluator._engine._compiled._cache_size() == 1
    evaluators["voc20"].report(params, frozen, tmp_path, 3)
    assert f"{again.scores['miou']:.2f}"[:4] in (tmp_path / "voc20.json").read_text()


def test_training_a_clip_evaluates_the_baseline(tmp_path: Path) -> None:
    config = with_benchmarks(tiny_clip_config())
    config.eval.tasks = ("voc20",)
    experiment = build_experiment(config)
    (evaluator,) = make_evaluators(config, experiment, find_tasks(config)).values()
    before = evaluator(experiment.params, {}).scores
    after = evaluator(jax.tree.map(lambda x: 1.5 * x, experiment.params), {}).scores
    assert before != after


def test_missing_data_is_named_before_training(tmp_path: Path) -> None:
    config = with_benchmarks(tiny_config(tmp_path))
    config.eval.split = "train"
    with pytest.raises(InputError, match=r"(?s)SegmentationContext/train\.txt|Segmentation/train"):
        make_evaluators(config, build_experiment(config), find_tasks(config))
    config.eval.tasks = ("voc21",)
    with pytest.raises(InputError, match="'voc21'; known are shapes, pairs, voc, "):
        find_tasks(config)
