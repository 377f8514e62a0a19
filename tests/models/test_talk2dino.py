"""Talk2DINO's formulas against the authors' code, and what moves them."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.models.talk2dino import (
    HeadFeatures,
    clean_background,
    embed_templates,
    patch_masks,
    project_text,
)
from tcl_jax.weights.talk2dino import projection_params
from tests.reference import load

GOLDEN = {name: jnp.asarray(x, jnp.float32) for name, x in load("talk2dino").items()}
WEIGHTS = {k.removeprefix("w/"): x for k, x in load("talk2dino").items() if k.startswith("w/")}


def weak() -> HeadFeatures:
    """Features of one image with weak logits."""
    patches = jnp.moveaxis(GOLDEN["cleaning/feat"], 0, -1)[None]
    return HeadFeatures(patches, GOLDEN["cleaning/attn_logits"].reshape(1, 4, 6, 6))


def test_classes_are_means_of_templates_projected() -> None:
    projection, raw = projection_params(WEIGHTS), GOLDEN["text/raw"]
    found = project_text(projection, raw.mean(axis=1))
    np.testing.assert_allclose(found, GOLDEN["text/projected"], atol=5e-6)
    np.testing.assert_allclose(embed_templates(projection, raw), GOLDEN["text/emb"], atol=1e-6)


@pytest.mark.parametrize(("cleaning", "name"), [(False, "grid_mask"), (True, "grid_mask_bgclean")])
def test_masks_of_weak_logits(cleaning: bool, name: str) -> None:
    """The divisor of background cleaning is the largest value, and not the range."""
    masks = patch_masks(weak(), GOLDEN["cleaning/text_emb"], cleaning=cleaning)
    np.testing.assert_allclose(jnp.moveaxis(masks[0], -1, 0), GOLDEN[f"cleaning/{name}"], atol=1e-6)


def test_each_image_is_cleaned_by_itself_and_rows_of_zeros_are_no_text() -> None:
    texts, one = GOLDEN["cleaning/text_emb"], weak()
    other = HeadFeatures(one.patches[:, ::-1] + 0.3, 2 * one.logits)
    both = HeadFeatures(
        jnp.concatenate([one.patches, other.patches]), jnp.concatenate([one.logits, other.logits])
    )
    padded = jnp.pad(texts, ((0, 3), (0, 0)))
    found = clean_background(patch_masks(both, padded), both, padded)
    for row, features in zip(found, (one, other), strict=True):
        expected = patch_masks(features, texts, cleaning=True)[0]
        np.testing.assert_allclose(row[..., : len(texts)], expected, atol=1e-6)
