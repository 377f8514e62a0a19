"""Windows of many images in batches: the masks of each window alone, whatever the batches."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.inference import engine as engine_module
from tcl_jax.inference.engine import ImageTask, MaskEngine
from tcl_jax.inference.masks import MaskOptions, grid_masks
from tcl_jax.inference.windows import SlidingWindow
from tcl_jax.ops.images import IMAGENET
from tcl_jax.parallel.mesh import data_mesh, put_locally
from tests.reference import load, reference_torch_model

SIZES = [(64, 64), (80, 100), (64, 96), (20, 200), (170, 17), (64, 64), (90, 75)]
MODEL = reference_torch_model()
TEXTS = load("masks")["text_emb"]
PLAIN = MaskOptions()
MEAN, STD = np.float32(IMAGENET) * 255


@pytest.fixture(scope="module")
def engine() -> MaskEngine:
    return MaskEngine(MODEL.method_in(), data_mesh(jax.local_devices()), 3)


@pytest.fixture(scope="module")
def params() -> object:
    return put_locally(MODEL.params, data_mesh(jax.local_devices()))


def tasks() -> Iterator[ImageTask[int]]:
    rng = np.random.default_rng(0)
    for i, size in enumerate(SIZES):
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        yield ImageTask(i, SlidingWindow.over(size, 64, 32, 16), image)


def alone(task: ImageTask[int]) -> list[np.ndarray]:
    """Masks of each window by itself, padded with zeros after it is normalised."""
    compiled = jax.jit(grid_masks, static_argnums=(0, 4))
    rows, columns = task.sliding.rows, task.sliding.columns
    after = [axis.padded - axis.side - axis.before for axis in (rows, columns)]
    padding = (rows.before, after[0]), (columns.before, after[1]), (0, 0)
    return [
        np.asarray(
            compiled(
                MODEL.method_in(),
                MODEL.params,
                np.pad((task.pixels[window] - MEAN) / STD, padding)[None],
                TEXTS,
                PLAIN,
            )
        )[0]
        for window in task.sliding.windows
    ]


@pytest.mark.parametrize("batch_size", [1, None])
def test_masks_are_those_of_each_window_alone(
    engine: MaskEngine, params: object, batch_size: int | None
) -> None:
    found = dict(engine(params, tasks(), TEXTS, PLAIN, batch_size=batch_size))
    assert sorted(task.item for task in found) == list(range(len(SIZES)))
    for task, masks in found.items():
        assert masks.sliding == task.sliding
        np.testing.assert_allclose(masks.grids, alone(task), atol=1e-5)


def test_compiled_once_but_for_lower_or_narrower_windows(params: object) -> None:
    engine = MaskEngine(MODEL.method_in(), data_mesh(jax.local_devices()), 3)
    usual = [task for task in tasks() if min(task.sliding.size) >= 64]
    list(engine(params, usual, TEXTS, PLAIN))
    list(engine(params, usual[:1], TEXTS, PLAIN))
    assert engine._compiled._cache_size() == 1
    list(engine(params, tasks(), TEXTS, PLAIN))
    assert engine._compiled._cache_size() == 3  # 20 x 200 and 170 x 17


def test_a_class_takes_the_largest_of_its_synonyms(engine: MaskEngine, params: object) -> None:
    synonyms = ((0, 1), (2,), (3, 4))
    some = list(tasks())[:2]
    each = engine(params, some, TEXTS, PLAIN)
    best = engine(params, some, TEXTS, PLAIN, synonyms)
    for (_, words), (_, classes) in zip(each, best, strict=True):
        expected = np.stack([words.grids[..., list(own)].max(-1) for own in synonyms], axis=-1)
        np.testing.assert_allclose(classes.grids, expected, atol=1e-6)


def test_images_are_read_as_they_are_needed(engine: MaskEngine, params: object) -> None:
    read = []

    def watched() -> Iterator[ImageTask[int]]:
        for task in tasks():
            read.append(task.item)
            yield task

    next(engine(params, watched(), TEXTS, PLAIN, batch_size=1))
    assert len(read) <= 3


def test_few_images_wait_for_others_of_their_shape(
    engine: MaskEngine, params: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of ever other shapes: of sixteen and with three windows to a batch, two at most."""
    monkeypatch.setattr(engine_module, "_WAITING", 2 / 3)
    nothing = jnp.zeros((3 * len(jax.local_devices()), 1, 1, 1))
    monkeypatch.setattr(engine, "_compiled", lambda *_: nothing)
    read = []

    def shapes() -> Iterator[ImageTask[int]]:
        for i in range(16):
            size = 16 + 16 * (i % 4), 16 + 16 * (i // 4)
            read.append(i)
            yield ImageTask(i, SlidingWindow.over(size, 64, 64, 16), np.zeros((*size, 3), np.uint8))

    most = 2 * len(jax.local_devices())
    found = [(task.item, len(read)) for task, _ in engine(params, shapes(), TEXTS, PLAIN)]
    assert sorted(item for item, _ in found) == [*range(16)]
    assert all(before - n <= most + 2 for n, (_, before) in enumerate(found))


def test_fewer_windows_at_a_time_where_texts_are_many(
    engine: MaskEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = len(jax.local_devices())
    monkeypatch.setattr(engine_module, "_LARGEST", 64 * 64 * 20)
    assert [engine.rows((64, 64), n) for n in (1, 6, 10, 99)] == [3 * devices] * 2 + [
        2 * devices, devices
    ]  # fmt: skip
