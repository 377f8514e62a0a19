"""Forward pass against the reference model, every intermediate."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest

from tcl_jax.models.clip import encode_image, encode_text
from tcl_jax.models.dense import MaskCLIP
from tcl_jax.models.tcl import ground
from tcl_jax.training.objectives import TCLObjective
from tests.reference import arrays, load, nchw_to_nhwc, reference_model, relative_error

TOLERANCE = 1e-4
TERMS = ("area", "neg_area", "tclf", "tv_img", "tv_mask", "tcli")


@pytest.fixture(scope="module")
def forward() -> dict[str, np.ndarray]:
    """Everything in forward.npz as this implementation computes it, in its layout."""
    model, learned, clip = reference_model()
    golden = arrays("forward")
    image = nchw_to_nhwc(golden["image"])
    texts = jax.jit(partial(encode_text, model.clip_model))(clip, golden["tokens"])
    grounding = jax.jit(partial(ground, model))({**learned, "clip": clip}, image, texts)
    features = grounding.features
    embedding = jax.jit(partial(encode_image, model.clip_model))(clip, image).embedding
    spatial = jax.jit(MaskCLIP(model.config).patch_tokens)(clip, features)
    masks = np.asarray(jax.nn.sigmoid(grounding.mask_logits))
    batch = len(image)
    others = [[masks[i, j] for j in range(batch) if j != i] for i in range(batch)]
    objective = TCLObjective(model)
    uniform = golden["uniform"][np.arange(batch), np.arange(batch)]
    rows = {"image": image, "tokens": golden["tokens"], "uniform": uniform}
    output = jax.jit(objective)(learned, {"clip": clip}, rows, jax.random.key(0))
    return {
        "clip_spatial": np.moveaxis(spatial, -1, 1),
        "clip_feature_for_masker": features.after(model.feature_layer),
        "clip_image_emb": embedding,
        "clip_text_emb": texts,
        "masker_image_emb": np.moveaxis(grounding.pixel_embeddings, -1, 1),
        "out/mask": masks[np.arange(batch), np.arange(batch), None],
        "out/neg_mask": np.asarray(others),
        **{f"out/{name}_loss": output.terms[name] for name in TERMS},
        "total_loss": output.total,
    }


EXPECTED = sorted(set(load("forward")) - {"image", "tokens", "uniform"})


@pytest.mark.parametrize("name", EXPECTED)
def test_forward_matches_reference(forward: dict[str, np.ndarray], name: str) -> None:
    assert relative_error(forward[name], load("forward")[name]) < TOLERANCE
