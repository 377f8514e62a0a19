"""Losses and masks against what follows from their definitions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.ops.losses import (
    area_losses,
    image_text_similarity,
    info_nce,
    region_text_similarity,
    total_variation,
)
from tcl_jax.ops.masking import (
    masked_pool,
    pixel_text_similarity,
    positive_similarity,
    straight_through_mask,
)


def test_info_nce_of_equal_similarities_is_log_batch() -> None:
    loss = info_nce(jnp.zeros((5, 5)), jnp.array(1.0))
    assert float(loss) == pytest.approx(np.log(5), rel=1e-6)


def test_info_nce_is_symmetric_and_its_scale_is_clipped() -> None:
    similarity = jax.random.uniform(jax.random.key(0), (4, 4))
    for scale in (1.0, 3.0):
        ours = info_nce(similarity, jnp.array(scale))
        assert float(ours) == pytest.approx(float(info_nce(similarity.T, jnp.array(scale))))
    top = info_nce(similarity, jnp.log(jnp.array(100.0)))
    assert float(info_nce(similarity, jnp.array(9.0))) == pytest.approx(float(top))


def test_similarities_of_regions_that_ignore_the_text_are_those_of_images() -> None:
    images, texts = jax.random.normal(jax.random.key(0), (2, 4, 8))
    regions = jnp.broadcast_to(images[:, None], (4, 4, 8))
    found = region_text_similarity(regions, texts)
    np.testing.assert_allclose(found, image_text_similarity(images, texts), rtol=1e-5)


def test_area_losses() -> None:
    area, neg_area = area_losses(0.1 + 0.5 * jnp.eye(3), 0.4)
    assert (float(area), float(neg_area)) == (pytest.approx(0.2), pytest.approx(0.1))
    assert float(area_losses(jnp.full((1, 1), 0.4), 0.4)[1]) == 0.0


def test_area_of_groups_is_the_mean_of_each_alone() -> None:
    areas = jax.random.uniform(jax.random.key(0), (5, 5))
    prior = float(jnp.mean(jnp.diagonal(areas)))  # on which the whole batch lies
    apart = [area_losses(areas[i : i + 2, i : i + 2], prior)[0] for i in (0, 2, 4)]
    area, neg_area = area_losses(areas, prior, 2)
    np.testing.assert_allclose(area, np.mean(apart), rtol=1e-6)
    assert area > 0.01 > area_losses(areas, prior)[0]
    assert neg_area == area_losses(areas, prior)[1]


def test_total_variation_of_a_ramp() -> None:
    maps = jnp.stack([jnp.arange(6.0).reshape(2, 3), jnp.ones((2, 3))])
    np.testing.assert_array_equal(total_variation(maps), [3 + 1, 0])


def test_hard_mask_is_binary_with_the_gradient_of_its_sigmoid() -> None:
    logits = jnp.array([-2.0, -0.1, 0.2, 3.0])
    half = jnp.full(4, 0.5)
    mask = straight_through_mask(logits, half)
    np.testing.assert_allclose(mask, [0, 0, 1, 1], atol=1e-6)
    gradient = jax.grad(lambda x: straight_through_mask(x, half).sum())(logits)
    soft = jax.nn.sigmoid(logits)
    np.testing.assert_allclose(gradient, soft * (1 - soft), rtol=1e-5)
    np.testing.assert_allclose(straight_through_mask(logits, jnp.full(4, 0.999)), 1, atol=1e-6)


def test_masked_pool_averages_the_masked_pixels() -> None:
    pixels = jax.random.normal(jax.random.key(0), (1, 2, 2, 3))
    masks = jnp.zeros((1, 2, 2, 2)).at[0, 0, 0].set(1.0)
    pooled = masked_pool(pixels, masks)
    np.testing.assert_allclose(pooled[0, 0], pixels[0, 0].mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(pooled[0, 1], 0)


def test_similarity_with_the_own_text_is_the_diagonal() -> None:
    pixels = jax.random.normal(jax.random.key(0), (3, 4, 5, 8))
    texts = jax.random.normal(jax.random.key(1), (3, 8))
    every, own = pixel_text_similarity(pixels, texts), np.arange(3)
    np.testing.assert_allclose(positive_similarity(pixels, texts), every[own, own], atol=1e-6)
