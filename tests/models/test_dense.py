"""Ways to read CLIP's last block, against the papers' formulas in NumPy, head by head."""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.models.attention import (
    NEIGHBOURHOOD_SIGMA,
    correlative_self_attention,
    neighbourhood_attention,
    neighbourhood_bias,
)
from tcl_jax.models.clip import CLIPConfig, encode_image
from tcl_jax.models.methods import METHODS
from tcl_jax.models.vit import project
from tcl_jax.weights.clip import clip_shapes
from tests.reference import relative_error

# As many patches as a ViT-B/16 sees at 224 pixels, and two heads.
CONFIG = CLIPConfig(16, 56, 4, 128, 2, 64, 1, context_length=4, vocab_size=8)
HEADS = 2
GRIDS = [(14, 14), (9, 17)]
DENSE = ["maskclip", "sclip", "naclip", "clearclip"]


@pytest.fixture(scope="module")
def params() -> Any:
    """Random weights, biases and gains included, under which attention is far from even."""
    draw = np.random.default_rng(0).normal

    def leaf(path: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
        gain = path[-1].key == "scale"
        return jnp.asarray(draw(gain, 0.15, shape.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, clip_shapes(CONFIG))


def encode(params: Any, grid: tuple[int, int], name: str, dtype: Any = jnp.float32) -> Any:
    """Tokens that enter the last block, and the patches after it, before and after projection."""
    shape = (2, CONFIG.patch_size * grid[0], CONFIG.patch_size * grid[1], 3)
    image = jax.random.normal(jax.random.key(2), shape)
    method = METHODS[name](CONFIG, dtype)
    vision, visual = method.clip_model.vision, params["visual"]

    @jax.jit
    def run(params: Any, image: jax.Array) -> Any:
        features = encode_image(method.clip_model, params, image).features
        patches = method.patch_tokens(params, features)
        return (
            features.after(1),
            patches,
            project(vision, visual, patches),
        )

    return run(params, image)


def layer_norm(x: np.ndarray, p: Any) -> np.ndarray:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * p["norm"]["scale"] + p["norm"]["bias"]


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def omega(grid: tuple[int, int]) -> np.ndarray:
    places = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    table = np.zeros((1 + len(places), 1 + len(places)))
    for i, p in enumerate(places, start=1):
        for j, r in enumerate(places, start=1):
            table[i, j] = math.exp(-((p[0] - r[0]) ** 2 + (p[1] - r[1]) ** 2) / (2 * 5**2))
    return table


def weights_in_numpy(name: str, q: np.ndarray, k: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    scale = q.shape[-1] ** -0.5
    if name == "maskclip":
        return np.eye(len(q))
    if name == "sclip":
        return softmax(q @ q.T * scale) + softmax(k @ k.T * scale)
    if name == "clearclip":
        return softmax(q @ q.T * scale)
    return softmax(k @ k.T * scale + omega(grid))


def last_block_in_numpy(
    name: str, x: np.ndarray, p: Any, grid: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [l, c] of one image after the last block, and the weights of all heads."""
    projection, out = p["attn"]["in_proj"], p["attn"]["out_proj"]
    normed, attended, seen = layer_norm(x, p["ln_1"]), out["bias"].copy(), []
    for head in range(HEADS):
        q, k, v = (
            normed @ projection["kernel"][:, i, head] + projection["bias"][i, head]
            for i in range(3)
        )
        seen.append(weights_in_numpy(name, q, k, grid))
        attended = attended + seen[-1] @ v @ out["kernel"][head]
    if name in ("naclip", "clearclip"):
        return attended, np.array(seen)
    x = x + attended
    hidden = layer_norm(x, p["ln_2"]) @ p["mlp"]["c_fc"]["kernel"] + p["mlp"]["c_fc"]["bias"]
    hidden = hidden / (1 + np.exp(-1.702 * hidden))
    x = x + hidden @ p["mlp"]["c_proj"]["kernel"] + p["mlp"]["c_proj"]["bias"]
    return x, np.array(seen)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", DENSE)
def test_matches_the_formula(params: Any, name: str, grid: tuple[int, int]) -> None:
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), params["visual"])
    for tokens, patches, projected in zip(*encode(params, grid, name), strict=True):
        expected, weights = last_block_in_numpy(
            name, np.asarray(tokens, np.float64), exact["blocks_1"], grid
        )
        assert weights.max() > 5 / len(tokens), "attention this even would hide a mistake"
        expected = expected[1:].reshape(*grid, -1)
        assert relative_error(patches, expected) < 1e-5
        expected = layer_norm(expected, exact["ln_post"]) @ exact["proj"]
        assert relative_error(projected, expected) < 1e-5


@pytest.mark.parametrize("grid", [*GRIDS, (1, 3)])
def test_the_bias_of_neighbours(grid: tuple[int, int]) -> None:
    bias = neighbourhood_bias(grid, NEIGHBOURHOOD_SIGMA)
    np.testing.assert_allclose(bias, omega(grid), atol=1e-6)
    assert bias.dtype == jnp.float32


@pytest.mark.parametrize("attention", [correlative_self_attention, neighbourhood_attention((3, 4))])
def test_softmax_is_float32_whatever_the_dtype(attention: Any) -> None:
    half = jnp.ones((1, 13, 2, 4), jnp.bfloat16)
    steps = str(jax.make_jaxpr(attention)(half, half, half))
    assert set(re.findall(r":(\w+)\[[\d,]*\] = exp ", steps)) == {"f32"}


@pytest.mark.parametrize("name", DENSE)
def test_bfloat16_stays_close(params: Any, name: str) -> None:
    exact, rough = (encode(params, (9, 17), name, x)[2] for x in (jnp.float32, jnp.bfloat16))
    rough = rough.astype(jnp.float32)
    sizes = jnp.linalg.norm(exact, axis=-1) * jnp.linalg.norm(rough, axis=-1)
    assert 0.995 < float(((exact * rough).sum(-1) / sizes).min()) < 1 - 1e-7
