"""Talk2DINO's training between a DINO and a text tower that is no CLIP's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from tcl_jax import Backbone, Segmenter, Talk2DINO, convert, export
from tcl_jax.data import features
from tcl_jax.data.sources import make_source
from tcl_jax.errors import InputError
from tcl_jax.inference.model import load_model
from tcl_jax.plan.plan import make_plan
from tcl_jax.training.build import build_experiment
from tcl_jax.training.embed_images import embed
from tcl_jax.training.loop import train
from tcl_jax.weights.text_towers import load_text_tower
from tests.released_files import WRITERS
from tests.talk2dino_files import tiny_talk2dino

WIDTHS = {"tips": 96, "dinotxt": 96}


def config_of(name: str, folder: Path) -> ConfigDict:
    """A short run with the text tower of a model's files, which `folder` gets."""
    (folder / "texts").mkdir()
    config = tiny_talk2dino(folder)
    config.model.weights = str(WRITERS[name](folder / "texts")["text"])
    config.data.num_examples = 8
    config.train.total_steps = 2
    return config


@pytest.mark.parametrize("name", WIDTHS)
def test_a_run_on_another_text_tower(name: str, tmp_path: Path) -> None:
    config = config_of(name, tmp_path)
    embed(config, batch_size=4)
    (file,) = Path(config.data.features).glob("*/*")
    caption = make_source(config.data, 70)[3]["text"]
    texts = Path(config.model.weights)
    backbone = Backbone.from_file(
        texts.with_name("vision.npz"), text=[texts, *texts.parent.glob("head.npz")], text_heads=1
    )
    tokenizer: Any = load_text_tower(texts).encoder.tokenizer()  # type: ignore[union-attr]
    wanted = np.asarray(backbone.encode_text(tokenizer([caption])))[0, -WIDTHS[name] :]
    np.testing.assert_allclose(features._mapped(str(file))[2]["values"][3], wanted, atol=2e-6)

    outcome = train(config, str(tmp_path / "run"), build_experiment(config), {})
    recorded = json.loads((tmp_path / "run/config.json").read_text())
    assert recorded["frozen"]["text"]["tower"] == recorded["trained"]["text"] == name
    model = load_model(tmp_path / "run")
    learned = jax.device_get(outcome.params)["projection"]
    jax.tree.map(np.testing.assert_array_equal, model.params["projection"], learned)

    photo = np.random.default_rng(0).integers(0, 256, (70, 80, 3), np.uint8)
    found = Segmenter(model).segment(photo, ["cat", "dog"]).masks
    export.run([f"--checkpoint={tmp_path}/run", f"--output={tmp_path}/model"])
    convert.run(["export-torch", f"{tmp_path}/run", f"{tmp_path}/projection.safetensors"])
    own = Talk2DINO.from_file(tmp_path / "projection.safetensors", config.model.backbone, texts)
    embedded = own.embed_texts(["cat", "dog"], "simple")
    shutil.rmtree(texts.parent)  # the directory has all that it needs
    again = Segmenter.from_checkpoint(tmp_path / "model")
    np.testing.assert_array_equal(again.segment(photo, ["cat", "dog"]).masks, found)
    np.testing.assert_allclose(again.embed_texts(["cat", "dog"], "simple"), embedded, atol=1e-6)
    with pytest.raises(InputError, match=r"text.npz.*The run was trained on"):
        load_model(tmp_path / "run")


def test_other_weights_and_sizes_are_told(tmp_path: Path) -> None:
    config = config_of("tips", tmp_path)
    (step,) = make_plan(config, "local").steps
    assert step.parts["projection"] == 4 * 96 * 128 + 6 * 128**2
    config.model.sizes.text_width = 96
    with pytest.raises(InputError, match=r"model.sizes are of a CLIP.*text tower of TIPS"):
        build_experiment(config)
    config.model.sizes.text_width = 0
    for name in ("dinov2-reg:B/14", "tips:B14"):
        config.model.weights = name
        with pytest.raises(InputError, match=r"no text tower; choose a CLIP.*tips:B/14.*dinotxt:"):
            build_experiment(config)


def test_a_name_is_of_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = WRITERS["tips"](tmp_path)["text"]
    (tmp_path / "weights").mkdir()
    file.rename("weights/tips_v2_b14_text.npz")
    with pytest.raises(InputError, match=r"width 96, and those of tips:B/14 have 768"):
        load_text_tower("tips:B/14")
