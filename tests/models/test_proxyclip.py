"""ProxyCLIP against its authors' code, and against its formulas where that fails."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.errors import InputError
from tcl_jax.models.backbone import backbone_features
from tcl_jax.models.families import FAMILIES, Sizes
from tcl_jax.models.layers import matmul_precision
from tcl_jax.models.proxyclip import ROWS, ProxyCLIP, attend_by_proxy
from tcl_jax.models.shapes import init_params, shapes_of
from tcl_jax.models.vit import resize_positions
from tcl_jax.ops.images import IMAGENET, renormalize
from tcl_jax.ops.resize import resize
from tcl_jax.weights.dinov2 import sizes, to_params
from tests.inference.test_dino import dino_of
from tests.reference import load, nchw_to_nhwc, reference_model, relative_error

TOLERANCE = 1e-5


def proxyclip(family: str, second: Any) -> tuple[ProxyCLIP, dict[str, Any]]:
    """The golden CLIP with another encoder."""
    model, _, clip = reference_model()
    shapes = shapes_of({"second": second})
    params = {"clip": clip, "second": jax.tree.map(jnp.asarray, second)}
    return ProxyCLIP(model.config, second=family, shapes=shapes), params


def golden_proxyclip(kind: str) -> tuple[ProxyCLIP, dict[str, Any]]:
    """With DINO ("dino"), or DINOv2 with registers ("reg") or without ("plain")."""
    tensors = dino_of("proxyclip" if kind == "dino" else "proxyclip_dinov2")
    if kind == "plain":
        del tensors["register_tokens"]
    family = {"dino": "dino", "reg": "dinov2-reg", "plain": "dinov2"}[kind]
    return proxyclip(family, to_params(tensors, sizes(tensors), 2))


def random_second(family: str, patch: int) -> dict[str, Any]:
    """A small tower of two blocks, whose patches differ much."""
    found = Sizes(width=64, depth=2, hidden=128, patch=patch, positions=17, registers=2)
    shapes = shapes_of({"second": found.shapes(1)})
    shapes = tuple(x for x in shapes if "gate" not in x[0] and "mask_token" not in x[0])
    return jax.jit(init_params, static_argnums=1)(jax.random.key(3), shapes)["second"]


@pytest.mark.parametrize("size", ["s64x64", "s64x96"])
def test_every_step_with_dino(size: str) -> None:
    golden = {k.removeprefix(f"{size}/"): x for k, x in load("methods/proxyclip").items()}
    method, params = golden_proxyclip("dino")
    image = nchw_to_nhwc(golden["image"])

    @jax.jit
    def run(params: Any, image: jax.Array) -> Any:
        with matmul_precision(jnp.float32):
            tokens = method.proxy_tokens(params, image)
            flat = tokens.reshape(1, -1, tokens.shape[-1])
            return {
                "tokens": flat,
                "attention": attend_by_proxy(flat, jnp.eye(flat.shape[1])[None]),
                "values": method.values(params, image, tokens.shape[1:3]),
                "last_block": method.last_block(params, image),
                "features": method.dense_features(params, image),
                "logits": method.cosines(params, image, jnp.asarray(golden["text"])),
            }

    found = run(params, image)
    rows, columns = (side // 8 for side in image.shape[1:3])
    assert relative_error(found["tokens"], golden["dino_tokens"][:, 1:]) < 3e-6
    units = found["tokens"] / np.linalg.norm(found["tokens"], axis=-1, keepdims=True)
    assert relative_error((units @ units.swapaxes(1, 2)).mean(), golden["similarity_mean"]) < 1e-5
    last_block = found["last_block"].reshape(1, rows * columns, -1)
    assert relative_error(last_block, golden["last_block"]) < TOLERANCE
    features = found["features"].reshape(1, rows * columns, -1)
    assert relative_error(features, golden["features"]) < TOLERANCE
    logits = np.moveaxis(found["logits"], -1, 1)
    assert relative_error(logits, golden["logits_grid"]) < TOLERANCE
    values = np.moveaxis(found["values"].reshape(rows, columns, 2, 64), (0, 1), (2, 3))
    assert relative_error(values, golden["values_resized"]) < TOLERANCE
    if size == "s64x64":
        pixels = np.moveaxis(renormalize(image, method.pixel_statistics, IMAGENET), -1, 1)
        assert relative_error(pixels, golden["dino_input"]) < 1e-6
        assert relative_error(found["attention"], golden["attention"]) < TOLERANCE


@pytest.mark.parametrize("kind", ["reg", "plain"])
def test_with_dinov2(kind: str) -> None:
    golden = load("methods/proxyclip_dinov2")
    method, params = golden_proxyclip(kind)
    cases = [k.split("/")[0] for k in golden if k.endswith(f"/{kind}_features")]
    assert len(cases) == {"reg": 4, "plain": 2}[kind]

    @jax.jit
    def run(params: Any, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        return method.proxy_tokens(params, image), method.dense_features(params, image)

    for case in cases:
        tokens, features = run(params, nchw_to_nhwc(golden[f"{case}/image"]))
        rows, columns = tokens.shape[1:3]
        flat = tokens.reshape(1, rows * columns, -1)
        assert relative_error(flat, golden[f"{case}/{kind}_tokens"]) < TOLERANCE
        features = features.reshape(1, rows * columns, -1)
        assert relative_error(features, golden[f"{case}/{kind}_features"]) < TOLERANCE
        if (wanted := golden.get(f"{case}/{kind}_positions")) is not None:
            table = params["second"]["positional_embedding"]
            found = resize_positions(table, (rows, columns), method.vit.resample)
            assert relative_error(found, wanted) < TOLERANCE


# ------------------------------------------------------------------- by the formulas, in float64


def attend_in_numpy(tokens: Any, values: Any) -> np.ndarray:
    """Of one image: [m, c] and [m, d] to [m, d]."""
    tokens, values = np.asarray(tokens, np.float64), np.asarray(values, np.float64)
    units = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    similarity = units @ units.T
    scores = 3.0 * (similarity - 1.2 * similarity.mean())
    shares = np.where(scores < 0, 0, np.exp(scores))
    alone = shares.sum(-1) == 0
    shares[alone, alone] = 1
    return shares / shares.sum(-1, keepdims=True) @ values


@pytest.mark.parametrize("length", [1, 7, ROWS, 2 * ROWS + 3])
def test_attention_of_each_image_by_itself(length: int) -> None:
    """Also where nothing is as similar as it has to be: each patch attends to itself."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(3, length, 12))
    tokens[1] += 0.5 + 0.1 * rng.normal(size=12)
    tokens[2] = 1 + 1e-3 * tokens[2]
    values = rng.normal(size=(3, length, 5))
    with matmul_precision(jnp.float32):
        found = jax.jit(attend_by_proxy)(jnp.asarray(tokens), jnp.asarray(values))
    for i in range(3):
        expected = attend_in_numpy(tokens[i], values[i]) if i < 2 else values[i]
        assert relative_error(found[i], expected) < TOLERANCE


