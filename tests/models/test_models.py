"""Sizes, shapes and small truths of the modules."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.convert.clip import clip_shapes
from tcl_jax.convert.tcl import tcl_shapes
from tcl_jax.models.attention import causal_attention, full_attention, self_only_attention
from tcl_jax.models.clip import VARIANTS, CLIPConfig, encode_image, encode_text
from tcl_jax.models.decoder import Decoder
from tcl_jax.models.tcl import TCL, embed_pixels, ground
from tcl_jax.models.vision import patch_grid, resize_positions
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


def test_decoder_starts_as_nearest_upsampling() -> None:
    x = jax.random.normal(jax.random.key(0), (1, 3, 2, 8))
    decoder = Decoder()
    params = decoder.init(jax.random.key(1), x)
    np.testing.assert_array_equal(
        decoder.apply(params, x), jnp.repeat(jnp.repeat(x, 4, axis=1), 4, axis=2)
    )


def test_attention_kinds() -> None:
    query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 5, 2, 4))
    np.testing.assert_array_equal(self_only_attention(query, key, value), value)
    same = jnp.broadcast_to(value[:, :1], value.shape)
    np.testing.assert_allclose(full_attention(query, key, same), same, rtol=1e-5)
    causal = causal_attention(query, key, value)
    np.testing.assert_allclose(causal[:, 0], value[:, 0], rtol=1e-5)
    later = value.at[:, 3:].set(0)
    np.testing.assert_allclose(causal_attention(query, key, later)[:, :3], causal[:, :3])


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
    whole = encode_text(model.clip_model, clip, tokens)
    short = encode_text(model.clip_model, clip, tokens[:, :length])
    np.testing.assert_allclose(short, whole, atol=1e-5)
    with pytest.raises(ValueError, match="80 tokens are longer than this CLIP's context of 77"):
        encode_text(model.clip_model, clip, jnp.ones((1, 80), jnp.int32))


def test_sizes_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="not a multiple of"):
        CLIPConfig(32, 65, 16, 128, 2, 64, 2)
    with pytest.raises(ValueError, match="vision_width=129"):
        CLIPConfig(32, 64, 16, 129, 2, 64, 2)
    with pytest.raises(ValueError, match="activation='relu'"):
        CLIPConfig(32, 64, 16, 128, 2, 64, 2, activation="relu")
    with pytest.raises(ValueError, match=r"70x64 pixels.*patches of 16"):
        patch_grid((1, 70, 64, 3), 16)
    with pytest.raises(ValueError, match="tap_layer=12"):
        tcl_shapes(VARIANTS["ViT-B/16"], 12)


def test_bfloat16_stays_close_and_returns_float32() -> None:
    model, learned, clip = reference_model()
    image = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    texts = jax.random.normal(jax.random.key(1), (2, 32))
    half = TCL(model.config, model.tap_layer, jnp.bfloat16)
    variables = {"params": {**learned, "clip": clip}}
    exact, rough = model.apply(variables, image, texts), half.apply(variables, image, texts)
    assert rough.mask_logits.dtype == rough.pixel_embeddings.dtype == jnp.float32
    assert float(jnp.abs(exact.mask_logits - rough.mask_logits).max()) < 0.3


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_network_of_float32_asks_for_exact_products(dtype: Any) -> None:
    """Whoever applies it, by the functions of this room."""
    model, learned, clip = reference_model()
    model = model.clone(dtype=dtype)
    params = {**learned, "clip": clip}
    image, tokens = jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 8), jnp.int32)
    texts = jnp.zeros((2, model.config.embed_dim))
    with jax.default_matmul_precision("default"):  # conftest's is another
        traced = [
            jax.make_jaxpr(partial(encode_image, model.clip_model))(clip, image),
            jax.make_jaxpr(partial(encode_text, model.clip_model))(clip, tokens),
            jax.make_jaxpr(partial(embed_pixels, model))(params, image),
            jax.make_jaxpr(partial(ground, model))(params, image, texts),
        ]
    exact = [{exact for _, exact in products(program.jaxpr)} for program in traced]
    if dtype == jnp.float32:
        assert exact == [{True}] * 4
    else:
        assert False in exact[3]  # of all pixels with all texts
