"""Convolutions in fewer multiplications against XLA's own."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.ops import convolution
from tcl_jax.ops.convolution import ORDINARY, UPSAMPLED, conv3x3, upsampled_conv3x3
from tcl_jax.ops.resize import resize_nearest
from tests.devices import run_on_eight_devices
from tests.reference import relative_error

Convolution = Callable[[jax.Array, jax.Array], jax.Array]


def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def plain_upsampled(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return plain(resize_nearest(x, [2 * side for side in x.shape[1:3]]), kernel)


def inputs(*shape: int, results: int = 5) -> tuple[jax.Array, jax.Array]:
    x = jax.random.normal(jax.random.key(0), shape)
    return x, jax.random.normal(jax.random.key(1), (3, 3, shape[-1], results))


def with_gradients(f: Convolution) -> Callable[[jax.Array, jax.Array], list[jax.Array]]:
    def both(x: jax.Array, kernel: jax.Array) -> list[jax.Array]:
        y, gradients = jax.vjp(f, x, kernel)
        return [y, *gradients(jax.random.normal(jax.random.key(2), y.shape).astype(y.dtype))]

    return jax.jit(both)


PAIRS = [(conv3x3, plain), (upsampled_conv3x3, plain_upsampled)]
both_operations = pytest.mark.parametrize(("f", "expected"), PAIRS, ids=["3x3", "upsampled"])


def test_algorithms_of_one_dimension_are_exact() -> None:
    rng = np.random.default_rng(0)
    kernel, samples, few = rng.normal(size=3), rng.normal(size=6), rng.normal(size=4)
    for form, given, whole in (
        (ORDINARY, samples, samples),
        (UPSAMPLED, few, np.repeat(few, 2)[1:-1]),
    ):
        found = form.outputs @ ((form.kernels @ kernel) * (form.inputs @ given))
        np.testing.assert_allclose(found, np.correlate(whole, kernel), rtol=1e-12)
    assert (len(ORDINARY.kernels) ** 2, len(UPSAMPLED.kernels) ** 2) == (36, 25)


@both_operations
@pytest.mark.parametrize(("tiles", "shape"), [(256, (3, 1, 2, 4)), (3, (2, 9, 7, 4))], ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 1e-2)], ids=["float32", "bfloat16"]
)
def test_values_and_gradients(
    f: Convolution,
    expected: Convolution,
    tiles: int,
    shape: tuple[int, ...],
    dtype: jnp.dtype,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(convolution, "STRIP_TILES", tiles)
    x, kernel = inputs(*shape)
    found = with_gradients(f)(x.astype(dtype), kernel)
    assert [a.dtype for a in found] == [dtype, dtype, jnp.float32]
    for a, b in zip(found, with_gradients(expected)(x, kernel), strict=True):
        assert relative_error(a, np.asarray(b)) < tolerance


def test_sub_pixel_form_of_accelerators() -> None:
    x, kernel = inputs(2, 5, 4, 4)
    found = with_gradients(convolution._sub_pixel)(x, kernel)
    for a, b in zip(found, with_gradients(plain_upsampled)(x, kernel), strict=True):
        assert relative_error(a, np.asarray(b)) < 2e-6


@both_operations
def test_float32_is_enough_for_many_channels(f: Convolution, expected: Convolution) -> None:
    x, kernel = inputs(1, 8, 8, 768, results=3)
    with jax.enable_x64(True):
        exact = expected(jnp.asarray(x, jnp.float64), jnp.asarray(kernel, jnp.float64))
        exact = np.asarray(exact)
    assert exact.dtype == np.float64
    assert relative_error(f(x, kernel), exact) < (1e-5 if f is conv3x3 else 2e-6)


@both_operations
def test_each_platform_gets_its_form(f: Convolution, expected: Convolution) -> None:
    del expected
    traced = with_gradients(f).trace(*inputs(1, 8, 8, 4))
    texts = {
        name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda", "tpu")
    }
    assert "stablehlo.convolution" not in texts["cpu"]
    assert "stablehlo.dot_general" in texts["cpu"]
    for name in ("cuda", "tpu"):
        # The result and the two gradients.
        assert texts[name].count("stablehlo.convolution(") == 3
        assert "stablehlo.dot_general" not in texts[name]


def test_fewer_multiplications() -> None:
    def flops(f: Convolution) -> float:
        return jax.jit(f).lower(x, kernel).compile().cost_analysis()["flops"]

    # In one strip, for XLA counts the body of a loop once.
    x, kernel = inputs(1, 32, 32, 128, results=128)
    # 4/9 of them; a little less, as what meets the padding is not counted.
    assert 0.40 < flops(convolution._sub_pixel) / flops(plain_upsampled) < 0.46
    # 25/144 and 1/4, and the transforms.
    assert 0.17 < flops(upsampled_conv3x3) / flops(plain_upsampled) < 0.22
    assert 0.25 < flops(conv3x3) / flops(plain) < 0.35


@both_operations
def test_memory_does_not_grow_with_the_transformed_tiles(
    f: Convolution, expected: Convolution, monkeypatch: pytest.MonkeyPatch
) -> None:
    del expected

    def temporary() -> int:
        program = with_gradients(f).lower(*inputs(1, 128, 128, 16, results=16)).compile()
        return program.memory_analysis().temp_size_in_bytes

    in_strips = temporary()
    monkeypatch.setattr(convolution, "STRIP_TILES", 10**6)
    assert in_strips < 0.75 * temporary()


ON_EIGHT_DEVICES = """
import jax, numpy as np
from tcl_jax.parallel.mesh import batch_sharded, data_mesh, replicated
from tests.devices import collectives
from tests.ops.test_convolution import PAIRS, inputs, with_gradients

mesh = data_mesh()
assert mesh.size == 8
rows, everywhere = batch_sharded(mesh), replicated(mesh)
given = inputs(16, 11, 12, 4)
placed = [jax.device_put(a, s) for a, s in zip(given, (rows, everywhere))]
for f, expected in PAIRS:
    forward = jax.jit(f, out_shardings=rows).lower(*placed).compile().as_text()
    assert "f32[2,11,12,4]" in forward and collectives(forward) == []
    shardings = [rows, rows, everywhere]
    both = jax.jit(with_gradients(f), out_shardings=shardings).lower(*placed).compile()
    assert {kind for kind, _ in collectives(both.as_text())} == {"all-reduce"}
    for a, b in zip(both(*placed), with_gradients(expected)(*given), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
"""


def test_no_pixel_crosses_eight_devices() -> None:
    run_on_eight_devices(ON_EIGHT_DEVICES)
