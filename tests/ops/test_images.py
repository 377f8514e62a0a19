"""Normalisation, padding, and noise in erased rectangles."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from tcl_jax.ops.images import IMAGENET, center_pad, erase, normalize, renormalize

MEAN, STD = np.float32(IMAGENET) * 255
KEYS = jax.random.split(jax.random.key(7), 8)


def images(count: int = 4, height: int = 24, width: int = 20) -> jax.Array:
    pixels = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)
    return normalize(jnp.asarray(pixels))


def test_normalize() -> None:
    pixels = np.array([[[0, 128, 255]]], np.uint8)
    expected = (pixels - MEAN) / STD
    np.testing.assert_allclose(normalize(jnp.asarray(pixels)), expected, rtol=1e-6)
    done = jnp.asarray(expected, jnp.float32)
    np.testing.assert_array_equal(normalize(done), done)


def test_renormalize() -> None:
    pixels = jnp.asarray(np.random.default_rng(1).integers(0, 256, (2, 5, 4, 3), np.uint8))
    others = ((0.1, 0.2, 0.3), (0.5, 1.0, 2.0))
    found = renormalize(normalize(pixels), IMAGENET, others)
    np.testing.assert_allclose(found, normalize(pixels, others), atol=1e-5)


def test_center_pad() -> None:
    padded, (top, left) = center_pad(jnp.ones((1, 17, 16, 2)), 16)
    assert padded.shape == (1, 32, 16, 2) and (top, left) == (7, 0)
    np.testing.assert_array_equal(np.flatnonzero(padded[0, :, 0, 0]), np.arange(7, 24))


# ---------------------------------------------------------------------------------------- erasing


def test_what_lies_outside_stays_and_all_inside_is_replaced() -> None:
    image = images()
    boxes = jnp.array([[3, 5, 7, 9], [0, 0, 24, 20], [5, 5, 0, 4], [22, 18, 2, 2]], jnp.int32)
    result = np.asarray(erase(image, boxes, KEYS[:4]))
    assert result.dtype == np.float32
    for row, (top, left, height, width) in enumerate(np.asarray(boxes)):
        inside = np.zeros((24, 20), bool)
        inside[top : top + height, left : left + width] = True
        same = result[row] == np.asarray(image[row])
        assert same[~inside].all()
        assert not same[inside].any()


def test_noise_is_standard_normal_beyond_the_range_of_bytes() -> None:
    """Values of every pixel and channel of their own, mean 0, variance 1, unclipped."""
    boxes = jnp.tile(jnp.array([[0, 0, 64, 64]], jnp.int32), (8, 1))
    noise = np.asarray(erase(jnp.zeros((8, 64, 64, 3)), boxes, KEYS))
    count = noise.size
    assert abs(noise.mean()) < 4 / np.sqrt(count)
    assert abs(noise.var() - 1) < 4 * np.sqrt(2 / count)
    assert abs(np.mean(np.abs(noise) < 1) - 0.6827) < 4 * 0.4654 / np.sqrt(count)
    bytes_range = (255 - MEAN) / STD
    assert (noise.max(axis=(0, 1, 2)) > bytes_range).all()
    assert len(np.unique(noise)) > 0.98 * count
    channels = np.corrcoef(noise.reshape(-1, 3).T)
    assert np.abs(channels[np.triu_indices(3, 1)]).max() < 4 / np.sqrt(count / 3)
    pictures = np.corrcoef(noise.reshape(8, -1))
    assert np.abs(pictures[np.triu_indices(8, 1)]).max() < 5 / np.sqrt(count / 8)


def test_noise_of_an_image_depends_on_its_key_alone() -> None:
    image, keys = images(2), KEYS[:2]
    whole = jnp.array([[0, 0, 24, 20]] * 2, jnp.int32)
    part = jnp.array([[2, 3, 10, 11]] * 2, jnp.int32)
    everything = erase(image, whole, keys)
    np.testing.assert_array_equal(everything, erase(-image, whole, keys))
    np.testing.assert_array_equal(everything[1:], erase(image[1:], whole[1:], keys[1:]))
    inside = erase(image, part, keys)[:, 2:12, 3:14]
    np.testing.assert_array_equal(inside, everything[:, 2:12, 3:14])
    assert (everything != erase(image, whole, KEYS[2:4])).all()
