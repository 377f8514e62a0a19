"""SC-CLIP against what its authors' code computes, and against its formulas where that breaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.models.attention import softmax_weights
from tcl_jax.models.clip import VARIANTS, encode_image
from tcl_jax.models.layers import dense, layer_norm
from tcl_jax.models.sc_clip import (
    SCCLIP,
    aggregate,
    attend,
    find_outliers,
    outlier_scores,
    repair,
    shared_weights,
    similarities,
)
from tcl_jax.models.vit import resize_positions
from tcl_jax.weights.clip import clip_params, infer_clip_config
from tests.devices import run_on_eight_devices
from tests.reference import load, nchw_to_nhwc, products, relative_error

STATE = load("methods/scclip_state_dict")
CONFIG = infer_clip_config(STATE)
METHOD = SCCLIP(CONFIG)
PARAMS: Any = {"clip": jax.tree.map(jnp.asarray, clip_params(STATE, CONFIG))}
GOLDEN = load("methods/scclip")
RNG = np.random.default_rng(0)


def of_size(size: str) -> Callable[[str], np.ndarray]:
    return lambda name: GOLDEN[f"{size}/{name}"]


def check(actual: Any, expected: np.ndarray) -> None:
    assert relative_error(np.reshape(actual, expected.shape), expected) < 1e-5


def normalised(height: int, width: int, count: int = 1) -> jax.Array:
    return jnp.asarray(RNG.standard_normal((count, height, width, 3)), jnp.float32)


@pytest.mark.parametrize("size", ["s96x96", "s96x128"])
def test_every_step_is_the_authors(size: str) -> None:
    golden, checked = of_size(size), []

    def agrees(name: str, actual: Any) -> None:
        if f"{size}/{name}" in GOLDEN:
            check(actual, golden(name))
            checked.append(name)

    image, vision = nchw_to_nhwc(golden("image")), METHOD.clip_model.vision
    visual, last = PARAMS["clip"]["visual"], PARAMS["clip"]["visual"]["blocks_11"]
    features = jax.jit(lambda p, x: encode_image(METHOD.clip_model, p, x).features)(
        PARAMS["clip"], image
    )
    positions = visual["positional_embedding"]
    agrees("positions", resize_positions(positions, features.grid, vision.resample))
    agrees("tokens_ln_pre", features.tokens)
    for number in (4, 9, 11):
        agrees(f"block{number}", features.after(number))
    tokens = features.after(11)
    scores = outlier_scores(tokens[:, 1:])
    outliers = find_outliers(scores)
    agrees("lof", scores)
    assert {*np.flatnonzero(outliers)} == {*golden("outliers")}
    found = outliers.reshape(1, *features.grid)
    repaired = {n: repair(features.patches(features.after(n)), found) for n in (9, 11)}
    for number, patches in repaired.items():
        agrees(f"repaired{number}", jnp.moveaxis(patches, -1, 1))
    patches = {n: x.reshape(1, -1, x.shape[-1]) for n, x in repaired.items()}
    similarity = similarities(patches[9])
    agrees("similarity9", similarity)
    smooth = aggregate(similarity, patches[11])
    agrees("aggregated_in", smooth)
    shared = shared_weights(similarity)
    agrees("weights_sim", np.repeat(shared, CONFIG.vision_heads, 0))
    normed = layer_norm(smooth, last["ln_1"], vision.eps)
    key = dense(normed, last["attn"]["in_proj"], jnp.float32)[:, :, 1]
    agrees("weights_kk", softmax_weights(key, key))
    attended = attend(vision, last, smooth, shared)
    agrees("attention_out", attended)
    early = similarities(features.after(4)[:, 1:])
    agrees("similarity4_thd", np.where(early < 0.4, 0, early))
    one = aggregate(early, attended + 0.3 * tokens[:, :1])
    agrees("aggregated_out", one)
    levels = sum(features.after(n) for n in range(4, 11))
    attended = attend(vision, last, levels[:, 1:], shared)
    agrees("multi_attention_out", attended)
    two = aggregate(early, attended + 0.3 * levels[:, :1])
    agrees("multi_aggregated", two)
    agrees("fused", one + two)
    agrees("fused", METHOD.patch_tokens(PARAMS["clip"], features))
    # What is left over of a patch at the right and below is cropped.
    ragged = jnp.pad(image, ((0, 0), (0, 15), (0, 3), (0, 0)), constant_values=9)
    agrees("features", jax.jit(METHOD.dense_features)(PARAMS, ragged))
    agrees("logits_grid", jnp.moveaxis(METHOD.cosines(PARAMS, image, jnp.asarray(GOLDEN["text"])), -1, 1))
    kept_aside = {"image", "outliers"}
    assert set(checked) | kept_aside == {
        name.split("/")[1] for name in GOLDEN if name.startswith(f"{size}/")
    }


# --------------------------------------------------------- the formulas, token by token, in float64


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def outliers_in_numpy(tokens: np.ndarray) -> list[int]:
    number = len(tokens)
    k = min(30, number - 1)
    distances = ((tokens[:, None] - tokens) ** 2).sum(-1)
    near = [sorted(set(range(number)) - {i}, key=row.__getitem__)[:k] for i, row in
            enumerate(distances)]  # fmt: skip
    if not k or any(distances[i, n[-1]] == 0 for i, n in enumerate(near)):
        return []
    r = [distances[i, n[-1]] for i, n in enumerate(near)]
    scores = np.array([r[i] * np.mean([1 / r[j] for j in n]) for i, n in enumerate(near)])
    return [*np.flatnonzero(scores > np.quantile(scores, 0.95) * (1 + 1e-9))]


def repaired_in_numpy(x: np.ndarray, outliers: list[int], grid: tuple[int, int]) -> np.ndarray:
    result = x.copy()
    for i in outliers:
        row, column = divmod(i, grid[1])
        near = [
            r * grid[1] + c
            for r in range(max(row - 1, 0), min(row + 2, grid[0]))
            for c in range(max(column - 1, 0), min(column + 2, grid[1]))
            if r * grid[1] + c not in outliers
        ]
        if near:
            result[i] = x[near].mean(0)
    return result


def fused_in_numpy(after: list[np.ndarray], p: Any, grid: tuple[int, int]) -> np.ndarray:
    """What enters `ln_post`, [n, c], of one image's tokens after every number of blocks."""
    outliers = outliers_in_numpy(after[11][1:])
    z, m = (repaired_in_numpy(after[n][1:], outliers, grid) for n in (11, 9))

    def aggregated(s: np.ndarray, y: np.ndarray) -> np.ndarray:
        kept = np.where(s < 0.4, 0, s)
        return kept / (kept.sum(-1, keepdims=True) + 1e-6) @ y

    similarity, early = unit(m) @ unit(m).T, unit(after[4][1:]) @ unit(after[4][1:]).T
    excess = 3 * (similarity - similarity.mean())
    excess = np.where((excess < 0) & ~np.eye(len(m), dtype=bool), -np.inf, excess)
    levels = np.sum(after[4:11], axis=0)
    result = np.zeros_like(z)
    for patches, first in ((aggregated(similarity, z), after[11][0]), (levels[1:], levels[0])):
        centred = patches - patches.mean(-1, keepdims=True)
        normed = centred / np.sqrt(patches.var(-1, keepdims=True) + 1e-5)
        normed = normed * p["ln_1"]["norm"]["scale"] + p["ln_1"]["norm"]["bias"]
        output = p["attn"]["out_proj"]["bias"] + 0.3 * first
        for head in range(CONFIG.vision_heads):
            kernel, bias = p["attn"]["in_proj"]["kernel"], p["attn"]["in_proj"]["bias"]
            k, v = (normed @ kernel[:, i, head] + bias[i, head] for i in (1, 2))
            weights = (softmax(excess) + softmax(k @ k.T / 8)) / 2
            output = output + weights @ v @ p["attn"]["out_proj"]["kernel"][head]
        result += aggregated(early, output)
    return result


