"""Resizing against OpenCV and hand-made values."""

from __future__ import annotations

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.ops.resize import (
    gather,
    multiply,
    resize,
    resize_matrix,
    resize_nearest,
)


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


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_products_of_accelerators_equal_gathers_of_cpus(method: str, align_corners: bool) -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 8, 3)), jnp.float32)
    products, gathers = (f(x, (11, 3), method, align_corners) for f in (multiply, gather))
    np.testing.assert_allclose(products, gathers, atol=1e-5)
    resized = jax.jit(lambda x: resize(x, (11, 3), method=method, align_corners=align_corners))
    for platform in ("cpu", "tpu", "cuda"):
        lowered = resized.trace(x).lower(lowering_platforms=(platform,)).as_text()
        assert ("dot_general" in lowered) == (platform != "cpu")
    np.testing.assert_allclose(resized(x), gathers, atol=1e-6)


def test_memory_holds_nothing_but_the_result() -> None:
    x = jax.ShapeDtypeStruct((1, 112, 112, 24), jnp.float32)
    compiled = jax.jit(lambda x: resize(x, (448, 448))).lower(x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 448 * 112 * 24 / 10


def test_same_size_gradient_and_unknown_method() -> None:
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(resize(x, (2, 2)), x)
    gradient = jax.grad(lambda x: resize(x, (5, 5)).sum())(x)
    np.testing.assert_allclose(gradient.sum(), 25, rtol=1e-5)
    with pytest.raises(ValueError, match="'lanczos' is unknown"):
        resize(x, (3, 3), method="lanczos")


@pytest.mark.parametrize("shape", [(4, 9), (4, 6), (7, 5), (2, 3), (1, 2)])
def test_nearest_takes_the_sample_that_holds_the_corner(shape: tuple[int, int]) -> None:
    """As PyTorch's interpolate, of which OpenCV's INTER_NEAREST has the same rule."""
    x = np.random.default_rng(0).normal(size=(2, 3, 1)).astype(np.float32)
    expected = cv2.resize(x, shape[::-1], interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(resize_nearest(jnp.asarray(x), shape)[..., 0], expected)
