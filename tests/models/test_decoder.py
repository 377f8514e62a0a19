"""The decoder against the same layers written plainly."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.models.decoder import Decoder
from tcl_jax.models.layers import LayerNorm, exact_gelu
from tcl_jax.ops.resize import upsample_nearest
from tests.reference import relative_error


class PlainLayer(nn.Module):
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gate = self.param("gate", nn.initializers.zeros, ())
        y = exact_gelu(LayerNorm(name="norm")(x))
        y = nn.Conv(x.shape[-1], (3, 3), padding="SAME", dtype=self.dtype, name="conv")(y)
        return x + jnp.tanh(gate).astype(y.dtype) * y


class PlainDecoder(nn.Module):
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.convs = [(PlainLayer(self.dtype), PlainLayer(self.dtype)) for _ in range(2)]

    def __call__(self, x: jax.Array) -> jax.Array:
        for first, second in self.convs:
            x = second(first(upsample_nearest(x, 2)))
        return x


X = jax.random.normal(jax.random.key(0), (2, 3, 5, 8))


@pytest.fixture(scope="module")
def initial() -> tuple[Any, Any]:
    """Parameters of the decoder, and of the plain one, from the same key."""
    init = jax.jit(lambda: [d.init(jax.random.key(1), X) for d in (Decoder(), PlainDecoder())])
    found, expected = init()
    return found, expected


def test_parameters_are_those_of_the_plain_layers(initial: tuple[Any, Any]) -> None:
    found, expected = initial
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert found["params"]["convs_1_1"]["conv"]["kernel"].shape == (3, 3, 8, 8)


def open_gates(params: Any) -> Any:
    # And no zeros, lest the convolutions have no part in the result.
    return jax.tree.map(lambda p: p + 0.5 * np.cos(np.arange(p.size)).reshape(p.shape), params)


def test_values_and_gradients_are_those_of_the_plain_layers(initial: tuple[Any, Any]) -> None:
    cotangent = jax.random.normal(jax.random.key(2), (2, 12, 20, 8))
    given = open_gates(initial[1]), X, cotangent

    @partial(jax.jit, static_argnums=0)
    def both(decoder: nn.Module, params: Any, x: jax.Array, cotangent: jax.Array) -> Any:
        y, gradients = jax.vjp(decoder.apply, params, x)
        return y, gradients(cotangent)

    found = both(Decoder(), *given)
    # In float32 the plain layers are further from the truth: XLA may add up all 480 positions of a
    # gradient one after the other.
    with jax.enable_x64(True):
        given = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), given)
        expected = both(PlainDecoder(jnp.float64), *given)
    assert found[0].shape == (2, 12, 20, 8)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    for (path, a), b in pairs:
        assert relative_error(a, np.asarray(b)) < 1e-5, path


def test_bfloat16(initial: tuple[Any, Any]) -> None:
    params = open_gates(initial[1])
    y = jax.jit(Decoder(dtype=jnp.bfloat16).apply)(params, X.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert relative_error(y, np.asarray(jax.jit(PlainDecoder().apply)(params, X))) < 3e-2
