"""Words typed for methods that compare cosines: their authors' rule, as an evaluation has it."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tcl_jax import segment
from tcl_jax.demo.answers import Answers
from tcl_jax.errors import InputError
from tcl_jax.evaluation.benchmark import custom_benchmark
from tcl_jax.evaluation.evaluator import Evaluator
from tcl_jax.evaluation.examples import list_examples
from tcl_jax.evaluation.protocol import embed_texts, make_protocol
from tcl_jax.inference.masks import make_masks
from tcl_jax.inference.model import Model, model_from_torch
from tcl_jax.inference.pretrained import load_pretrained
from tcl_jax.inference.segmentation import Segmentation
from tcl_jax.inference.segmenter import Segmenter
from tcl_jax.ops.images import normalize
from tests.demo.made_model import write_scene
from tests.released_files import WRITERS

THINGS = ["striped red", ["Sky", "plain blue"], "dotted green"]
NAMES = ("background", "striped red", "Sky", "dotted green")


def shapes(method: str) -> Model:
    return model_from_torch("builtin:shapes_clip", method=method)


@pytest.mark.parametrize(
    ("method", "pamr"),
    [("sc_clip", None), ("naclip", False), ("naclip", None), ("clip_dinoiser", None)],
)
def test_labels_are_those_of_an_evaluation(method: str, pamr: bool | None, tmp_path: Path) -> None:
    dinoiser = method == "clip_dinoiser"
    model = load_pretrained(method, **WRITERS[method](tmp_path)) if dinoiser else shapes(method)
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    with Image.open(write_scene(tmp_path / "images/scene.png", 2)) as scene:
        image = np.asarray(scene)[:70]
    Image.fromarray(image).save(tmp_path / "images/scene.png")
    Image.fromarray(image[..., 0] % 4).save(tmp_path / "labels/scene.png")
    own = custom_benchmark(tmp_path / "images", tmp_path / "labels", THINGS, background=True,
                           cleaning=dinoiser)  # fmt: skip
    protocol = make_protocol(model, pamr=pamr)
    params = jax.tree.map(np.float32, model.params)
    texts = embed_texts(protocol, model.method, params, own)
    evaluator = Evaluator(model.method_in(np.float32), params, protocol)
    index = list_examples(own, tmp_path)
    [expected] = evaluator.label_maps(index.examples, own, texts, lambda _, labels: labels)
    result = Segmenter(model).segment(image, THINGS, pamr=pamr)
    assert result.names == NAMES and len(np.unique(expected)) > 1
    np.testing.assert_array_equal(result.labels, expected)
    best, largest = result.soft_masks.best(image.shape[:2])
    kept = (largest > 0) & (largest >= result.threshold)
    np.testing.assert_array_equal(np.where(kept, best + 1, 0), expected)
    np.testing.assert_allclose(result.masks.max(-1)[kept], largest[kept], atol=1e-6)


def test_masks_are_probabilities() -> None:
    segmenter = Segmenter(shapes("sclip"))
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    texts = segmenter.embed_texts(["striped red", "plain blue", "sky"])
    masks = segmenter.masks(image, texts)
    np.testing.assert_allclose(masks.sum(-1), 1, atol=1e-6)
    assert np.ptp(masks) > 0.01
    x = normalize(jnp.asarray(image)[None], segmenter.pixel_statistics)
    model, filled = shapes("sclip"), jnp.pad(texts, ((0, 2), (0, 0)))
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), model.params)
    options = model.settings.options_for(model.method)
    made = make_masks(model.method, params, x, filled, options)
    whole = segmenter.masks_normalized(x, texts)
    np.testing.assert_allclose(made, np.pad(whole, ((0, 0),) * 3 + ((0, 2),)), atol=2e-5)

    everything = segmenter.segment(image, ["striped red", ["plain blue", "sky"]], background=False)
    assert everything.names == ("striped red", "plain blue")
    joined = np.stack([masks[..., 0], masks[..., 1:].max(-1)], -1)
    np.testing.assert_allclose(everything.masks, joined, atol=1e-6)
    np.testing.assert_array_equal(everything.labels, joined.argmax(-1))

    result = segmenter.segment(image, ["striped red", "plain blue"])
    assert result.threshold == 0.1 and result.masks.shape == (70, 90, 2)
    assert (segmenter.segment(image, ["striped red"], threshold=1.0).labels == 0).all()
    without = Segmentation(image, result.texts, result.soft_masks)
    expected = segmenter.segment(image, ["striped red", "plain blue"], background=False)
    np.testing.assert_array_equal(without.labels, expected.labels)
    above = Segmentation(image, everything.texts, everything.soft_masks, threshold=0.6)
    by_hand = np.where(joined.max(-1) < 0.6, 0, joined.argmax(-1) + 1)
    np.testing.assert_array_equal(above.labels, by_hand)

    alone = segmenter.segment(image, ["striped red"], background=False)
    assert (alone.labels == 0).all() and (alone.masks == 1).all()
    with pytest.raises(InputError, match="'background' is the name of the class"):
        segmenter.segment(image, ["background"])


def test_refined_masks_are_the_same_in_bands_and_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_STEP", 32), ("_LARGEST", 64)):
        monkeypatch.setattr(f"tcl_jax.inference.refinement.{name}", value)
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    masks = Segmenter(shapes("naclip")).segment(image, THINGS).soft_masks
    whole = masks.at((70, 90))
    np.testing.assert_allclose(
        whole[30:50, 7:60], masks.part((70, 90), (30, 50), (7, 60)), atol=1e-6
    )
    plain = Segmenter(shapes("naclip")).segment(image, THINGS, pamr=False).soft_masks
    assert np.abs(whole - plain.at((70, 90))).max() > 0.01


def test_the_page_and_the_command(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.png", 0)
    words = ["striped red", "plain blue", "dotted green"]
    expected = Segmenter(shapes("sclip")).segment(scene, words)
    answers = Answers(shapes("sclip"))
    assert answers.thresholds(False)["sclip"] == 0.1
    question = answers.question(scene, "\n".join(words), pamr=False, baseline=False)
    shown = answers.segmentation(question, "sclip", 0.1)
    np.testing.assert_array_equal(shown.labels, expected.labels)
    everywhere = answers.segmentation(question, "sclip", None)
    assert everywhere.names == tuple(words) and everywhere.labels.max() < 3

    flags = ["--clip=builtin:shapes_clip", "--method=sclip", f"--image={scene}"]
    segment.run([*flags, "--text", *words, f"--output={tmp_path}/out"])
    with Image.open(tmp_path / "out/scene_labels.png") as labels:
        np.testing.assert_array_equal(np.asarray(labels), expected.labels)
    assert json.loads((tmp_path / "out/scene.json").read_text())["threshold"] == 0.1
