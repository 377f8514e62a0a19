"""Resizing against OpenCV and hand-made values."""

from __future__ import annotations

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.ops.resize import resize, resize_matrix, upsample_nearest


@pytest.mark.parametrize(("method", "flag"), [("bilinear", 1), ("bicubic", 2)])
@pytest.mark.parametrize("shape", [(13, 9), (7, 5), (20, 4), (14, 14)])
def test_like_opencv(method: str, flag: int, shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).normal(size=(7, 7, 3)).astype(np.float32)
    expected = cv2.resize(x, shape[::-1], interpolation=flag)
    np.testing.assert_allclose(resize(jnp.asarray(x), shape, method=method), expected, atol=2e-5)


def test_align_corners_keeps_the_corners() -> None:
    matrix = resize_matrix(3, 5, method="bilinear", align_corners=True)
    expected = [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]]
    np.testing.assert_allclose(matrix, expected)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("sizes", [(1, 4), (4, 1), (7, 3), (3, 7)])
def test_weights_sum_to_one(method: str, align_corners: bool, sizes: tuple[int, int]) -> None:
    matrix = resize_matrix(*sizes, method=method, align_corners=align_corners)
    assert matrix.shape == sizes[::-1]
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-6)


def test_same_size_and_unknown_method() -> None:
    x = jnp.ones((2, 3, 4, 1))
    np.testing.assert_array_equal(resize(x, (3, 4)), x)
    with pytest.raises(ValueError, match="'lanczos' is unknown"):
        resize_matrix(2, 3, method="lanczos", align_corners=False)


def test_nearest_and_gradient() -> None:
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(
        upsample_nearest(x, 2)[0, :, :, 0], np.kron(x[0, :, :, 0], np.ones((2, 2)))
    )
    gradient = jax.grad(lambda x: resize(x, (5, 5)).sum())(x)
    np.testing.assert_allclose(gradient.sum(), 25, rtol=1e-5)
