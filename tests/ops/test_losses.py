"""Losses and masks against what follows from their definitions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.ops.images import IMAGENET_MEAN, IMAGENET_STD, center_pad, normalize
from tcl_jax.ops.losses import (
    area_losses,
    image_text_similarity,
    info_nce,
    region_text_loss,
    total_variation,
)
from tcl_jax.ops.masking import masked_pool, straight_through_mask


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


def test_region_loss_equals_image_loss_when_regions_ignore_the_text() -> None:
    images, texts = jax.random.normal(jax.random.key(0), (2, 4, 8))
    regions = jnp.broadcast_to(images[:, None], (4, 4, 8))
    scale = jnp.array(2.0)
    assert float(region_text_loss(regions, texts, scale)) == pytest.approx(
        float(info_nce(image_text_similarity(images, texts), scale)), rel=1e-6
    )


def test_area_losses() -> None:
    masks = jnp.full((3, 3, 2, 2), 0.1) + 0.5 * jnp.eye(3)[:, :, None, None]
    own, others = area_losses(masks, 0.4)
    assert (float(own), float(others)) == (pytest.approx(0.2), pytest.approx(0.1))
    assert float(area_losses(jnp.full((1, 1, 2, 2), 0.4), 0.4)[1]) == 0.0


def test_area_of_groups_is_the_mean_of_each_alone() -> None:
    masks = jax.random.uniform(jax.random.key(0), (6, 6, 2, 2))
    prior = float(jnp.mean(jnp.diagonal(masks)))  # on which the whole batch lies

    def apart(masks: jax.Array) -> jax.Array:
        groups = [area_losses(masks[i : i + 2, i : i + 2], prior)[0] for i in (0, 2, 4)]
        return jnp.mean(jnp.stack(groups))

    def together(masks: jax.Array) -> jax.Array:
        return area_losses(masks, prior, 2)[0]

    found, expected = (jax.value_and_grad(f)(masks) for f in (together, apart))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-7)
    assert found[0] > 0.01 > area_losses(masks, prior)[0]
    assert area_losses(masks, prior, 2)[1] == area_losses(masks, prior)[1]


def test_total_variation_of_a_ramp() -> None:
    ramp = jnp.arange(6.0).reshape(1, 2, 3)
    assert float(total_variation(ramp)) == 3 + 1
    assert float(total_variation(jnp.ones((2, 4, 4)))) == 0


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


def test_normalisation_and_padding() -> None:
    image = np.array([[[[0, 128, 255]]]], np.uint8)
    expected = (image / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    np.testing.assert_allclose(normalize(jnp.asarray(image)), expected, rtol=1e-5)
    floating = jnp.ones((1, 5, 8, 3))
    np.testing.assert_array_equal(normalize(floating), floating)
    padded, (top, left) = center_pad(floating, 8)
    assert padded.shape == (1, 8, 8, 3) and (top, left) == (1, 0)
    np.testing.assert_array_equal(padded[:, 1:6], floating)
