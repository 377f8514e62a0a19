"""SCLIP, NACLIP and ClearCLIP against their authors' code, and what all methods on a CLIP share."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.errors import InputError
from tcl_jax.inference.engine import ImageTask, MaskEngine
from tcl_jax.inference.label_rule import LabelRule
from tcl_jax.inference.masks import MaskOptions, grid_masks
from tcl_jax.inference.model import Model, model_from_torch
from tcl_jax.inference.segmenter import Segmenter
from tcl_jax.inference.settings import InferenceSettings
from tcl_jax.inference.windows import SlidingWindow
from tcl_jax.models.attention import query_attention
from tcl_jax.models.clip import encode_image
from tcl_jax.models.dense import LastBlock
from tcl_jax.models.layers import block
from tcl_jax.ops.images import CLIP_PIXELS, IMAGENET
from tcl_jax.ops.resize import resize
from tcl_jax.parallel.mesh import data_mesh
from tests.reference import GOLDEN, attention_weights, load, nchw_to_nhwc, relative_error

CLIP = GOLDEN / "clip_state_dict.npz"
FILES = {"clearclip": "clearclip", "sclip": "sclip_naclip", "naclip": "sclip_naclip"}
SIZES = ("s64x64", "s64x96")
CASES = [(method, size) for method in FILES for size in SIZES]
COSINES = MaskOptions(scores="cosines")


def golden(method: str, size: str) -> dict[str, np.ndarray]:
    """Arrays of a method at a size, and the texts, by the names of one method's file."""
    arrays, prefix = load(f"methods/{FILES[method]}"), f"{method}_"
    own = {
        key.removeprefix(f"{size}/").removeprefix(prefix).removesuffix("_text"): x
        for key, x in arrays.items()
        if key.startswith(f"{size}/")
    }
    return {**own, "text": arrays.get("text", arrays.get(f"{prefix}text"))}


def model_of(method: str) -> tuple[LastBlock, Any]:
    model = model_from_torch(CLIP, method=method, activation="quick_gelu")
    assert isinstance(model.method, LastBlock)
    return model.method, jax.tree.map(np.float32, model.params)


@partial(jax.jit, static_argnums=0)
def cosines(method: LastBlock, params: Any, image: jax.Array, texts: jax.Array) -> jax.Array:
    return grid_masks(method, params, image, texts, COSINES)


@pytest.mark.parametrize(("name", "size"), CASES)
def test_every_step_matches_the_authors(name: str, size: str) -> None:
    expected, (method, params) = golden(name, size), model_of(name)
    image = nchw_to_nhwc(expected["image"])

    @jax.jit
    def steps(params: Any, image: jax.Array) -> dict[str, Any]:
        features = encode_image(method.clip_model, params["clip"], image).features
        attention = method.attention(features.grid)
        fourth = params["clip"]["visual"]["blocks_3"]
        last = block(method.clip_model.vision, fourth, features.after(3), attention)
        return {
            "tokens_ln_pre": features.tokens,
            "tokens_block3": features.after(3),
            "attention": attention_weights(attention, last.query, last.key),
            "last_block": last.attended if method.reduced else last.output,
        }

    found = steps(params, image)
    for key in found.keys() & expected.keys():
        assert relative_error(found[key], expected[key]) < 1e-5, key
    texts = jnp.asarray(expected["text"])
    grid = cosines(method, params, image, texts)
    if "logits_grid" in expected:
        assert relative_error(jnp.moveaxis(grid, -1, 1), expected["logits_grid"]) < 1e-5
    logits = resize(grid[:1], image.shape[1:3])
    assert relative_error(jnp.moveaxis(logits, -1, 1), expected["logits_image"]) < 1e-5


@pytest.mark.parametrize("name", FILES)
def test_dense_features_of_the_segmenter(name: str) -> None:
    segmenter = Segmenter.from_torch(clip=CLIP, method=name, activation="quick_gelu")
    assert segmenter.pixel_statistics == CLIP_PIXELS
    for size in SIZES:
        expected = golden(name, size)
        image = np.moveaxis(expected["image"], 1, -1)[0]
        patches = expected["features"][0, -(image.shape[0] // 16) * (image.shape[1] // 16) :]
        found = segmenter.dense_features(image)
        wanted = patches.reshape(image.shape[0] // 16, -1, 32)
        assert found.dtype == np.float32 and relative_error(found, wanted) < 1e-5
        # What is beyond the last whole patch is not seen.
        ragged = np.pad(image, ((0, 15), (0, 7), (0, 0)), constant_values=9.0)
        assert relative_error(segmenter.dense_features(ragged), wanted) < 1e-5
    for wrong in (image[None], image[..., :2], np.uint8(image), np.zeros((0, 64, 3), np.float32)):
        with pytest.raises(InputError, match=r"^x(:| is) .*"):
            segmenter.dense_features(wrong)
    with pytest.raises(InputError, match="x: image of 15x64 pixels has not one whole patch of 16"):
        segmenter.dense_features(image[:15, :64])


def test_query_attention_is_clear_clips() -> None:
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 5, 2, 64))
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, q, precision="highest") / 8)
    np.testing.assert_allclose(attention_weights(query_attention, q, k), weights, atol=1e-6)


