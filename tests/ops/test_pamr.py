"""PAMR against the reference, and what it must keep."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.ops.pamr import DILATIONS, NEIGHBOURS, pamr
from tests.reference import load, nchw_to_nhwc, relative_error


def plain(image: np.ndarray, mask: np.ndarray, dilations: tuple[int, ...], iterations: int) -> Any:
    """The formula in float64, every pixel's neighbours looked up one by one; no batch axis."""
    height, width, _ = image.shape
    rows, columns = np.arange(height)[:, None], np.arange(width)[None]

    def neighbours(x: np.ndarray, offsets: list[tuple[int, int]]) -> np.ndarray:
        return np.stack(
            [
                x[np.clip(rows + y, 0, height - 1), np.clip(columns + z, 0, width - 1)]
                for y, z in offsets
            ]
        )

    offsets = [(d * y, d * x) for d in dilations for y, x in NEIGHBOURS]
    image, mask = image.astype(np.float64), mask.astype(np.float64)
    samples = neighbours(image, [*offsets, *[(0, 0)] * len(dilations)])
    scale = 1e-8 + 0.1 * samples.std(axis=0, ddof=1)
    weights = np.exp(-np.mean(np.abs(neighbours(image, offsets) - image) / scale, axis=-1))
    weights /= weights.sum(axis=0)
    for _ in range(iterations):
        mask = np.einsum("khw,khwn->hwn", weights, neighbours(mask, offsets))
    return mask


refine = jax.jit(pamr, static_argnames=("dilations", "iterations"))


def test_matches_reference() -> None:
    golden = load("pamr")
    refined = refine(nchw_to_nhwc(golden["image"]), nchw_to_nhwc(golden["mask"]))
    assert relative_error(np.moveaxis(refined, -1, 1), golden["refined"]) < 1e-5


@pytest.mark.parametrize(
    ("shape", "dilations"),
    [((2, 33, 40, 5), DILATIONS), ((1, 7, 19, 1), (1, 3, 24))],
    ids=["batch", "smaller than its neighbours' distance"],
)
def test_matches_the_plain_formula(
    shape: tuple[int, int, int, int], dilations: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(3)
    image = rng.normal(size=(*shape[:3], 3)).astype(np.float32)
    mask = rng.uniform(size=shape).astype(np.float32)
    refined = np.asarray(refine(image, mask, dilations=dilations, iterations=4))
    for i in range(shape[0]):
        expected = plain(image[i], mask[i], dilations, 4)
        np.testing.assert_allclose(refined[i], expected, atol=1e-5)


def test_memory_holds_the_padded_masks_little_more_than_once() -> None:
    side, reach, classes = 112, max(DILATIONS), 150
    shapes = [(1, side, side, channels) for channels in (3, classes)]
    lowered = jax.jit(pamr).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))
    temporary = lowered.compile().memory_analysis().temp_size_in_bytes
    padded = 4 * (side + 2 * reach) ** 2 * classes
    assert temporary < 2.2 * padded
