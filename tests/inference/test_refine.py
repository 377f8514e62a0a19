"""TCL's masks of cosines averaged over similar patches, and how a refinement is asked for."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.errors import InputError
from tcl_jax.evaluation.protocol import make_protocol
from tcl_jax.inference.masks import MaskOptions, grid_masks
from tcl_jax.inference.segmenter import Segmenter
from tcl_jax.inference.settings import InferenceSettings
from tcl_jax.models.tcl import LEAST_AFFINITY, average_similar
from tcl_jax.models.vit import Features, encode
from tcl_jax.ops.masking import mask_logits, pixel_text_similarity
from tcl_jax.ops.resize import resize
from tests.reference import reference_model, reference_torch_model, relative_error

RNG = np.random.default_rng(4)
TEXTS = RNG.standard_normal((3, 32)).astype(np.float32)


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (16, 16)])
def test_affinity_is_as_defined(size: tuple[int, int]) -> None:
    model, params, clip = reference_model()
    params["clip"] = clip
    images = RNG.standard_normal((2, *size, 3)).astype(np.float32)
    images[:, : size[0] // 2] = 0.1 * images[:, : size[0] // 2] - 1.0  # half an even image
    options = MaskOptions("affinity", kp_weight=0.0)

    @jax.jit
    def run(params: Any, images: jax.Array, texts: jax.Array) -> tuple[jax.Array, ...]:
        features = encode(model.vision, params["clip"]["visual"], images)
        cosines = pixel_text_similarity(model.dense_features(params, images), texts)
        early = features.patches(features.after(1))  # round(4 / 3) of 4 blocks
        masks = grid_masks(model, params, images, texts, options)
        return cosines, early, average_similar(features, cosines), masks

    cosines, early, averaged, masks = run(params, images, TEXTS)
    rows, columns = (side // model.patch_size for side in size)
    cells = np.asarray(cosines, np.float64).reshape(2, 3, rows, 4, columns, 4).mean((3, 5))
    early = np.asarray(early, np.float64)
    expected = np.zeros((2, rows, columns, 3))
    for tokens, found, into in zip(early, cells, expected, strict=True):
        unit = tokens.reshape(-1, tokens.shape[-1])
        unit = unit / np.linalg.norm(unit, axis=-1, keepdims=True)
        similar = unit @ unit.T
        assert np.abs(similar - LEAST_AFFINITY).min() > 1e-6  # so that rounding decides nothing
        weights = np.where(similar >= LEAST_AFFINITY, similar, 0)
        if len(unit) > 1:
            assert len(unit) < np.count_nonzero(weights) < weights.size
        mean = weights @ found.reshape(3, -1).T / (weights.sum(1, keepdims=True) + 1e-6)
        into[:] = mean.reshape(into.shape)
    resized = np.asarray(resize(jnp.float32(expected), (4 * rows, 4 * columns)))
    assert relative_error(averaged, np.moveaxis(resized, -1, 1)) < 1e-5

    logits = mask_logits(jnp.asarray(resized), **params["sim2mask"])
    assert relative_error(masks, 1 / (1 + np.exp(-np.float64(logits)))) < 1e-5


def test_equal_patches_are_averaged_and_others_stay() -> None:
    cells = RNG.standard_normal((1, 5, 2, 3)).astype(np.float32)
    cosines = jnp.asarray(cells.repeat(4, 2).repeat(4, 3))
    tokens = jnp.eye(6)[None]
    alone = average_similar(Features(tokens, (), (2, 3)), cosines)
    bilinear = np.moveaxis(resize(jnp.moveaxis(jnp.asarray(cells), 1, -1), (8, 12)), -1, 1)
    np.testing.assert_allclose(alone, bilinear, atol=1e-5)
    alike = average_similar(Features(jnp.ones_like(tokens), (), (2, 3)), cosines)
    mean = np.broadcast_to(cells.mean((2, 3), keepdims=True), cosines.shape)
    np.testing.assert_allclose(alike, mean, atol=1e-5)


def test_how_a_segmenter_is_asked() -> None:
    segmenter = Segmenter(reference_torch_model())
    image = RNG.integers(0, 256, (50, 70, 3), np.uint8)
    image[:25] = 90  # patches that are alike

    def masks(**options: str | bool) -> np.ndarray:
        return segmenter.masks(image, TEXTS, **options)

    assert np.array_equal(masks(), masks(refine="pamr"))  # TCL's own
    assert np.array_equal(masks(pamr=False), masks(refine="none"))
    assert np.abs(masks(refine="affinity") - masks(refine="none")).max() > 1e-3
    with pytest.raises(InputError, match="pamr=True is short for refine='pamr'; give only one"):
        masks(refine="none", pamr=True)
    with pytest.raises(InputError, match="choose one of none, pamr, affinity"):
        masks(refine="edges")
    segmenter.settings = dataclasses.replace(segmenter.settings, scores="cosines")
    with pytest.raises(InputError, match="refine='affinity' is of masks, and the settings decide"):
        masks(refine="affinity")


def test_protocols_and_other_methods() -> None:
    model = reference_torch_model()
    made = make_protocol(model, refine="affinity")
    assert (made.title, made.refine, made.threshold) == ("TCL + affinity", "affinity", 0.5)
    assert make_protocol(model, pamr=False) == make_protocol(model, refine="none")
    with pytest.raises(InputError, match="is of masks, and the settings decide by cosines"):
        make_protocol(model, "sclip", refine="affinity")
    settings = dataclasses.replace(model.settings, refine="affinity")
    maskclip = dataclasses.replace(model, settings=settings).with_method("maskclip")
    assert maskclip.settings.refine == "none"
    with pytest.raises(InputError, match="nothing that MaskCLIP has; choose one of none, pamr"):
        make_protocol(maskclip, refine="affinity")


def test_settings_that_were_saved_before() -> None:
    for pamr, refine in ((True, "pamr"), (False, "none")):
        read = InferenceSettings.from_json({"window": 64, "stride": 32, "pamr": pamr})
        assert read == InferenceSettings(64, 32, refine=refine)
        assert InferenceSettings.from_json(read.to_json()) == read
    with pytest.raises(InputError, match="refine='sharp' must be one of none, pamr, affinity"):
        InferenceSettings(refine="sharp")
