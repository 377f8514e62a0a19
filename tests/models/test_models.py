"""Sizes, shapes and small truths of the networks."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.models import attention as attentions
from tcl_jax.models.attention import causal_attention, masked_attention, softmax_attention
from tcl_jax.models.clip import VARIANTS, CLIPConfig, encode_image, encode_text
from tcl_jax.models.tcl import TCL, ground
from tcl_jax.models.vit import ViT, image_grid, resize_positions
from tcl_jax.weights.clip import clip_shapes
from tcl_jax.weights.tcl import tcl_shapes
from tests.reference import arrays, products, reference_model

# Radford et al., the parameter counts of the published models.
PARAMETERS = {
    "ViT-B/32": 151_277_313,
    "ViT-B/16": 149_620_737,
    "ViT-L/14": 427_616_513,
    "ViT-L/14@336px": 427_944_193,
}


def count(tree: object) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_published_sizes(name: str) -> None:
    assert count(clip_shapes(VARIANTS[name])) == PARAMETERS[name]


def test_learned_parameters_of_the_papers_model() -> None:
    shapes = tcl_shapes(VARIANTS["ViT-B/16"], 11)
    assert count(shapes["grounder"]["blocks_0"]) == 7_087_872
    # Four 768 -> 768 3x3 convolutions with bias, norm and gate.
    assert count(shapes["grounder"]["decoder"]) == 4 * (768 * 768 * 9 + 3 * 768 + 1)
    assert set(shapes) == {"grounder", "sim2mask", "tclf_logit_scale", "tcli_logit_scale"}


def test_random_parameters_have_the_spread_of_openai_s() -> None:
    sizes = CLIPConfig(32, 64, 16, 128, 2, 64, 2, context_length=8, vocab_size=500)
    params = jax.jit(TCL(sizes).init)(jax.random.key(0))
    visual, text = params["clip"]["visual"], params["clip"]["text"]
    for kernel, spread in (
        (visual["patch_kernel"], (3 * 16 * 16) ** -0.5),
        (visual["positional_embedding"], 128**-0.5),
        (visual["blocks_1"]["attn"]["in_proj"]["kernel"], 128**-0.5),
        (visual["blocks_1"]["mlp"]["c_proj"]["kernel"], 512**-0.5),
        (text["token_embedding"], 0.02),
        (params["grounder"]["decoder"]["convs_1_0"]["conv"]["kernel"], (9 * 128) ** -0.5),
    ):
        assert float(kernel.std()) == pytest.approx(spread, rel=0.05)
        assert kernel.dtype == jnp.float32
    assert visual["blocks_1"]["attn"]["in_proj"]["kernel"].shape == (128, 3, 2, 64)
    assert not (
        visual["blocks_0"]["mlp"]["c_fc"]["kernel"] == visual["blocks_1"]["mlp"]["c_fc"]["kernel"]
    ).any()
    # The grounder starts as what it is a copy of.
    jax.tree.map(np.testing.assert_array_equal, params["grounder"]["blocks_0"], visual["blocks_1"])
    np.testing.assert_array_equal(params["grounder"]["proj"], visual["proj"])


HIDDEN = np.arange(7) >= np.array([[5], [2]])


@pytest.mark.parametrize("most", [4 * 3 * 7 * 7 - 1, 4 * 3 * 7 * 7])  # bytes at a time
@pytest.mark.parametrize(
    "attention", [softmax_attention, causal_attention, masked_attention(jnp.asarray(HIDDEN))]
)
def test_attention_matches_the_formula_head_by_head(
    attention: Any, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attentions, "MOST_BYTES", most)
    monkeypatch.setattr(attentions, "ROWS", 3)
    query, key, value = np.random.default_rng(0).normal(size=(3, 2, 7, 3, 4)).astype(np.float32)
    found = attention(*map(jnp.asarray, (query, key, value)))
    for i, head in np.ndindex(2, 3):
        q, k, v = (x[i, :, head] for x in (query, key, value))
        weights = np.exp(q @ k.T / 2)
        if attention is causal_attention:
            weights = np.tril(weights)
        elif attention is not softmax_attention:
            weights = np.where(HIDDEN[i], 0, weights)
        expected = weights @ v / weights.sum(-1, keepdims=True)
        np.testing.assert_allclose(found[i, :, head], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "heads", "share"),
    [
        (785, 12, 1.5),  # a ViT-B/16 at 448 pixels
        (1029, 12, 1.5),  # a ViT-B/14 with registers, at once
        (3137, 6, 0.3),  # a ViT-S/8, of whose weights a block is in memory
    ],
)
def test_attention_makes_no_copy_of_its_weights(tokens: int, heads: int, share: float) -> None:
    """By what XLA plans for two images; nothing is run."""
    # Of other dtypes XLA on CPUs has kernels of all of it, and does not tell what these hold.
    part = jax.ShapeDtypeStruct((2, tokens, heads, 64), jnp.float16)
    memory = jax.jit(softmax_attention).lower(part, part, part).compile().memory_analysis()
    assert memory.temp_size_in_bytes < share * 2 * 4 * heads * tokens**2


def test_positions_of_the_trained_grid_are_untouched() -> None:
    positions = jax.random.normal(jax.random.key(0), (1 + 9, 4))
    assert resize_positions(positions, (3, 3)) is positions
    resized = resize_positions(positions, (5, 2))
    assert resized.shape == (11, 4)
    np.testing.assert_array_equal(resized[0], positions[0])


def test_texts_may_be_shorter_than_the_context() -> None:
    model, _, clip = reference_model()
    tokens = arrays("forward")["tokens"]
    length = int((tokens > 0).sum(axis=1).max())
    embed = jax.jit(partial(encode_text, model.clip_model))
    whole, short = embed(clip, tokens), embed(clip, tokens[:, :length])
    np.testing.assert_allclose(short, whole, atol=1e-5)
    with pytest.raises(ValueError, match="80 tokens are longer than this tower's context of 77"):
        encode_text(model.clip_model, clip, jnp.ones((1, 80), jnp.int32))


def test_sizes_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="not a multiple of"):
        CLIPConfig(32, 65, 16, 128, 2, 64, 2)
    with pytest.raises(ValueError, match="vision_width=129"):
        CLIPConfig(32, 64, 16, 129, 2, 64, 2)
    with pytest.raises(ValueError, match="activation='relu'"):
        CLIPConfig(32, 64, 16, 128, 2, 64, 2, activation="relu")
    with pytest.raises(ValueError, match=r"70x64 pixels.*patches of 16"):
        image_grid(ViT(), (1, 70, 64, 3), 16)
    with pytest.raises(ValueError, match="feature_layer=12"):
        TCL(VARIANTS["ViT-B/16"], 12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_network_of_float32_asks_for_exact_products(dtype: Any) -> None:
    """Whoever applies it, by the functions of this room."""
    model, learned, clip = reference_model()
    model = dataclasses.replace(model, dtype=dtype)
    params = {**learned, "clip": clip}
    image, tokens = jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 8), jnp.int32)
    texts = jnp.zeros((2, model.config.embed_dim))
    with jax.default_matmul_precision("default"):  # conftest's is another
        traced = [
            jax.make_jaxpr(partial(encode_image, model.clip_model))(clip, image),
            jax.make_jaxpr(partial(encode_text, model.clip_model))(clip, tokens),
            jax.make_jaxpr(model.dense_features)(params, image),
            jax.make_jaxpr(partial(ground, model))(params, image, texts),
        ]
    exact = [{exact for _, exact in products(program.jaxpr)} for program in traced]
    if dtype == jnp.float32:
        assert exact == [{True}] * 4
    else:
        assert False in exact[3]  # of all pixels with all texts


def test_bfloat16_stays_close_and_returns_float32() -> None:
    model, learned, clip = reference_model()
    image = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    texts = jax.random.normal(jax.random.key(1), (2, 32))
    half = dataclasses.replace(model, dtype=jnp.bfloat16)
    params = {**learned, "clip": clip}
    exact, rough = (jax.jit(partial(ground, m))(params, image, texts) for m in (model, half))
    assert rough.mask_logits.dtype == rough.pixel_embeddings.dtype == jnp.float32
    assert float(jnp.abs(exact.mask_logits - rough.mask_logits).max()) < 0.3
