"""Attention against its formula, and the memory that it takes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from tcl_jax.models.attention import causal_attention, full_attention


def test_full_and_causal_match_the_formula_head_by_head() -> None:
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(2, 7, 3, 4)).astype(np.float32) for _ in range(3))
    arrays = [jnp.asarray(x) for x in (query, key, value)]
    full, causal = (np.asarray(f(*arrays)) for f in (full_attention, causal_attention))
    for i in range(2):
        for head in range(3):
            q, k, v = (x[i, :, head] for x in (query, key, value))
            weights = np.exp(q @ k.T / 2)
            expected = weights @ v / weights.sum(-1, keepdims=True)
            np.testing.assert_allclose(full[i, :, head], expected, atol=1e-5)
            weights = np.tril(weights)
            expected = weights @ v / weights.sum(-1, keepdims=True)
            np.testing.assert_allclose(causal[i, :, head], expected, atol=1e-5)


def test_no_copy_of_the_weights_is_made() -> None:
    # The tokens and heads of a ViT-B/16 at 448 pixels.
    tokens, heads = 785, 12
    part = jax.ShapeDtypeStruct((1, tokens, heads, 64), jnp.float32)
    compiled = jax.jit(full_attention).lower(part, part, part).compile()
    weights = 4 * heads * tokens**2
    assert compiled.memory_analysis().temp_size_in_bytes < 1.2 * weights
