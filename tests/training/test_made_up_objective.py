"""An objective that knows no CLIP is one row of the table: trained, evaluated, loaded, planned."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.shapes import get_config
from tcl_jax.errors import InputError
from tcl_jax.evaluation.tasks import find_tasks, make_evaluators
from tcl_jax.inference.model import load_model
from tcl_jax.inference.segmenter import Segmenter
from tcl_jax.models.flops import Parts
from tcl_jax.models.methods import METHODS
from tcl_jax.parallel.mesh import data_mesh
from tcl_jax.plan.training_program import trace_step
from tcl_jax.training.batches import caption_tower
from tcl_jax.training.build import (
    OBJECTIVES,
    Experiment,
    Run,
    abstract_experiment,
    build_experiment,
)
from tcl_jax.training.loop import train
from tcl_jax.training.objectives import LossOutput, Objective
from tests.inference.test_made_up_method import Colors, LetterColors


@dataclasses.dataclass(frozen=True)
class LongTexts(LetterColors):
    """Of up to 40 letters."""

    def tokenizer(self, file: str | None = None) -> Any:
        def tokenize(texts: Sequence[str]) -> np.ndarray:
            rows = np.zeros((len(texts), 40), np.int32)
            for row, text in zip(rows, texts, strict=True):
                ids = [ord(letter) - 96 for letter in text.lower() if "a" <= letter <= "z"][:40]
                row[: len(ids)] = ids
            return rows

        return tokenize


class TrainedColors(Colors):
    name = "trained colors"
    resolution = 32
    text_encoder = LongTexts()


@dataclasses.dataclass(frozen=True)
class ColorObjective(Objective):
    """The letters of a caption sum up to the mean colour of its image."""

    model: TrainedColors
    text_encoder = LongTexts()

    def frozen_text_params(self, frozen: Any) -> None:
        return None

    def training_flops(self, batch: int, train_backbone: bool) -> Parts:
        return {"all": 1.0}

    def prepare(self, frozen: Any, rows: Any) -> Any:
        return rows

    def embed(self, params: Any, frozen: Any, rows: Any, batch: Any) -> Any:
        color = rows["image"].astype(jnp.float32).mean(axis=(1, 2)) / 255
        return color - self.model.embed_texts(params, rows["tokens"])

    def combine(self, params: Any, embedded: Any) -> LossOutput:
        loss = jnp.mean(embedded**2)
        return LossOutput(loss, {"color": loss}, {})


def color_experiment(config: ConfigDict, run: Run, pretrained: bool) -> Experiment:
    method = TrainedColors(config.loss.temperature)
    params = run(method.init, jax.random.key(config.seed))
    return Experiment(ColorObjective(method), method, params, {})


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> ConfigDict:
    monkeypatch.setitem(METHODS, "trained colors", TrainedColors)
    monkeypatch.setitem(OBJECTIVES, "colors", color_experiment)
    config = get_config()
    config.objective = "colors"
    config.data.update(num_examples=40, num_workers=0)
    config.train.update(
        global_batch_size=8, total_steps=4, backbone_from_step=0, log_every=2, checkpoint_every=2
    )
    config.eval.update(every=4, num_scenes=128, batch_size=16)
    return config


def test_it_is_trained_evaluated_and_loaded(config: ConfigDict, tmp_path: Path) -> None:
    experiment = build_experiment(config)
    assert experiment.learns_texts
    evaluators = make_evaluators(config, experiment, find_tasks(config))
    outcome = train(config, str(tmp_path / "run"), experiment, evaluators)
    moved = np.asarray(outcome.params["letters"]) - experiment.params["letters"]
    assert outcome.finished and np.abs(moved).max() > 0
    evaluators["shapes"].report(outcome.params, outcome.frozen, tmp_path, 3)
    assert '"trained colors": {' in (tmp_path / "results.json").read_text()
    assert (tmp_path / "shapes.png").exists()

    model = load_model(tmp_path / "run")
    assert model.method == TrainedColors(config.loss.temperature)
    np.testing.assert_array_equal(model.params["letters"], outcome.params["letters"])
    assert Segmenter(model).embed_texts(["red", "blue"]).shape == (2, 3)


def test_it_is_planned_and_its_captions_are_not_cached(config: ConfigDict) -> None:
    experiment = abstract_experiment(config)
    traced = trace_step(config, experiment, data_mesh(), phase=1)
    assert traced.lower().as_text()
    with pytest.raises(InputError, match="objective='colors' trains the text tower"):
        caption_tower(config, experiment)
