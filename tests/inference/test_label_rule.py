"""Labels of merged cosines and probabilities: the authors' own, and what they must keep."""

from __future__ import annotations

import numpy as np
import pytest

from tcl_jax.inference.engine import ImageTask, MaskEngine
from tcl_jax.inference.label_rule import LabelRule
from tcl_jax.inference.masks import MaskOptions
from tcl_jax.inference.merging import SoftMasks
from tcl_jax.inference.model import model_from_torch
from tcl_jax.inference.refinement import Refiner
from tcl_jax.inference.windows import SlidingWindow
from tcl_jax.ops.images import CLIP_PIXELS
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
    best, largest = rule.best(np.moveaxis(logits, 0, -1))
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
    ],
)
def test_labels_of_the_authors(method: str, name: str, case: str) -> None:
    """Windows, PAMR, softmax, areas and thresholds, from images to labels."""
    golden = load(f"methods/{name}")
    model = model_from_torch(CLIP, method=method, activation="quick_gelu")
    window, stride, threshold, steps, scale, area = (float(x) for x in golden[f"{case}/settings"])
    image = np.ascontiguousarray(np.moveaxis(golden[f"{case}/image"][0], 0, -1))
    patch, labels = model.method.patch_size, golden[f"{case}/labels"]
    sliding = SlidingWindow.over(image.shape[:2], int(window) or 2048, int(stride), patch)
    texts = golden[f"{method}_text"]
    engine = MaskEngine(model.method, local_mesh())
    options = MaskOptions(scores="cosines")
    [(task, masks)] = engine(model.params, [ImageTask(0, sliding, image)], texts, options)
    refined = None
    if steps:
        refiner = Refiner(local_mesh(), CLIP_PIXELS, (8, 16), int(steps))
        refined = refiner(task.pixels, masks, labels.shape)
    rule = LabelRule(CLASSES, scale, threshold, None if area < 0 else area)
    np.testing.assert_array_equal(rule.labels(masks, labels.shape, refined=refined), labels)
