"""Windows of many images in batches: the Segmenter's masks, whatever the batches."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tcl_jax.inference.batched import BatchedMasks, ImageTask
from tcl_jax.inference.masks import MaskOptions
from tcl_jax.inference.mosaic import Mosaic
from tcl_jax.inference.segmenter import Segmenter
from tcl_jax.inference.windows import resize_pixels
from tcl_jax.parallel.mesh import data_mesh, put_locally
from tests.reference import load, reference_torch_model

SIZES = [(64, 64), (80, 100), (70, 30), (33, 90), (20, 700), (600, 17), (64, 64), (50, 75)]
MODEL = reference_torch_model()
TEXTS = load("masks")["text_emb"]
PLAIN = MaskOptions(pamr=False, kp_weight=0.3)


def make(batch_size: int) -> tuple[BatchedMasks, object]:
    mesh = data_mesh(jax.local_devices())
    return BatchedMasks(MODEL.module(), PLAIN, mesh, batch_size), put_locally(MODEL.params, mesh)


def tasks() -> list[ImageTask[int]]:
    rng = np.random.default_rng(0)
    result = []
    for i, (height, width) in enumerate(SIZES):
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        mosaic = Mosaic(height, width, 64, 64, 32, 16, max_long_side=256)
        result.append(ImageTask(i, mosaic, resize_pixels(image, mosaic.size)))
    return result


@pytest.mark.parametrize("batch_size", [1, 3])
def test_grids_are_the_segmenters_masks(batch_size: int) -> None:
    compute, params = make(batch_size)
    segmenter = Segmenter(MODEL, batch_size=1)
    found = {}
    for task, grids in compute(params, tasks(), TEXTS):
        assert len(grids) == len(task.mosaic.windows)
        found[task.item] = task.mosaic.labels(grids, 0.5)
    assert sorted(found) == list(range(len(SIZES)))
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate(SIZES):
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        if max(height, width) > 4 * min(height, width):
            continue  # the Segmenter lets long sides have 2048 pixels
        masks = segmenter.masks(image, TEXTS, pamr=False)
        best = np.where(masks.max(-1) > 0.5, masks.argmax(-1) + 1, 0)
        assert np.count_nonzero(found[i] != best) <= 2


def test_compiled_once_but_for_lower_or_narrower_windows() -> None:
    compute, params = make(2)
    usual = [task for task in tasks() if min(task.mosaic.size) == 64]
    list(compute(params, usual, TEXTS))
    list(compute(params, usual[:1], TEXTS))
    assert compute._compiled._cache_size() == 1
    list(compute(params, tasks(), TEXTS))
    assert compute._compiled._cache_size() == 3  # 20 x 700 and 600 x 17


def test_a_class_takes_the_largest_of_its_synonyms() -> None:
    compute, params = make(2)
    synonyms = ((0, 1), (2,), (3, 4))
    for (one, grids), (other, best) in zip(
        compute(params, tasks()[:3], TEXTS),
        compute(params, tasks()[:3], TEXTS, synonyms),
        strict=True,
    ):
        assert one.item == other.item
        for grid, chosen in zip(grids, best, strict=True):
            expected = np.stack([grid[..., list(texts)].max(-1) for texts in synonyms], axis=-1)
            np.testing.assert_allclose(chosen, expected, atol=1e-6)


def test_tasks_are_read_as_they_are_needed() -> None:
    compute, params = make(1)
    read = []

    def watched() -> object:
        for task in tasks():
            read.append(task.item)
            yield task

    results = compute(params, watched(), TEXTS)
    next(results)
    assert len(read) <= 3
