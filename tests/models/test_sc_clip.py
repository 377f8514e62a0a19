"""SC-CLIP against what its authors' code computes, and against its formulas where that breaks."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.inference.engine import ImageTask, MaskEngine
from tcl_jax.inference.label_rule import LabelRule
from tcl_jax.inference.masks import MaskOptions
from tcl_jax.inference.windows import SlidingWindow
from tcl_jax.models.attention import softmax_attention
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
from tcl_jax.ops.masking import pixel_text_similarity
from tcl_jax.parallel.mesh import local_mesh
from tcl_jax.weights.clip import clip_params, infer_clip_config
from tests.devices import run_on_eight_devices
from tests.reference import attention_weights, load, nchw_to_nhwc, products, relative_error

STATE = load("methods/scclip_state_dict")
CONFIG = infer_clip_config(STATE)
METHOD = SCCLIP(CONFIG)
PARAMS: Any = {"clip": jax.tree.map(jnp.asarray, clip_params(STATE, CONFIG))}
GOLDEN = load("methods/scclip")
RNG = np.random.default_rng(0)


def check(actual: Any, expected: np.ndarray) -> None:
    assert relative_error(np.reshape(actual, expected.shape), expected) < 1e-5


def normalised(height: int, width: int, count: int = 1) -> jax.Array:
    return jnp.asarray(RNG.standard_normal((count, height, width, 3)), jnp.float32)


@jax.jit
def steps(clip: Any, image: jax.Array) -> dict[str, Any]:
    """Whatever the authors' code was asked for, by its name there."""
    vision, visual, found = METHOD.clip_model.vision, clip["visual"], {}
    features = encode_image(METHOD.clip_model, clip, image).features
    positions = visual["positional_embedding"]
    found["positions"] = resize_positions(positions, features.grid, vision.resample)
    found |= {
        "tokens_ln_pre": features.tokens,
        "fused_at_once": METHOD.patch_tokens(clip, features),
    }
    after = {n: features.after(n) for n in range(12)}
    found |= {f"block{n}": after[n] for n in (4, 9, 11)}
    found["lof"] = outlier_scores(after[11][:, 1:])
    found["outliers"] = outliers = find_outliers(found["lof"])
    nine, eleven = (
        repair(features.patches(after[n]), outliers.reshape(1, *features.grid)) for n in (9, 11)
    )
    found |= {"repaired9": jnp.moveaxis(nine, -1, 1), "repaired11": jnp.moveaxis(eleven, -1, 1)}
    nine, eleven = (x.reshape(1, -1, x.shape[-1]) for x in (nine, eleven))
    found["similarity9"] = similarity = similarities(nine)
    found["aggregated_in"] = smooth = aggregate(similarity, eleven)
    shared, last = shared_weights(similarity), visual["blocks_11"]
    found["weights_sim"] = jnp.repeat(shared, CONFIG.vision_heads, 0)
    normed = layer_norm(smooth, last["ln_1"], vision.eps)
    key = dense(normed, last["attn"]["in_proj"], jnp.float32)[:, :, 1]
    found["weights_kk"] = attention_weights(softmax_attention, key, key)
    found["attention_out"] = one = attend(vision, last, smooth, shared)
    early = similarities(after[4][:, 1:])
    found["similarity4_thd"] = jnp.where(early < 0.4, 0, early)
    found["aggregated_out"] = aggregate(early, one + 0.3 * after[11][:, :1])
    levels = sum(after[n] for n in range(4, 11))
    found["multi_attention_out"] = two = attend(vision, last, levels[:, 1:], shared)
    found["multi_aggregated"] = aggregate(early, two + 0.3 * levels[:, :1])
    found["fused"] = found["aggregated_out"] + found["multi_aggregated"]
    return found


@pytest.mark.parametrize("size", ["s96x96", "s96x128"])
def test_every_step_is_the_authors(size: str) -> None:
    golden = {k.split("/")[1]: x for k, x in GOLDEN.items() if k.startswith(f"{size}/")}
    image = nchw_to_nhwc(golden.pop("image"))
    found = steps(PARAMS["clip"], image)
    assert {*np.flatnonzero(found.pop("outliers"))} == {*golden.pop("outliers")}
    check(found["fused_at_once"], golden["fused"])
    # What is left over of a patch at the right and below is cropped.
    ragged = jnp.pad(image, ((0, 0), (0, 15), (0, 3), (0, 0)), constant_values=9)
    found["features"] = features = jax.jit(METHOD.dense_features)(PARAMS, ragged)
    logits = pixel_text_similarity(features, jnp.asarray(GOLDEN["text"]))
    for name, expected in golden.items():
        check(logits if name == "logits_grid" else found[name], expected)


