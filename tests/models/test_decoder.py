"""The decoder against the same layers written plainly."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.models.decoder import decode, init_decoder
from tcl_jax.models.layers import exact_gelu, layer_norm
from tcl_jax.ops.resize import resize_nearest
from tests.reference import relative_error


def plain_decode(params: Any, x: jax.Array, *, dtype: Any = jnp.float32) -> jax.Array:
    for stage in range(2):
        x = resize_nearest(x, [2 * side for side in x.shape[1:3]])
        for layer in range(2):
            p = params[f"convs_{stage}_{layer}"]
            y = exact_gelu(layer_norm(x, p["norm"], 1e-5)).astype(dtype)
            y = jax.lax.conv_general_dilated(
                y, p["conv"]["kernel"].astype(dtype), (1, 1), "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )  # fmt: skip
            x = x + jnp.tanh(p["gate"]) * (y + p["conv"]["bias"])
    return x


X = jax.random.normal(jax.random.key(0), (2, 3, 5, 8))
INITIAL = init_decoder(jax.random.key(1), 8)


def test_it_starts_as_nearest_upsampling() -> None:
    assert INITIAL["convs_1_1"]["conv"]["kernel"].shape == (3, 3, 8, 8)
    np.testing.assert_array_equal(decode(INITIAL, X), X.repeat(4, axis=1).repeat(4, axis=2))


@pytest.fixture(scope="module")
def opened() -> Any:
    # And no zeros, lest the convolutions have no part in the result.
    return jax.tree.map(lambda p: p + 0.5 * np.cos(np.arange(p.size)).reshape(p.shape), INITIAL)


def test_values_and_gradients_are_those_of_the_plain_layers(opened: Any) -> None:
    given = opened, X, jax.random.normal(jax.random.key(2), (2, 12, 20, 8))

    @partial(jax.jit, static_argnums=0)
    def both(function: Any, params: Any, x: jax.Array, cotangent: jax.Array) -> Any:
        y, gradients = jax.vjp(function, params, x)
        return y, gradients(cotangent)

    found = both(decode, *given)
    # In float32 the plain layers are further from the truth: XLA may add up all 480 positions of a
    # gradient one after the other.
    with jax.enable_x64(True):
        given = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), given)
        expected = both(partial(plain_decode, dtype=jnp.float64), *given)
    assert found[0].shape == (2, 12, 20, 8)
    pairs = zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    for (path, a), b in pairs:
        assert relative_error(a, np.asarray(b)) < 1e-5, path


def test_bfloat16(opened: Any) -> None:
    y = jax.jit(partial(decode, dtype=jnp.bfloat16))(opened, X.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert relative_error(y, np.asarray(plain_decode(opened, X))) < 3e-2
