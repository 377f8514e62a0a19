"""PAMR against the reference, and what it must keep."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from tcl_jax.ops.pamr import pamr
from tests.reference import load, nchw_to_nhwc, relative_error


def test_matches_reference() -> None:
    golden = load("pamr")
    refined = jax.jit(pamr)(nchw_to_nhwc(golden["image"]), nchw_to_nhwc(golden["mask"]))
    assert relative_error(np.moveaxis(refined, -1, 1), golden["refined"]) < 1e-5


def test_constant_masks_stay_and_values_stay_in_range() -> None:
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=(1, 20, 30, 3)), jnp.float32)
    constant = jnp.full((1, 10, 15, 2), 0.3)
    np.testing.assert_allclose(pamr(image, constant), 0.3, rtol=1e-5)
    random = jnp.asarray(rng.uniform(size=(1, 20, 30, 2)), jnp.float32)
    refined = pamr(image, random)
    assert float(refined.min()) >= random.min() and float(refined.max()) <= random.max()


def test_masks_spread_inside_flat_regions_and_not_over_edges() -> None:
    image = np.zeros((1, 16, 16, 3), np.float32)
    image[:, :, 8:] = 1.0
    mask = np.zeros((1, 16, 16, 1), np.float32)
    mask[:, 6:10, 2:6] = 1.0
    refined = np.asarray(pamr(jnp.asarray(image), jnp.asarray(mask)))[0, :, :, 0]
    assert refined[:, :8].sum() > 10 * refined[:, 8:].sum()
    assert refined[2, 2] > 10 * refined[2, 10]


def test_reduced_neighbourhood() -> None:
    image = jax.random.normal(jax.random.key(1), (1, 8, 8, 3))
    mask = jnp.eye(8)[None, :, :, None]
    same = pamr(image, mask, dilations=(1,), iterations=0)
    np.testing.assert_array_equal(same, mask)
    assert not np.allclose(pamr(image, mask, dilations=(1,), iterations=1), mask)
