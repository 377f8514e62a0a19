"""TCL's masks of patches that are averaged over similar ones, and how a refinement is asked for."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.errors import InputError
from tcl_jax.evaluation.protocol import make_protocol
from tcl_jax.inference.masks import MaskOptions, grid_masks
from tcl_jax.inference.segmenter import Segmenter
from tcl_jax.inference.settings import InferenceSettings
from tcl_jax.models.grounder import embed_patches, run_copies
from tcl_jax.models.tcl import LEAST_AFFINITY, average_similar
from tcl_jax.models.vit import Features, encode
from tcl_jax.ops.masking import mask_logits, pixel_text_similarity
from tests.reference import reference_model, reference_torch_model, relative_error

RNG = np.random.default_rng(4)
TEXTS = RNG.standard_normal((3, 32)).astype(np.float32)


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (16, 16)])
def test_affinity_is_as_defined(size: tuple[int, int]) -> None:
    model, params, clip = reference_model()
    params["clip"] = clip
    images = RNG.standard_normal((2, *size, 3)).astype(np.float32)
    images[:, : size[0] // 2] = 0.1 * images[:, : size[0] // 2] - 1.0  # half an even image
    images, texts = jnp.asarray(images), jnp.asarray(TEXTS)
    features = encode(model.vision, clip["visual"], images)
    patches = run_copies(model.vision, params["grounder"], features.after(3), features.grid)
    early = np.asarray(features.patches(features.after(1)), np.float64)  # round(4 / 3) of 4 blocks
    expected = np.zeros(patches.shape)
    for tokens, found, into in zip(early, np.asarray(patches, np.float64), expected, strict=True):
        unit = tokens.reshape(-1, tokens.shape[-1])
        unit = unit / np.linalg.norm(unit, axis=-1, keepdims=True)
        cosines = unit @ unit.T
        assert np.abs(cosines - LEAST_AFFINITY).min() > 1e-6  # so that rounding decides nothing
        weights = np.where(cosines >= LEAST_AFFINITY, cosines, 0)
        if len(unit) > 1:
            assert len(unit) < np.count_nonzero(weights) < weights.size
        mean = weights @ found.reshape(len(unit), -1) / (weights.sum(1, keepdims=True) + 1e-6)
        into[:] = mean.reshape(into.shape)
    assert relative_error(average_similar(features, patches), expected) < 1e-5

    pixels = embed_patches(model.vision, params["grounder"], jnp.float32(expected))
    logits = mask_logits(pixel_text_similarity(pixels, texts), **params["sim2mask"])
    masks = grid_masks(model, params, images, texts, MaskOptions("affinity", kp_weight=0.0))
    assert relative_error(masks, 1 / (1 + np.exp(-np.moveaxis(logits, 1, -1)))) < 1e-5


def test_equal_patches_are_averaged_and_others_stay() -> None:
    patches = RNG.standard_normal((1, 2, 3, 5)).astype(np.float32)
    tokens = jnp.eye(6)[None]
    alone = average_similar(Features(tokens, (), (2, 3)), jnp.asarray(patches))
    np.testing.assert_allclose(alone, patches, atol=1e-5)
    alike = average_similar(Features(jnp.ones_like(tokens), (), (2, 3)), jnp.asarray(patches))
    mean = np.broadcast_to(patches.mean((1, 2), keepdims=True), patches.shape)
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


def test_protocols_and_other_methods() -> None:
    model = reference_torch_model()
    made = make_protocol(model, refine="affinity")
    assert (made.title, made.refine, made.threshold) == ("TCL + affinity", "affinity", 0.5)
    assert make_protocol(model, pamr=False) == make_protocol(model, refine="none")
    with pytest.raises(InputError, match="is of masks, by which protocol sclip does not decide"):
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