def test_labels_are_the_authors() -> None:
    golden = {k.split("/")[1]: x for k, x in GOLDEN.items() if k.startswith("seg_a/")}
    window, stride = int(GOLDEN["window"]), int(GOLDEN["stride"])
    image = np.ascontiguousarray(np.moveaxis(golden["image"][0], 0, -1))
    sliding = SlidingWindow.over(image.shape[:2], window, stride, METHOD.patch_size)
    options, task = MaskOptions(scores="cosines"), ImageTask(0, sliding, image)
    [(_, masks)] = MaskEngine(METHOD, local_mesh())(PARAMS, [task], GOLDEN["text"], options)
    size, queries = golden["labels"].shape, GOLDEN["query_idx"]
    check(masks.at(size), np.moveaxis(golden["logits"], 0, -1))
    classes = tuple(tuple(np.flatnonzero(queries == n).tolist()) for n in range(max(queries) + 1))
    rule = LabelRule(classes, float(golden["logit_scale"]), float(golden["prob_thd"]))
    np.testing.assert_array_equal(rule.labels(masks, size), golden["labels"])


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
    """Of an image beside one that is even, by which its own features do not change."""

    def run(params: Any, image: jax.Array) -> tuple[Any, jax.Array]:
        features = encode_image(METHOD.clip_model, params, image).features
        return [features.after(n) for n in range(12)], METHOD.patch_tokens(params, features)

    image = normalised(16 * grid[0], 16 * grid[1], 2).at[1].set(0.3)
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


def two_blocks(dtype: Any = jnp.float32) -> tuple[SCCLIP, Any]:
    """A method that is compiled quickly, and its parameters."""
    lacking = {f"blocks_{n}" for n in range(2, 12)}
    visual = {k: x for k, x in PARAMS["clip"]["visual"].items() if k not in lacking}
    return SCCLIP(dataclasses.replace(CONFIG, vision_layers=2), dtype), {"clip": {"visual": visual}}


def test_what_is_compared_with_thresholds_is_exact_in_bfloat16() -> None:
    (half, params), image = two_blocks(jnp.bfloat16), normalised(96, 112)
    traced = jax.make_jaxpr(half.dense_features)(params, image)
    pairs = [exact for shapes, exact in products(traced.jaxpr) if shapes == ((1, 42, 128),) * 2]
    assert pairs == [True] * 3, "distances, and the cosines of two blocks"
    rough, fine = (
        jax.jit(two_blocks(dtype)[0].dense_features)(params, image)
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert rough.dtype == jnp.float32
    cosines = np.sum(unit(np.asarray(rough)) * unit(np.asarray(fine)), -1)
    assert 0.9 < np.median(cosines) < 1 - 1e-6


def test_other_depths_are_in_proportion_and_said() -> None:
    assert METHOD.layers == (9, 4, 10) and "proportion" not in METHOD.summary
    large = SCCLIP(VARIANTS["ViT-L/14"])
    assert large.layers == (18, 8, 20)
    assert "blocks 18 and 8 to 20 of 24, in proportion" in large.summary


PROGRAM = """
import jax, numpy as np
from tests.devices import collectives
from tests.models.test_sc_clip import normalised, relative_error, two_blocks
from tcl_jax.parallel.mesh import batch_sharded, data_mesh, replicated

(method, params), images = two_blocks(), normalised(96, 128, 16)
mesh = data_mesh(jax.devices())
shardings = (replicated(mesh), batch_sharded(mesh))
run = jax.jit(method.dense_features, in_shardings=shardings, out_shardings=shardings[1])
assert collectives(run.lower(params, images).compile().as_text()) == []
alone = jax.jit(method.dense_features)(params, images[5:6])
assert relative_error(run(params, images)[5:6], np.asarray(alone)) < 1e-5
"""


def test_devices_need_nothing_of_each_other() -> None:
    run_on_eight_devices(PROGRAM)
