"""Gradients and a twelve-step run against the reference implementation."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.models.tcl import TCL
from tcl_jax.training.objectives import TCLObjective
from tcl_jax.training.optim import AdamW, merge_groups, split_groups, warmup_cosine
from tcl_jax.training.state import create_state
from tcl_jax.training.step import make_step, no_failure
from tcl_jax.weights.tcl import tcl_rules, tcl_state_dict
from tests.reference import (
    FEATURE_LAYER,
    arrays,
    load,
    nchw_to_nhwc,
    reference_model,
    relative_error,
)

GRADIENTS = load("grads")
PHASE_SWITCH = 6


class SignsOfTheReference(TCLObjective):
    """The objective, with the slope of the pixels' total variation where the reference has it.

    In its embeddings neighbours differ by as little as 1.8e-7, so that rounding decides on which
    side of the kink of `abs` they lie, and a sign more or less is a hundredth of some gradients.
    """

    def embed(self, params: Any, frozen: Any, rows: Any, batch: Any) -> Any:
        grounded = super().embed(params, frozen, rows, batch)
        pixels = self.model.dense_features({**params, **frozen}, rows["image"])

        def variation(x: jax.Array, reference: jax.Array) -> jax.Array:
            slopes = [
                jnp.mean(jnp.sign(jnp.diff(reference, axis=axis)) * jnp.diff(x, axis=axis))
                for axis in (1, 2)
            ]
            return slopes[0] + slopes[1]

        found = jax.vmap(variation)(jnp.moveaxis(pixels, -1, 1), rows["reference"])
        return grounded.replace(variation=found)


def trained_and_frozen() -> tuple[TCL, Any, Any]:
    model, learned, clip = reference_model()
    return model, learned, {"clip": clip}


@cache
def gradients() -> dict[str, np.ndarray]:
    model, learned, frozen = trained_and_frozen()
    golden = arrays("forward")
    own = np.arange(len(golden["image"]))
    batch = {
        "image": nchw_to_nhwc(golden["image"]),
        "tokens": golden["tokens"],
        "uniform": golden["uniform"][own, own],
        "reference": golden["masker_image_emb"],
    }
    objective = SignsOfTheReference(model)
    plain, signed = (
        jax.jit(o)(learned, frozen, batch, jax.random.key(0)).terms["tv_img"]
        for o in (TCLObjective(model), objective)
    )
    np.testing.assert_allclose(signed, plain, rtol=1e-5)

    def total(learned: Any) -> jax.Array:
        return objective(learned, frozen, batch, jax.random.key(0)).total

    return tcl_state_dict(jax.jit(jax.grad(total))(learned), model.config, FEATURE_LAYER)


@pytest.mark.parametrize("name", sorted(GRADIENTS))
def test_gradient_matches_reference(name: str) -> None:
    assert relative_error(gradients()[name], GRADIENTS[name]) < 1e-4


@cache
def trajectory() -> tuple[list[dict[str, float]], dict[str, np.ndarray], Any]:
    golden = load("trajectory")
    model, learned, frozen = trained_and_frozen()
    objective = TCLObjective(model)
    adamw = AdamW(clip_norm=1.0)
    schedule = warmup_cosine(2e-3, 1e-4, warmup_steps=4, total_steps=12)
    phases = [
        jax.jit(make_step(objective, adamw, schedule, train_groups=groups))
        for groups in (("head",), ("head", "backbone"))
    ]
    state = create_state(jax.tree.map(jnp.asarray, learned), objective, adamw)
    own = np.arange(4)
    records, failure = [], None
    for i in range(12):
        batch = {
            "image": nchw_to_nhwc(golden["images"][i]).astype(np.float32),
            "tokens": golden["tokens"][i],
            "uniform": golden["uniform"][i][own, own].astype(np.float32),
        }
        if failure is None:
            healthy = no_failure(objective, state, frozen, batch, jax.random.key(0))
            failure = jax.tree.map(jnp.asarray, healthy)
        step = phases[i >= PHASE_SWITCH]
        state, failure, metrics = step(state, failure, frozen, batch, jax.random.key(0))
        records.append({k: float(v) for k, v in metrics.items()})
    assert [phase._cache_size() for phase in phases] == [1, 1]
    return records, tcl_state_dict(state.params, model.config, FEATURE_LAYER), state


def test_losses_along_the_run() -> None:
    golden = load("trajectory")
    for i, record in enumerate(trajectory()[0]):
        for j, name in enumerate(golden["loss_names"]):
            expected = golden["losses"][i, j]
            assert abs(record[name.removesuffix("_loss")] - expected) <= 5e-4 * max(
                abs(expected), 1e-3
            ), (i, name)


def test_learning_rates_along_the_run() -> None:
    rates = [record["lr"] for record in trajectory()[0]]
    np.testing.assert_allclose(rates, load("trajectory")["learning_rate"], rtol=1e-6)


def test_gradient_norms_along_the_run() -> None:
    norms = [record["grad_norm"] for record in trajectory()[0]]
    np.testing.assert_allclose(norms, load("trajectory")["grad_norm"], rtol=1e-4)


FINAL = [name.removeprefix("final/") for name in load("trajectory") if name.startswith("final/")]


@pytest.mark.parametrize("name", FINAL)
def test_final_parameter(name: str) -> None:
    final = trajectory()[1][name]
    assert relative_error(final, load("trajectory")[f"final/{name}"]) < 2e-3


def test_backbone_counts_its_own_steps() -> None:
    counts = {name: int(s[0].count) for name, s in trajectory()[2].opt_state.items()}
    assert counts == {"head": 12, "backbone": 6}


def test_phase_one_trains_what_the_reference_trains() -> None:
    model, learned, _ = reference_model()
    groups = split_groups(learned, TCLObjective(model).group_of)
    by_path = {"/".join(rule.path): rule.name for rule in tcl_rules(model.config, FEATURE_LAYER)}
    ours = {by_path[path] for path in groups["head"]}
    theirs = {str(name) for name in load("trajectory")["ust_trainable"]}
    assert ours == theirs
    assert jax.tree.structure(merge_groups(groups)) == jax.tree.structure(learned)