def test_a_ragged_window_is_stretched_or_padded() -> None:
    image = np.asarray(jax.random.normal(jax.random.key(0), (1, 56, 72, 3)), np.float32)
    texts = golden("clearclip", "s64x64")["text"]
    for name, seen, span in (
        ("naclip", image[:, :48, :64], (3, 4)),  # the grid spans the whole window
        ("clearclip", np.pad(image, ((0, 0), (4, 4), (4, 4), (0, 0))), (4, 5)),
    ):
        method, params = model_of(name)
        sliding = SlidingWindow.over((56, 72), 80, 40, method.patch_size)
        engine: MaskEngine[int] = MaskEngine(method, data_mesh(jax.local_devices()[:1]))
        [(_, found)] = engine(params, [ImageTask(0, sliding, image[0])], texts, COSINES)
        assert found.grids.shape == (1, *span, 9)
        assert found.sliding.padded == ((64, 80) if name == "clearclip" else (56, 72))
        # Images of other sizes with as many patches are no reason to compile again.
        other = SlidingWindow.over((61, 79), 80, 40, method.patch_size)
        pixels = np.zeros((61, 79, 3), np.float32)
        list(engine(params, [ImageTask(1, other, pixels)], texts, COSINES))
        assert engine._compiled._cache_size() == 1
        expected = cosines(method, params, jnp.asarray(seen), jnp.asarray(texts))
        assert relative_error(found.grids, np.asarray(expected)) < 1e-5


def test_windows_of_clear_clip() -> None:
    arrays, (method, params) = load("methods/clearclip"), model_of("clearclip")
    image = np.ascontiguousarray(np.moveaxis(arrays["seg_a/image"][0], 0, -1))
    window, stride = int(arrays["window"]), int(arrays["stride"])
    sliding = SlidingWindow.over(image.shape[:2], window, stride, method.patch_size)
    engine: MaskEngine[int] = MaskEngine(method, data_mesh(jax.local_devices()[:1]))
    [(_, merged)] = engine(params, [ImageTask(0, sliding, image)], arrays["text"], COSINES)
    size, classes = arrays["seg_a/labels"].shape, ((0, 1, 2), (3,), (4, 5), (6,), (7,), (8,))
    assert relative_error(np.moveaxis(merged.at(size), -1, 0), arrays["seg_a/logits"]) < 1e-5
    labels = LabelRule(classes, float(arrays["logit_scale"])).labels(merged, size)
    np.testing.assert_array_equal(labels, arrays["seg_a/labels"])


def test_scores_and_texts_that_are_none() -> None:
    method, params = model_of("sclip")
    image = nchw_to_nhwc(golden("sclip", "s64x64")["image"])
    texts = jnp.pad(golden("sclip", "s64x64")["text"], ((0, 3), (0, 0)))
    scored = {
        scores: np.asarray(
            jax.jit(partial(grid_masks, method), static_argnums=3)(
                params, image, texts, MaskOptions(scores=scores, logit_scale=40.0)
            )
        )
        for scores in ("masks", "cosines", "probabilities")
    }
    cosines = scored["cosines"][..., :9]
    assert not scored["cosines"][..., 9:].any() and not scored["probabilities"][..., 9:].any()
    np.testing.assert_allclose(
        scored["masks"][..., :9], 1 / (1 + np.exp(-10 * (cosines - 0.25))), rtol=1e-5
    )
    odds = np.exp(40 * cosines)
    expected = odds / odds.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(scored["probabilities"][..., :9], expected, rtol=1e-4)


def test_pixels_are_the_authors_or_the_protocol_s() -> None:
    own = {"maskclip": IMAGENET, "sclip": CLIP_PIXELS, "clearclip": CLIP_PIXELS}
    for name, statistics in own.items():
        model = model_from_torch("builtin:shapes_clip", method=name)
        assert model.method_in().pixel_statistics == statistics
        for pixels, other in (("imagenet", IMAGENET), ("clip", CLIP_PIXELS)):
            settings = dataclasses.replace(model.settings, pixels=pixels)
            changed = Model(model.method, model.params, settings)
            assert changed.method_in().pixel_statistics == other
    with pytest.raises(InputError, match="pixels='rgb' must be one of imagenet, clip"):
        InferenceSettings(pixels="rgb")


def test_methods_by_name_before_files() -> None:
    with pytest.raises(InputError, match="method 'clip' is unknown; choose one of tcl, maskclip"):
        model_from_torch("nowhere.pt", method="clip")
    with pytest.raises(InputError, match="method 'tcl' needs TCL's weights, of which grounder"):
        model_from_torch("builtin:shapes_clip", method="tcl")
