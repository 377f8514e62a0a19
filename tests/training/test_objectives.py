"""Erased rectangles on their way into the loss, and patches of odd sizes."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.models.clip import CLIP, CLIPConfig
from tcl_jax.models.tcl import TCL
from tcl_jax.ops.images import normalize
from tcl_jax.training.objectives import CLIPObjective, TCLObjective, augmented, with_keys
from tests.reference import arrays, reference_model

KEY = jax.random.key(3)
BOXES = np.array([[0, 0, 40, 30], [0, 0, 0, 0], [20, 10, 44, 54], [5, 6, 7, 8]], np.int32)


def plain_batch() -> dict[str, jax.Array]:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    return {"image": jnp.asarray(pixels), "tokens": arrays("forward")["tokens"][:4]}


def erased_batch(boxes: np.ndarray = BOXES) -> dict[str, jax.Array]:
    return {**plain_batch(), "erase": jnp.asarray(boxes)}


def test_noise_is_not_that_of_the_masks() -> None:
    """Two streams of one key: as values of one place they must not go together."""
    boxes = np.tile(np.array([[0, 0, 64, 64]], np.int32), (4, 1))
    batch = with_keys(erased_batch(boxes), KEY)

    def row_by_row(draw: Any) -> np.ndarray:
        return np.concatenate([np.asarray(draw(key, (64 * 64 * 3,))) for key in batch["keys"]])

    noise = np.asarray(augmented(batch)).ravel()
    masks = row_by_row(jax.random.uniform)
    assert abs(np.corrcoef(noise, masks)[0, 1]) < 4 / np.sqrt(noise.size)
    assert np.corrcoef(row_by_row(jax.random.normal), masks)[0, 1] > 0.9


@pytest.mark.parametrize("name", ["tcl", "clip"])
def test_loss_sees_the_erased_image(name: str) -> None:
    model, learned, clip = reference_model()
    clip = {"clip": clip}
    objective, params, frozen = {
        "tcl": (TCLObjective(model), learned, clip),
        "clip": (CLIPObjective(CLIP(model.config)), clip, {}),
    }[name]
    compiled = jax.jit(lambda *given: objective(*given, KEY).terms)
    loss = partial(compiled, params, frozen)
    plain = {**plain_batch(), "image": normalize(plain_batch()["image"])}
    by_hand = {**plain, "image": augmented(with_keys(erased_batch(), KEY))}
    seen, expected = loss(erased_batch()), loss(by_hand)
    nothing, unchanged = loss(erased_batch(np.zeros_like(BOXES))), loss(plain)
    for term, value in seen.items():
        np.testing.assert_allclose(value, expected[term], rtol=1e-5, err_msg=term)
        np.testing.assert_allclose(nothing[term], unchanged[term], rtol=1e-5, err_msg=term)
    assert any(abs(seen[term] - nothing[term]) > 1e-4 * abs(seen[term]) for term in seen)
    assert compiled._cache_size() == 2  # other boxes are no reason to compile again


def test_masks_of_a_patch_that_four_does_not_divide() -> None:
    """As in ViT-L/14, of which a mask has 64 x 64 cells for 224 x 224 pixels."""
    sizes = CLIPConfig(
        embed_dim=16, resolution=42, patch_size=14, vision_width=64, vision_layers=2,
        text_width=64, text_layers=1, context_length=8, vocab_size=50,
    )  # fmt: skip
    model = TCL(sizes)
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, (2, 42, 42, 3), np.uint8)),
        "tokens": jnp.asarray(rng.integers(1, 50, (2, 8)), jnp.int32),
    }
    params = jax.jit(model.init)(KEY)
    frozen = {"clip": params.pop("clip")}
    objective = TCLObjective(model)

    @jax.jit
    def gradient(params: Any) -> Any:
        return jax.grad(lambda params: objective(params, frozen, batch, KEY).terms["tcli"])(params)

    # The masks alone carry this term's gradient.
    moved = np.asarray(gradient(params)["sim2mask"]["w"])
    assert np.isfinite(moved) and moved != 0
