"""Held-out pairs while a run trains: scores against their formulas, thresholds, bad pairs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from tcl_jax.errors import InputError
from tcl_jax.evaluation.held_out import (
    HeldOut,
    named_in,
    naming,
    retrieval,
    threshold_for_share,
)
from tcl_jax.evaluation.pairs_task import PairsEvaluator
from tcl_jax.evaluation.protocol import make_protocol
from tcl_jax.evaluation.results import best_thresholds
from tcl_jax.evaluation.tasks import find_tasks, make_evaluators
from tcl_jax.inference.masks import MaskOptions, grid_masks
from tcl_jax.inference.model import Model
from tcl_jax.inference.settings import default_settings
from tcl_jax.models.clip import encode_image
from tcl_jax.ops.images import normalize
from tcl_jax.training.build import Experiment, build_experiment
from tests.data.shards import picture, write_shard
from tests.tiny import tiny_clip_config, tiny_config

COUNT = 11
CAPTIONS = ("a red thing", ["a green thing", "a red thing"], "a red thing")


def held_out(folder: Path) -> str:
    """Eleven pairs, of which one has no caption and one no image; the first three share one."""
    members = {f"{i}.jpg": picture(20 * i, side=40) for i in range(COUNT)}
    members["3.jpg"] = b"none"
    for i in range(COUNT):
        texts = CAPTIONS[i] if i < 3 else f"number {i}, a " + ("cat" if i > 5 else "thing")
        members[f"{i}.json"] = json.dumps({"caption": [] if i == 9 else texts}).encode()
    return write_shard(folder / "held_out.tar", members)


def labelled(folder: Path) -> str:
    for name in ("images", "labels"):
        (folder / name).mkdir()
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(folder / "images/a.png")
    Image.fromarray(np.eye(32, dtype=np.uint8)).save(folder / "labels/a.png")
    text = 'images = "images"\nlabels = "labels"\nclasses = ["red"]\nbackground = true\n'
    (folder / "mine.toml").write_text(text)
    return str(folder / "mine.toml")


def cosines(a: Any, b: Any) -> np.ndarray:
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    norms = np.linalg.norm(a, axis=-1)[..., None], np.linalg.norm(b, axis=-1)[..., None]
    return (a / norms[0]) @ (b / norms[1]).swapaxes(-1, -2)


def recall(similarity: np.ndarray, right: np.ndarray, k: int) -> float:
    """Share of the rows with a right column among the best k."""
    best = np.argsort(-similarity, axis=1)[:, :k]
    return 100 * float(np.mean([right[i, row].any() for i, row in enumerate(best)]))


def expected(similarity: np.ndarray, pairs: HeldOut) -> dict[str, float]:
    there, back = (similarity, pairs.right), (similarity.T, pairs.right.T)
    both = ("image_to_text", there), ("text_to_image", back)
    return {f"{name}_at_{k}": recall(*sides, k) for name, sides in both for k in (1, 5)}


def everything_of(evaluator: PairsEvaluator) -> tuple[Any, jax.Array, np.ndarray, np.ndarray]:
    """Parameters, normalised images, and texts of captions and of names."""
    experiment, pairs = evaluator._experiment, evaluator._pairs
    params = experiment.join(experiment.params, experiment.frozen)
    images = normalize(jnp.asarray(pairs.images), experiment.method.pixel_statistics)
    texts = evaluator._texts
    return params, images, texts[: len(pairs.texts)], texts[len(pairs.texts) :]


def embed_clip(experiment: Experiment, params: Any, images: jax.Array) -> jax.Array:
    embed = jax.jit(lambda *given: encode_image(experiment.method.clip_model, *given).embedding)
    return embed(params["clip"], images)


def test_benchmarks_and_pairs_of_ones_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(tmp_path)
    names = tmp_path / "names.txt"
    names.write_text("red\ngreen, lime\ncat\ndog\n")
    with config.unlocked():
        config.eval.update(
            tasks=(labelled(tmp_path),), shards=(held_out(tmp_path),), names=str(names),
            templates="a {} thing; {}", batch_size=4, best_metric="mine/miou", split="", pamr=False,
        )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        experiment = build_experiment(config)
        evaluators = make_evaluators(config, experiment, find_tasks(config))
    assert "2 of 11 pairs cannot be used" in caplog.text and "3 in " in caplog.text
    found = {}
    for name, evaluator in evaluators.items():
        scores = evaluator(experiment.params, experiment.frozen).scores
        found |= {f"{name}/{score}": value for score, value in scores.items()}
        evaluator.report(experiment.params, experiment.frozen, tmp_path, 3)
    said = capsys.readouterr().out
    assert "mine val: miou" in said and "threshold without labels" in said
    assert "mine/miou" in found

    evaluator = evaluators["pairs"]
    assert isinstance(evaluator, PairsEvaluator)
    written = json.loads((tmp_path / "pairs.json").read_text())
    assert (written["pairs"], written["left_out"], written["texts"]) == (9, 2, 8)

    # Regions and frozen CLIP, by their formulas.
    params, images, texts, of_names = everything_of(evaluator)
    pixels = np.asarray(jax.jit(experiment.method.dense_features)(params, images), np.float64)
    every = np.concatenate([texts, of_names]).astype(np.float64)
    w, b = (float(params["sim2mask"][x]) for x in "wb")
    masks = 1 / (1 + np.exp(-(w * cosines(pixels, every) + b)))  # [b, h, w, n]
    regions = np.einsum("bhwn,bhwd->bnd", masks, pixels) / masks.sum((1, 2))[..., None]
    similarity = np.stack([np.diag(cosines(region, every)) for region in regions])
    pairs, count = evaluator._pairs, len(texts)
    ours = expected(similarity[:, :count], pairs)
    owner = np.array([0, 1, 1, 2, 3])
    named = named_in(pairs.captions, (("red",), ("green", "lime"), ("cat",), ("dog",)))
    assert written["images_named"] == named.any(1).sum() == 7
    best = owner[similarity[:, count:].argmax(1)]
    ours["naming_at_1"] = 100 * named[np.arange(9), best].sum() / 7
    assert written["scores"]["tcl"] == pytest.approx(ours, abs=0.01)
    theirs = expected(cosines(embed_clip(experiment, params, images), texts), pairs)
    scores = {**ours, **{f"clip_{name}": value for name, value in theirs.items()}}
    assert {name: found[f"pairs/{name}"] for name in scores} == pytest.approx(scores)

    # The threshold is that of the sorted values, and `segment` and `evaluate` take it.
    own = [pairs.texts.index(text) for text in pairs.chosen]
    options = MaskOptions(kp_weight=0.0)
    masks_of = jax.jit(grid_masks, static_argnums=(0, 4))
    soft = masks_of(experiment.method, params, images, texts[own], options)
    values = np.sort(np.asarray(soft)[np.arange(9), :, :, np.arange(9)], axis=None)
    share = np.mean(values > written["threshold"])
    assert share == pytest.approx(config.loss.area_prior, abs=0.02)
    model = Model(experiment.method, {}, default_settings(experiment.method))
    how = {"threshold": f"best:{tmp_path}", "kp_weight": 0.0}
    assert make_protocol(model, pamr=False, **how).threshold == written["threshold"]
    with pytest.raises(InputError, match="refine='none', and this is refine='pamr'"):
        make_protocol(model, pamr=True, **how)
    caplog.clear()
    for step in (3, 4):
        assert "step 3" not in caplog.text
        make_protocol(dataclasses.replace(model, origin={"run": {"step": step}}), pamr=False, **how)
    assert "found after step 3, and this model is of step 4" in caplog.text
    # With labels it is better known.
    made = {**written["made_with"], "refine": "pamr"}
    results = {"format_version": 1, "benchmarks": {}, "fingerprint": made}
    for best, refine in ((0.25, "pamr"), (None, "none")):
        (tmp_path / "results.json").write_text(json.dumps(results | {"best_threshold": best}))
        taken = make_protocol(model, refine=refine, **how).threshold
        assert taken == (best or written["threshold"])


def test_a_clip_is_scored_by_its_own_cosines(tmp_path: Path) -> None:
    config = tiny_clip_config()
    config.eval.update(tasks=(), shards=(held_out(tmp_path),), batch_size=4, best_metric="")
    evaluator = make_evaluators(config, build_experiment(config), find_tasks(config))["pairs"]
    assert isinstance(evaluator, PairsEvaluator)
    experiment = evaluator._experiment
    scores = evaluator(experiment.params, {}).scores
    params, images, texts, _ = everything_of(evaluator)
    similarity = cosines(embed_clip(experiment, params, images), texts)
    assert scores == pytest.approx(expected(similarity, evaluator._pairs))
    moved = jax.tree.map(lambda x: x + 0.3 * np.cos(np.arange(x.size)).reshape(x.shape), params)
    assert evaluator(moved, {}).scores != scores  # texts and images anew
    evaluator.report(moved, {}, tmp_path, 3)
    with pytest.raises(InputError, match="of no masks"):
        best_thresholds(tmp_path, "maskclip")


def test_equal_similarities_gain_nothing_and_names_are_whole_words() -> None:
    captions = (("A tall Cat-tree.",), ("two cats", "a  hot\ndog"), ("nothing",))
    classes = (("cat",), ("hot dog", "sausage"), ("dog",), ("tall",))
    named = named_in(captions, classes)
    np.testing.assert_array_equal(named, [[1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0]])
    mine = np.arange(3)
    pairs = HeldOut(np.zeros((3, 1, 1, 3), np.uint8), mine, captions, (), (), np.eye(3) > 0, 0)
    collapsed = retrieval(np.ones((3, 3), np.float32), pairs)
    assert collapsed["image_to_text_at_1"] == collapsed["text_to_image_at_1"] == 0
    similarity = np.array([[3, 9, 0, 0, 1], [0, 0, 1, 2, 0], [9, 0, 0, 0, 0]], float)
    owner = np.array([0, 1, 1, 2, 3])
    assert naming(similarity, owner, named, mine) == 50  # the third has none of the names
    assert naming(similarity[:, ::-1], owner[::-1], named, mine) == 50


@pytest.mark.parametrize("share", [0.0, 0.07, 0.3, 0.4, 1.0])
def test_a_threshold_from_a_histogram_is_that_of_sorted_values(share: float) -> None:
    values = np.random.default_rng(0).beta(2, 3, 40_000)
    counts = np.histogram(values, 1000, (0, 1))[0]
    found = threshold_for_share(counts, share)
    assert found == pytest.approx(np.quantile(values, 1 - share), abs=1e-3) or share in (0.0, 1.0)
    assert np.mean(values > found) == pytest.approx(share, abs=2e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.source": "tar"}, "'shapes', which are drawn scenes.*eval.shards"),
        ({"eval.tasks": ("pairs",)}, r"eval.shards=\(\) has none.*--held_out"),
        ({"eval.names": "names.txt"}, r"eval.names='names.txt'.*eval.shards=\(\)"),
        ({"eval.tasks": ("none.toml",)}, "(?s)eval.tasks: .*none.toml"),
        ({"eval.tasks": ("mine.toml", "more/mine.toml")}, "'more/mine.toml' is called 'mine'"),
        ({"eval.tasks": ("config.toml",)}, "'config.toml' is called 'config'"),
        ({"eval.best_metric": "voc/miou"}, "best_metric='voc/miou'.*this run, shapes"),
        ({"eval.shards": ("none.tar",)}, "eval.shards: .*none.tar"),
        (
            {"eval.shards": ("held_out.tar",), "eval.names": "names.txt"},
            "no caption of eval",
        ),
    ],
)
def test_what_cannot_be_judged(
    fields: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = Path(labelled(tmp_path))
    (tmp_path / "more").mkdir()
    for name in ("more/mine.toml", "config.toml"):
        (tmp_path / name).write_text(mine.read_text())
    (tmp_path / "names.txt").write_text("zebra\n")
    held_out(tmp_path)
    config: ConfigDict = tiny_clip_config()
    config.eval.best_metric = ""
    config.update_from_flattened_dict(fields)
    with pytest.raises(InputError, match=message):
        tasks = find_tasks(config)
        make_evaluators(config, build_experiment(config), tasks)
