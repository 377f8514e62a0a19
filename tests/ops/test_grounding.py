"""The tiled losses against the plain ones of `ops.losses` and `ops.masking`."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.errors import InputError
from tcl_jax.ops import grounding, losses, masking
from tests.reference import relative_error

HEIGHT, WIDTH, SIZE = 6, 5, 16
WEIGHTS = (0.7, 1.3, 0.9, 1.1)


def inputs(images: int, texts: int | None = None) -> tuple[jax.Array, ...]:
    """Pixels, texts, w, b and log scale."""
    pixel_key, text_key = jax.random.split(jax.random.key(images))
    return (
        3 * jax.random.normal(pixel_key, (images, HEIGHT, WIDTH, SIZE)),
        jax.random.normal(text_key, (images if texts is None else texts, SIZE)),
        jnp.array(4.0),
        jnp.array(-0.5),
        jnp.array(2.0),
    )


def plain(
    pixels: jax.Array,
    texts: jax.Array,
    w: jax.Array,
    b: jax.Array,
    log_scale: jax.Array,
    area_group: int = 0,
) -> grounding.GroundingLosses:
    masks = jax.nn.sigmoid(w * masking.pixel_text_similarity(pixels, texts) + b)
    area, neg_area = losses.area_losses(masks, 0.4, area_group)
    return grounding.GroundingLosses(
        tclf=losses.region_text_loss(masking.masked_pool(pixels, masks), texts, log_scale),
        area=area,
        neg_area=neg_area,
        tv_mask=losses.total_variation(masks),
        mask_area=jnp.mean(masking.diagonal(masks)),
    )


def weighted(found: grounding.GroundingLosses) -> jax.Array:
    return jnp.dot(jnp.array(WEIGHTS), jnp.stack(found[:4]))


@pytest.mark.parametrize(
    ("count", "text_tile", "area_group"),
    [(8, 4, 2), (7, 3, 0), (7, 3, 4), (5, None, 64), (1, None, 0)],
)
def test_values_and_gradients_equal_the_plain_ones(
    count: int, text_tile: int | None, area_group: int
) -> None:
    def tiled(*args: jax.Array) -> Any:
        found = grounding.grounding_losses(*args, area_group=area_group, text_tile=text_tile)
        return weighted(found), found

    def reference(*args: jax.Array) -> Any:
        found = plain(*args, area_group=area_group)
        return weighted(found), found

    arguments = inputs(count)
    ours, theirs = (
        jax.jit(jax.grad(f, argnums=range(5), has_aux=True))(*arguments) for f in (tiled, reference)
    )
    for name, value in theirs[1]._asdict().items():
        assert float(getattr(ours[1], name)) == pytest.approx(float(value), rel=1e-5), name
    for name, mine, expected in zip(
        ("pixels", "texts", "w", "b", "scale"), ours[0], theirs[0], strict=True
    ):
        expected = np.asarray(expected)
        if count == 1 and name == "scale":  # one pair has no other to be told from
            np.testing.assert_allclose(mine, 0, atol=1e-6)
            np.testing.assert_allclose(expected, 0, atol=1e-6)
        else:
            assert np.abs(expected).max() > 1e-4
            assert relative_error(mine, expected) < 1e-5, name


def test_values_follow_the_area_prior() -> None:
    found = jax.jit(partial(grounding.grounding_losses, area_prior=0.1))(*inputs(4))
    assert float(found.area) == pytest.approx(abs(float(found.mask_area) - 0.1), rel=1e-6)


@pytest.mark.parametrize(("images", "texts", "tile"), [(3, 7, 2), (4, 1, None), (1, 9, 4)])
def test_statistics_of_other_numbers_of_texts(images: int, texts: int, tile: int | None) -> None:
    pixels, words, w, b, _ = inputs(images, texts)
    found = jax.jit(partial(grounding.pair_statistics, text_tile=tile))(pixels, words, w, b)
    masks = jax.nn.sigmoid(w * masking.pixel_text_similarity(pixels, words) + b)
    regions = masking.l2_normalize(masking.masked_pool(pixels, masks))
    cosine = jnp.einsum("ijd,jd->ij", regions, masking.l2_normalize(words))
    variation = jax.vmap(jax.vmap(losses.total_variation))(masks)
    np.testing.assert_allclose(found.similarity, cosine, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.area, masks.mean(axis=(2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found.variation, variation, rtol=1e-5)


def test_gradient_is_finite_where_an_embedding_is_zero() -> None:
    pixels, texts, *rest = inputs(4)
    pixels, texts = pixels.at[0].set(0.0).at[1, 2, 3].set(0.0), texts.at[2].set(0.0)
    ours, theirs = (
        jax.jit(jax.grad(lambda p, f=f: weighted(f(p, texts, *rest))))(pixels)
        for f in (grounding.grounding_losses, plain)
    )
    assert relative_error(ours, np.asarray(theirs)) < 1e-5


@pytest.mark.parametrize(
    ("images", "texts", "pixels", "expected"),
    [
        (64, 1024, 56 * 56, (1, 1024)),
        (64, 16384, 56 * 56, (1, 1024)),
        (64, 1500, 56 * 56, (1, 768)),
        (64, 64, 56 * 56, (16, 64)),
        (6, 64, 56 * 56, (6, 64)),
        (7, 300, 56 * 56, (1, 300)),
        (64, 1024, 112 * 112, (1, 256)),
        (2, 9, 10**8, (1, 1)),
        (1, 1, 1, (1, 1)),
    ],
)
def test_tiles_fit_and_divide(
    images: int, texts: int, pixels: int, expected: tuple[int, int]
) -> None:
    image_tile, text_tile = grounding.tile_sizes(images, texts, pixels)
    assert (image_tile, text_tile) == expected
    assert images % image_tile == 0
    assert 4 * pixels * image_tile * text_tile <= grounding.TILE_BYTES or expected == (1, 1)


def test_given_tile_is_kept() -> None:
    assert grounding.tile_sizes(64, 1024, 56 * 56, 32) == (32, 32)
    assert grounding.tile_sizes(3, 5, 56 * 56, 32) == (3, 5)


def test_tile_of_no_texts_is_refused() -> None:
    with pytest.raises(InputError, match="text_tile=0"):
        grounding.tile_sizes(64, 1024, 56 * 56, 0)


def test_strips_of_one_device_are_the_whole() -> None:
    similarity = jax.random.uniform(jax.random.key(0), (5, 5), minval=-1.0)
    for scale in (1.0, 9.0):
        expected = losses.info_nce(similarity, jnp.array(scale))
        found = losses.strip_info_nce(similarity, jnp.array(scale))
        assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_own_similarity_is_the_diagonal() -> None:
    pixels, texts, *_ = inputs(3)
    every = masking.pixel_text_similarity(pixels, texts)
    np.testing.assert_allclose(
        masking.own_similarity(pixels, texts), masking.diagonal(every), atol=1e-6
    )