@pytest.mark.parametrize(
    ("family", "patch", "sides"),
    [
        ("dino", 8, (75, 90)),  # neither divides; CLIP sees 64 x 80 of it, DINO 72 x 88
        ("dinov2-reg", 14, (64, 112)),
        ("dino", 32, (96, 64)),  # a coarser grid than CLIP's
        ("tips", 14, (60, 70)),  # pixels as they are, in place of ImageNet's statistics
    ],
)
def test_any_encoder_and_any_size(family: str, patch: int, sides: tuple[int, int]) -> None:
    method, params = proxyclip(family, random_second(family, patch))
    rgb = np.random.default_rng(0).uniform(size=(2, *sides, 3)).astype(np.float32)
    image, pixels = (
        jnp.asarray((rgb - np.array(mean)) / np.array(std), jnp.float32)
        for mean, std in (method.pixel_statistics, FAMILIES[family].pixel_statistics)
    )
    rows, columns = grid = (sides[0] // patch, sides[1] // patch)

    @jax.jit
    def run(params: Any, image: jax.Array, pixels: jax.Array) -> tuple[jax.Array, ...]:
        whole = pixels[:, : rows * patch, : columns * patch]
        tokens = backbone_features(FAMILIES[family].vit, params["second"], whole).patches
        values = method.values(params, image, (sides[0] // 16, sides[1] // 16))
        return tokens, values, method.last_block(params, image)

    tokens, values, found = run(params, image, pixels)
    values = resize(values, grid).reshape(2, rows * columns, -1)
    out = params["clip"]["visual"]["blocks_3"]["attn"]["out_proj"]
    for i in range(2):
        mixed = attend_in_numpy(tokens[i].reshape(len(values[i]), -1), values[i])
        kernel = np.asarray(out["kernel"], np.float64).reshape(-1, found.shape[-1])
        expected = mixed @ kernel + np.asarray(out["bias"])
        assert relative_error(found[i].reshape(len(mixed), -1), expected) < TOLERANCE
    assert found.shape[1:3] == grid


def test_an_even_image_is_finite() -> None:
    method, params = golden_proxyclip("dino")
    image = jnp.ones((1, 64, 96, 3))
    tokens = jax.jit(method.proxy_tokens)(params, image).reshape(96, -1)
    units = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    assert 1.2 * (units @ units.T).mean() > 1, "the reference has NaN here"
    assert jnp.isfinite(jax.jit(method.dense_features)(params, image)).all()


def test_an_image_without_a_patch_is_refused() -> None:
    method, params = golden_proxyclip("dino")
    for sides in ((7, 64), (64, 15)):  # of DINO, and of CLIP
        with pytest.raises(InputError, match="has not one whole patch of"):
            jax.eval_shape(method.dense_features, params, jnp.zeros((1, *sides, 3)))


def test_memory_does_not_hold_the_attention_of_all_patches() -> None:
    """Of four windows of 448 pixels in patches of 8, by what XLA plans; nothing is run."""
    patches, width = 3136, 768
    one = jax.ShapeDtypeStruct((4, patches, width), jnp.float32)
    planned = jax.jit(attend_by_proxy).lower(one, one).compile().memory_analysis()
    assert planned.temp_size_in_bytes < 4 * 4 * patches**2, "as much as one attention of them"


def test_bfloat16_stays_close() -> None:
    method, params = golden_proxyclip("dino")
    image = nchw_to_nhwc(load("methods/proxyclip")["s64x96/image"])
    rough = jax.jit(dataclasses.replace(method, dtype=jnp.bfloat16).dense_features)(params, image)
    exact = jax.jit(method.dense_features)(params, image)
    assert rough.dtype == jnp.float32
    sizes = jnp.linalg.norm(exact, axis=-1) * jnp.linalg.norm(rough, axis=-1)
    assert 0.99 < float(((exact * rough).sum(-1) / sizes).min()) < 1 - 1e-7
