"""Masks against the reference at three image sizes, and label maps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.inference.masks import MaskOptions, make_masks
from tcl_jax.models.method import BY_PAMR
from tcl_jax.ops.masking import l2_normalize
from tests.reference import arrays, nchw_to_nhwc, reference_model, relative_error

SIZES = ("64x64", "70x90", "96x64")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pamr", [0, 1])
@pytest.mark.parametrize("kp", ["0.0", "0.3"])
def test_masks_match_reference(size: str, pamr: int, kp: str) -> None:
    golden = arrays("masks")
    model, learned, clip = reference_model()
    masks = jax.jit(make_masks, static_argnums=(0, 4))(
        model,
        {**learned, "clip": clip},
        nchw_to_nhwc(golden[f"{size}/image"]),
        golden["text_emb"],
        MaskOptions(BY_PAMR[bool(pamr)], kp_weight=float(kp)),
    )
    expected = golden[f"{size}/mask_pamr{pamr}_kp{kp}"]
    assert relative_error(np.moveaxis(masks, -1, 1), np.asarray(expected)) < 1e-4


def test_class_embeddings_match_reference() -> None:
    golden = arrays("masks")
    model, _, clip = reference_model()
    embeddings = model.text_encoder.embed_classes(clip, golden["class_tokens"])
    assert relative_error(embeddings, np.asarray(golden["class_text_emb"])) < 1e-4


def test_normalising_a_zero_vector_has_a_finite_gradient() -> None:
    gradient = jax.grad(lambda x: l2_normalize(x).sum())(jnp.zeros(3))
    assert bool(jnp.isfinite(gradient).all())
