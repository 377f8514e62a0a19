"""CLIP-DINOiser against its authors' code, and where that has no answer."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.inference.masks import grid_masks
from tcl_jax.models.clip import CLIPConfig
from tcl_jax.models.clip_dinoiser import CLIPDINOiser
from tcl_jax.models.layers import matmul_precision
from tcl_jax.models.method import MaskOptions
from tests.clip_dinoiser_files import GOLDEN, golden_model, golden_pixels
from tests.reference import relative_error

TEXTS = jnp.asarray(GOLDEN["class_embeddings"])
OWN = MaskOptions(scores="probabilities", logit_scale=100.0)
CLEAN = dataclasses.replace(OWN, cleaning=True)
run = jax.jit(grid_masks, static_argnums=(0, 4))


@pytest.fixture(scope="module")
def params() -> Any:
    return jax.tree.map(jnp.asarray, golden_model().params)


@pytest.fixture(scope="module")
def method() -> CLIPDINOiser:
    method = golden_model().method
    assert isinstance(method, CLIPDINOiser)
    return method


def channels_last(name: str) -> np.ndarray:
    return np.moveaxis(GOLDEN[name], 1, -1)


@pytest.mark.parametrize("size", ["s64x64", "s64x96", "s60x90"])
def test_every_step(params: Any, method: CLIPDINOiser, size: str) -> None:
    image = golden_pixels(f"{size}/image01")
    with matmul_precision(jnp.float32):
        found = jax.jit(method.pooled)(params, image)
    correlations = GOLDEN[f"{size}/correlations"]
    correlations = correlations.reshape(*correlations.shape[:2], -1)
    for array, expected in (
        (found.correlations, correlations),
        (found.objectness, channels_last(f"{size}/background_logit")[..., 0]),
        (found.features, channels_last(f"{size}/pooled")),
    ):
        assert relative_error(array, expected) < 1e-5
    for options, name in ((OWN, "probs"), (CLEAN, "probs_background")):
        probabilities = run(method, params, image, TEXTS, options)
        assert relative_error(probabilities, channels_last(f"{size}/{name}")) < 3e-5


def test_masks_are_held_back_where_there_is_no_object(params: Any, method: CLIPDINOiser) -> None:
    image = golden_pixels("s64x96/image01")
    plain, clean = (
        np.asarray(run(method, params, image, TEXTS, MaskOptions(cleaning=cleaning)))
        for cleaning in (False, True)
    )
    np.testing.assert_allclose(plain, channels_last("s64x96/probs"), atol=3e-5)
    nothing = channels_last("s64x96/probs_background")[..., 0] == 1
    assert nothing.any() and not clean[nothing].any()
    np.testing.assert_allclose(clean[~nothing], plain[~nothing], atol=1e-5)


def test_cosines_are_of_the_pooled_patches(params: Any, method: CLIPDINOiser) -> None:
    image, pooled = golden_pixels("s64x96/image01"), channels_last("s64x96/pooled")
    found = run(method, params, image, 3 * TEXTS, MaskOptions(scores="cosines"))
    expected = pooled / np.linalg.norm(pooled, axis=-1, keepdims=True) @ np.asarray(TEXTS).T
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_each_image_by_itself_and_rows_of_zeros(params: Any, method: CLIPDINOiser) -> None:
    """Even images, and images smaller than a patch, are no exceptions."""
    rng, padded = np.random.default_rng(0), jnp.pad(TEXTS, ((0, 2), (0, 0)))
    for size, options in (((40, 50), CLEAN), ((5, 7), OWN)):
        images = jnp.asarray(rng.standard_normal((2, *size, 3)), jnp.float32).at[1].set(0.3)
        both = run(method, params, images, padded, options)
        assert np.isfinite(both).all() and not both[..., -2:].any()
        alone = [run(method, params, x[None], TEXTS, options)[0] for x in images]
        np.testing.assert_allclose(both[..., :-2], np.stack(alone), atol=2e-5)


def test_pamr_works_on_four_times_the_grid(params: Any, method: CLIPDINOiser) -> None:
    image = golden_pixels("s60x90/image01")
    masks = run(method, params, image, TEXTS, MaskOptions("pamr"))
    assert masks.shape == (1, 16, 24, 6)
    np.testing.assert_allclose(masks.sum(axis=-1), 1, atol=1e-5)


def test_the_tower_may_compute_in_bfloat16(params: Any, method: CLIPDINOiser) -> None:
    rough = dataclasses.replace(method, dtype=jnp.bfloat16)
    found = jax.jit(rough.dense_features)(params, golden_pixels("s64x96/image01"))
    assert found.dtype == jnp.float32
    assert 1e-4 < relative_error(found, channels_last("s64x96/pooled")) < 0.05


def test_three_blocks_are_the_fewest() -> None:
    config = CLIPConfig(16, 16, 8, 64, 3, 64, 1, context_length=4, vocab_size=8)
    method = CLIPDINOiser(config, 8)
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, 20, 20, 3), jnp.float32)
    assert jax.eval_shape(method.dense_features, shapes, image).shape == (1, 3, 3, 16)
    parts = method.flops(20, 5, OWN)
    assert parts["head"] == 2 * 9 * 9 * 64 * 8 + 2 * 9 * 64 + 2 * 81 * 8
    with pytest.raises(ValueError, match="2 blocks.*choose a CLIP of at least 3"):
        CLIPDINOiser(dataclasses.replace(config, vision_layers=2), 8)
