"""Labels of merged cosines and probabilities: the authors' own, and what they must keep."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.errors import RunError
from tcl_jax.inference import refinement
from tcl_jax.inference.engine import ImageTask, MaskEngine
from tcl_jax.inference.label_rule import LabelRule
from tcl_jax.inference.masks import MaskOptions
from tcl_jax.inference.merging import SoftMasks, Tile
from tcl_jax.inference.model import model_from_torch
from tcl_jax.inference.refinement import Refiner
from tcl_jax.inference.windows import SlidingWindow
from tcl_jax.ops.images import CLIP_PIXELS, normalize
from tcl_jax.ops.pamr import pamr
from tcl_jax.parallel.mesh import local_mesh
from tests.reference import GOLDEN, load, relative_error

CLASSES = ((0, 1, 2), (3,), (4, 5), (6,), (7,), (8,))  # the goldens' query_idx
CLIP = GOLDEN / "clip_state_dict.npz"


def merged(logits: np.ndarray) -> SoftMasks:
    return SoftMasks.of_array(np.ascontiguousarray(np.moveaxis(logits, 0, -1)))


def test_probabilities_and_labels_of_the_authors_cosines() -> None:
    golden = load("methods/clearclip")
    logits, labels = golden["seg_a/logits"], golden["seg_a/labels"]
    rule = LabelRule(CLASSES, 50.0)
    best, largest = rule.best([np.moveaxis(logits, 0, -1)])
    assert relative_error(largest, golden["seg_a/probs"].max(0)) < 1e-5
    np.testing.assert_array_equal(best, labels)
    np.testing.assert_array_equal(rule.labels(merged(logits), labels.shape), labels)
    # With a threshold that is never reached everything is computed, in tiles and threads.
    low = LabelRule(CLASSES, 50.0, threshold=1e-6)
    np.testing.assert_array_equal(low.labels(merged(logits), labels.shape, threads=2), labels)


@pytest.mark.parametrize(
    ("method", "name", "case"),
    [
        ("sclip", "sclip_naclip", "seg_sclip"),
        ("naclip", "sclip_naclip", "seg_naclip"),
        ("clearclip", "clearclip", "seg_a"),
    ],
)
def test_labels_of_the_authors(method: str, name: str, case: str) -> None:
    """Windows, PAMR, softmax, areas and thresholds, from images to labels."""
    golden = load(f"methods/{name}")
    model = model_from_torch(CLIP, method=method, activation="quick_gelu")
    window, stride, threshold, steps, scale, area = (
        golden[f"{case}/settings"].tolist() if f"{case}/settings" in golden else
        (64, 32, float(golden[f"{case}/prob_thd"]), 0, float(golden["logit_scale"]), -1)
    )  # fmt: skip
    image = np.ascontiguousarray(np.moveaxis(golden[f"{case}/image"][0], 0, -1))
    patch, labels = model.method.patch_size, golden[f"{case}/labels"]
    sliding = SlidingWindow.over(image.shape[:2], int(window) or 2048, int(stride), patch)
    texts = golden.get(f"{method}_text", golden.get("text"))
    engine = MaskEngine(model.method, local_mesh())
    options = MaskOptions(scores="cosines")
    [(task, masks)] = engine(model.params, [ImageTask(0, sliding, image)], texts, options)
    if f"{case}/logits" in golden:
        logits = np.moveaxis(masks.at(labels.shape), -1, 0)
        assert relative_error(logits, golden[f"{case}/logits"]) < 1e-5
    refined = None
    if steps:
        refiner = Refiner(local_mesh(), CLIP_PIXELS, (8, 16), int(steps))
        refined = refiner(task.pixels, masks, labels.shape)
    rule = LabelRule(CLASSES, scale, threshold, None if area < 0 else area)
    np.testing.assert_array_equal(rule.labels(masks, labels.shape, refined=refined), labels)


def plainly(scores: np.ndarray, rule: LabelRule) -> tuple[np.ndarray, np.ndarray]:
    """The rule step by step in float64: probabilities of classes, and labels."""
    texts = [text for words in rule.classes for text in words]
    query = np.repeat(np.arange(len(rule.classes)), [len(words) for words in rule.classes])
    p = scores[..., texts].astype(np.float64)
    if rule.logit_scale is not None:
        p = np.exp(rule.logit_scale * (p - p.max(-1, keepdims=True)))
        p /= p.sum(-1, keepdims=True)
    p = np.stack([p[..., query == c].max(-1) for c in range(len(rule.classes))], -1)
    if rule.area_threshold is not None:
        counts = np.bincount(p.argmax(-1).ravel(), minlength=p.shape[-1])
        lost = ~(counts > rule.area_threshold * counts[1:].sum())
        lost[0] = False
        p[..., lost] = 0
    return p, np.where(p.max(-1) < rule.threshold, 0, p.argmax(-1))


@pytest.mark.parametrize("threshold", [0.0, 0.2])
@pytest.mark.parametrize("area", [None, 0.25])
@pytest.mark.parametrize("scale", [None, 8.0])
def test_the_rule_step_by_step(threshold: float, area: float | None, scale: float | None) -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((9, 11, 6), np.float32)
    scores[4:, :, 5] += 0.3
    scores = np.pad(scores, ((0, 0), (0, 0), (0, 1)))  # a text that nothing shows
    if scale is None:
        scores /= scores.sum(-1, keepdims=True)
    # Text 1 is of two classes.
    rule = LabelRule(((0, 1), (2, 3), (1,), (4,), (5,), (6,)), scale, threshold, area)
    masks, size = SoftMasks.of_array(scores), (150, 140)
    _, expected = plainly(masks.at(size), rule)
    assert len(np.unique(expected)) >= 2 + (area is None)
    for threads in (1, 3):
        np.testing.assert_array_equal(rule.labels(masks, size, threads), expected)

    asked = []

    def some_texts_at_a_time(tile: Tile, texts: Any = slice(None)) -> list[np.ndarray]:
        values = masks.some(texts).part(size, *tile)
        asked.append(values.shape[-1])
        return np.array_split(values, 2, axis=-1)

    refined = masks.tiles(size, (90, 60)), some_texts_at_a_time
    np.testing.assert_array_equal(rule.labels(masks, size, refined=refined), expected)
    # Where classes are lost, not all texts are refined again.
    assert {7} == {*asked[:6]} and all(count < 7 for count in asked[6:])
    assert bool(asked[6:]) == (area is not None)


def test_scores_that_are_not_finite() -> None:
    masks = SoftMasks.of_array(np.full((4, 4, 2), np.nan, np.float32))
    for threshold in (0.0, 0.1):
        with pytest.raises(RunError, match="not finite"):
            LabelRule(((0,), (1,)), 40.0, threshold).labels(masks, (8, 8))
    finite = np.zeros((4, 4, 1), np.float32)
    for value in (np.inf, -np.inf, np.nan):
        with pytest.raises(RunError, match="not finite"):
            LabelRule(((0,), (1,)), 40.0).best([finite, finite + np.float32(value)])


def test_refining_is_pamr_at_any_size_by_few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of an image in overlapping parts, and with more texts than go together."""
    monkeypatch.setattr(refinement, "_STEP", 32)
    monkeypatch.setattr(refinement, "_LARGEST", 64)
    monkeypatch.setattr(refinement, "_VALUES", 1)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
    masks = SoftMasks.of_array(rng.random((5, 6, 11), np.float32))
    refiner = Refiner(local_mesh(), CLIP_PIXELS, (2, 4), 3)
    for size, parts in (((30, 25), 1), ((31, 32), 1), ((17, 150), 4)):
        image = SoftMasks.of_array(np.asarray(normalize(jnp.asarray(pixels), CLIP_PIXELS))).at(size)
        arrays = jnp.asarray(image)[None], jnp.asarray(masks.at(size))[None]
        expected = jax.jit(partial(pamr, dilations=(2, 4), iterations=3))(*arrays)[0]
        tiles, values = refiner(pixels, masks, size)
        assert len(tiles) == parts
        for tile in tiles:
            rows, columns = slice(*tile[0]), slice(*tile[1])
            found = [*values(tile)]
            assert max(part.shape[-1] for part in found) <= 8 * refiner._mesh.size
            found = np.concatenate(found, axis=-1)
            np.testing.assert_allclose(found, expected[rows, columns], atol=2e-6)
    assert refiner._compiled._cache_size() <= 3