@pytest.mark.parametrize("grid", [(7, 9), (8, 5), (5, 6), (3, 2), (1, 4), (1, 1)])
def test_grids_the_authors_code_does_not_take(grid: tuple[int, int]) -> None:
    def run(params: Any, image: jax.Array) -> tuple[Any, jax.Array]:
        features = encode_image(METHOD.clip_model, params, image).features
        return [features.after(n) for n in range(12)], METHOD.patch_tokens(params, features)

    image = normalised(16 * grid[0], 16 * grid[1], 2)
    after, found = jax.jit(run)(PARAMS["clip"], image)
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), PARAMS["clip"]["visual"])
    for i in range(2):
        tokens = [np.asarray(x[i], np.float64) for x in after]
        check(found[i], fused_in_numpy(tokens, exact["blocks_11"], grid))


def test_an_even_image_without_positions_has_even_features() -> None:
    visual = PARAMS["clip"]["visual"]
    still = {**visual, "positional_embedding": jnp.zeros_like(visual["positional_embedding"])}
    params = {"clip": {**PARAMS["clip"], "visual": still}}
    features = jax.jit(METHOD.dense_features)(params, jnp.full((1, 96, 128, 3), 0.3))
    assert float(jnp.abs(features).max()) > 1e-3
    check(features, np.broadcast_to(features[:, :1, :1], features.shape))


