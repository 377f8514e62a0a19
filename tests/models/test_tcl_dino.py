"""TCL on a backbone: with CLIP's own tower it is TCL, and each tower sees its own pixels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.models.clip import encode_image
from tcl_jax.models.families import FAMILIES
from tcl_jax.models.method import MaskOptions
from tcl_jax.models.shapes import shapes_of
from tcl_jax.models.tcl import TCL
from tcl_jax.models.tcl_dino import TCLDINO
from tcl_jax.ops.images import normalize
from tcl_jax.training.objectives import TCLObjective, with_keys
from tcl_jax.weights.backbones import load_backbone
from tests.reference import FEATURE_LAYER, arrays, nchw_to_nhwc, reference_model
from tests.talk2dino_files import write_golden

KEY = jax.random.key(0)


@pytest.fixture
def clip_family(monkeypatch: pytest.MonkeyPatch) -> str:
    """A family of backbones with the settings of the reference's CLIP."""
    vit = reference_model()[0].clip_model.vision
    monkeypatch.setitem(FAMILIES, "clip", dataclasses.replace(FAMILIES["dinov2"], vit=vit))
    return "clip"


def on_its_own_tower(family: str) -> tuple[TCL, Any, TCLDINO, Any]:
    """The reference and its parameters, and the same as TCL on a backbone."""
    model, learned, clip = reference_model()
    backbone = {"backbone": clip["visual"]}
    same = TCLDINO(
        model.config,
        FEATURE_LAYER,
        family=family,
        shapes=shapes_of(backbone),
        image_size=model.resolution,
    )
    renamed = {("backbone_grounder" if k == "grounder" else k): x for k, x in learned.items()}
    return model, {**learned, "clip": clip}, same, {**renamed, "clip": clip, **backbone}


def test_on_clips_own_tower_it_is_tcl(clip_family: str) -> None:
    model, params, same, others = on_its_own_tower(clip_family)
    golden = arrays("forward")
    image = nchw_to_nhwc(golden["image"])
    texts = jax.jit(model.embed_texts)(params, golden["tokens"])
    masks = [
        jax.jit(lambda p, x, m=m: m.masks(p, x, texts, MaskOptions(kp_weight=0.0)))(p, image)
        for m, p in ((model, params), (same, others))
    ]
    np.testing.assert_array_equal(*masks)
    assert same.flops(64, 3, MaskOptions()) == model.flops(64, 3, MaskOptions(kp_weight=0.0))

    own = np.arange(len(image))
    batch = {
        "image": image, "tokens": golden["tokens"], "uniform": golden["uniform"][own, own],
    }  # fmt: skip
    found = []
    for m, p in ((model, params), (same, others)):
        frozen = {name: p[name] for name in ("clip", "backbone") if name in p}
        learned = {name: x for name, x in p.items() if name not in frozen}

        @jax.jit
        def gradient(learned: Any, frozen: Any, m: TCL = m) -> Any:
            def loss(learned: Any) -> Any:
                output = TCLObjective(m)(learned, frozen, batch, KEY)
                return output.total, output.terms

            return jax.grad(loss, has_aux=True)(learned)

        gradients, terms = gradient(learned, frozen)
        gradients["grounder"] = gradients.pop(m.grounder)
        found.append((gradients, terms))
    jax.tree.map(np.testing.assert_array_equal, *found)
    assert TCLObjective(same).training_flops(8, True) == TCLObjective(model).training_flops(8, True)


def test_clip_sees_pixels_as_its_own_statistics_make_them(
    clip_family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a mask of ones the embedding of an image is CLIP's, whatever the backbone's are."""
    bytes_of = ((0.0,) * 3, (1.0,) * 3)
    family = dataclasses.replace(FAMILIES[clip_family], pixel_statistics=bytes_of)
    monkeypatch.setitem(FAMILIES, clip_family, family)
    _, _, same, params = on_its_own_tower(clip_family)
    side = same.image_size
    image = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    cells = 4 * side // same.patch_size
    rows = with_keys(
        {
            "image": jnp.asarray(image),
            "text_embedding": jnp.ones((2, same.embed_dim)),
            "uniform": jnp.full((2, cells, cells), 1 - 1e-7),
        },
        KEY,
    )
    embedded = jax.jit(TCLObjective(same).embed)(params, params, rows, rows)
    clip = same.clip_model
    expected = jax.jit(lambda p, x: encode_image(clip, p, x).embedding)(
        params["clip"], normalize(jnp.asarray(image))
    )
    np.testing.assert_allclose(embedded.image, expected, rtol=1e-4, atol=1e-5)


def test_the_grounder_of_a_tower_with_rope_goes_on_where_the_feature_layer_ends(
    tmp_path: Path,
) -> None:
    """At the start it computes the same from any layer, as its blocks are copies."""
    backbone = load_backbone(write_golden(tmp_path / "dino.safetensors", "dinov3")).params
    config = reference_model()[0].config
    side = backbone["patch_kernel"].shape[0] * config.patch_size
    image = jax.random.normal(KEY, (1, side, side, 3))
    found = []
    for layer in (1, 0):
        model = TCLDINO(
            config, layer, family="dinov3", shapes=shapes_of({"backbone": backbone}),
            image_size=side,
        )  # fmt: skip
        learned = jax.jit(model.init_learned)(KEY, backbone)
        params = {**learned, "backbone": backbone}
        found.append(jax.jit(model.dense_features)(params, image))
    assert model.copied_blocks < model.tower.vision_layers - 1
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-4)


def test_sides_that_a_patch_does_not_divide_are_refused(clip_family: str) -> None:
    _, _, same, _ = on_its_own_tower(clip_family)
    with pytest.raises(ValueError, match="image_size=70 must be a multiple of both patches"):
        dataclasses.replace(same, image_size=70)
