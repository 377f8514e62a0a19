"""The gradient of a step in parts, rematerialised, and in full precision where it matters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.errors import InputError
from tcl_jax.models.clip import CLIP, CLIPConfig
from tcl_jax.models.tcl import TCL
from tcl_jax.ops import pair_statistics
from tcl_jax.ops.losses import LossWeights
from tcl_jax.training.build import build_adamw, build_experiment, build_schedule
from tcl_jax.training.objectives import CLIPObjective, Objective, TCLObjective, with_keys
from tcl_jax.training.state import create_state
from tcl_jax.training.step import loss_and_gradient, make_step, no_failure
from tests.reference import products
from tests.tiny import tiny_clip_config

ROWS, SIDE, LENGTH = 8, 32, 12
SIZES = CLIPConfig(
    embed_dim=16, resolution=SIDE, patch_size=8, vision_width=64, vision_layers=2,
    text_width=64, text_layers=1, context_length=LENGTH, vocab_size=50,
)  # fmt: skip


def batch_of(rows: int = ROWS) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (rows, SIDE, SIDE, 3), np.uint8)),
        "tokens": jnp.asarray(rng.integers(1, 50, (rows, LENGTH)), jnp.int32),
        "erase": jnp.asarray(rng.integers(0, SIDE // 2, (rows, 4)), jnp.int32),
    }


@pytest.fixture(autouse=True, scope="module")
def tiles_of_two_texts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair_statistics, "TILE_BYTES", 2 * 4 * (4 * SIDE // SIZES.patch_size) ** 2)
        yield


@cache
def subjects() -> dict[str, tuple[Objective, Any, Any]]:
    """Objective, learned and frozen parameters; gates are open, so that all layers count."""
    model = TCL(SIZES)
    learned = jax.jit(model.init)(jax.random.key(0))
    clip = {"clip": learned.pop("clip")}
    learned = jax.tree.map_with_path(
        lambda path, x: jnp.full_like(x, 0.5) if "gate" in str(path[-1]) else x, learned
    )
    return {
        "tcl": (TCLObjective(model, LossWeights(area_group=4)), learned, clip),
        "clip": (CLIPObjective(CLIP(SIZES)), clip, {}),
    }


def gradient(
    objective: Objective, params: Any, frozen: Any, batch: Any, key: jax.Array, parts: int
) -> Any:
    return loss_and_gradient(
        objective, lambda params: params, params, frozen, with_keys(batch, key), parts=parts
    )


def compute(objective: Objective, params: Any, frozen: Any, parts: int = 1) -> tuple[Any, int]:
    """Loss and gradient, and the temporary memory that they take."""
    arguments = (params, frozen, batch_of(), jax.random.key(1))
    compiled = jax.jit(partial(gradient, objective, parts=parts)).lower(*arguments).compile()
    return compiled(*arguments), compiled.memory_analysis().temp_size_in_bytes


@cache
def whole(name: str) -> tuple[Any, int]:
    return compute(*subjects()[name])


def assert_same(found: Any, expected: Any) -> None:
    output, gradients = found
    for name, term in {**expected[0].terms, **expected[0].measures}.items():
        value = {**output.terms, **output.measures}[name]
        np.testing.assert_allclose(value, term, rtol=1e-5, atol=1e-7, err_msg=name)
    norm = np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(expected[1])))
    assert norm > 1e-3
    jax.tree.map_with_path(
        lambda path, a, b: np.testing.assert_allclose(a, b, atol=1e-5 * norm, err_msg=str(path)),
        gradients,
        expected[1],
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parts"), [("tcl", 8), ("clip", 4)])
def test_parts_give_the_whole_batch_s_loss_and_gradient_in_less_memory(
    name: str, parts: int
) -> None:
    found, memory = compute(*subjects()[name], parts)
    expected, memory_of_whole = whole(name)
    assert_same(found, expected)
    assert memory < 0.6 * memory_of_whole


def with_remat(remat: str) -> tuple[TCLObjective, Any, Any]:
    objective, params, frozen = subjects()["tcl"]
    assert isinstance(objective, TCLObjective)
    model = dataclasses.replace(objective.model, remat=remat)
    return dataclasses.replace(objective, model=model), params, frozen


def test_rematerialisation_changes_no_result() -> None:
    found, _ = compute(*with_remat("blocks"))
    assert_same(found, whole("tcl")[0])


def kept_bytes(objective: Objective, params: Any, frozen: Any) -> int:
    """Bytes that the forward pass keeps for the gradient, beside what it was given."""

    def forward(params: Any, frozen: Any, batch: Any) -> Any:
        prepared = objective.prepare(frozen, with_keys(batch, jax.random.key(0)))
        embed = lambda params: objective.embed(params, frozen, prepared, prepared)  # noqa: E731
        return jax.vjp(embed, params)[1]

    kept = jax.eval_shape(forward, params, frozen, batch_of())
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))


# The CPU's compiler undoes rematerialisation, so its memory tells nothing.
def test_rematerialisation_keeps_less() -> None:
    given = sum(x.nbytes for x in jax.tree.leaves(subjects()["tcl"][1:]))
    kept = [kept_bytes(*with_remat(remat)) - given for remat in ("none", "activations", "blocks")]
    assert kept[2] < kept[1] < kept[0], kept
    assert kept[2] < 0.6 * kept[0], kept


def test_unknown_remat_is_refused() -> None:
    config = tiny_clip_config()
    config.train.remat = "all"
    with pytest.raises(InputError, match="train.remat='all'"):
        build_experiment(config)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_of_float32_are_exact_where_it_matters(dtype: Any) -> None:
    """All of a float32 model's, with their gradients; of a bfloat16 model's those of the losses."""
    objective, learned, frozen = subjects()["tcl"]
    assert isinstance(objective, TCLObjective)
    model = dataclasses.replace(objective.model, dtype=dtype)
    objective = dataclasses.replace(objective, model=model)
    config = tiny_clip_config()
    adamw, schedule = build_adamw(config), build_schedule(config)
    step = make_step(objective, adamw, schedule, train_groups=("head", "backbone"))
    state = create_state(learned, objective, adamw)
    batch, key = batch_of(), jax.random.key(1)
    healthy = no_failure(objective, state, frozen, batch, key)
    with jax.default_matmul_precision("default"):  # conftest's is another
        traced = jax.make_jaxpr(step)(state, healthy, frozen, batch, key)
    found = list(products(traced.jaxpr))
    rounded = [shapes for shapes, exact in found if not exact]
    loss = ((ROWS, SIZES.embed_dim), (ROWS, SIZES.embed_dim))
    assert (loss, True) in found
    if dtype == jnp.float32:
        assert rounded == [] and len(found) > 20
    else:
        assert loss not in rounded