@pytest.mark.parametrize("repeated", [0, 5, 30, 31, 60])
def test_outliers_among_repeated_tokens(repeated: int) -> None:
    """As many as neighbours and one more leave no neighbourhood, and so no outlier."""
    tokens = RNG.standard_normal((64, 48)) + 3
    tokens[7 : 7 + repeated] = tokens[7]
    tokens = np.float32(tokens)
    found = np.flatnonzero(find_outliers(outlier_scores(jnp.asarray(tokens)[None])))
    assert [*found] == outliers_in_numpy(np.float64(tokens))
    assert len(found) == (0 if repeated > 30 else 4)


def test_an_outlier_among_outliers_stays() -> None:
    grid, x = (4, 5), RNG.standard_normal((20, 3)).astype(np.float32)
    outliers = [0, 1, 5, 6, 13, 19]
    mask = np.isin(np.arange(20), outliers).reshape(1, *grid)
    found = repair(jnp.asarray(x).reshape(1, *grid, 3), jnp.asarray(mask)).reshape(20, 3)
    check(found, repaired_in_numpy(np.float64(x), outliers, grid))
    np.testing.assert_array_equal(found[0], x[0])


def test_what_is_compared_with_thresholds_is_exact_in_bfloat16() -> None:
    half = SCCLIP(CONFIG, jnp.bfloat16)
    image = normalised(96, 112, 1)
    traced = jax.make_jaxpr(half.dense_features)(PARAMS, image)
    pairs = [exact for shapes, exact in products(traced.jaxpr) if shapes == ((1, 42, 128),) * 2]
    assert pairs == [True] * 3, "distances, and the cosines of two blocks"
    rough, fine = (jax.jit(m.dense_features)(PARAMS, image) for m in (half, METHOD))
    assert rough.dtype == jnp.float32
    cosines = np.sum(unit(np.asarray(rough)) * unit(np.asarray(fine)), -1)
    assert np.median(cosines) > 0.9


def test_other_depths_are_in_proportion_and_said() -> None:
    assert METHOD.layers == (9, 4, 10) and "proportion" not in METHOD.summary
    large = SCCLIP(VARIANTS["ViT-L/14"])
    assert large.layers == (18, 8, 20)
    assert "blocks 18 and 8 to 20 of 24, in proportion" in large.summary


PROGRAM = """
import jax, numpy as np
from tests.devices import collectives
from tests.models.test_sc_clip import METHOD, PARAMS, normalised, relative_error
from tcl_jax.parallel.mesh import batch_sharded, data_mesh, replicated

mesh, images = data_mesh(jax.devices()), normalised(96, 128, 16)
shardings = (replicated(mesh), batch_sharded(mesh))
run = jax.jit(METHOD.dense_features, in_shardings=shardings, out_shardings=shardings[1])
assert collectives(run.lower(PARAMS, images).compile().as_text()) == []
alone = jax.jit(METHOD.dense_features)(PARAMS, images[5:6])
assert relative_error(run(PARAMS, images)[5:6], np.asarray(alone)) < 1e-5
"""


def test_devices_need_nothing_of_each_other() -> None:
    run_on_eight_devices(PROGRAM)
