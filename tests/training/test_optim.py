"""Schedule, decay, clipping and groups of the optimiser."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.training.optim import (
    AdamW,
    apply_updates,
    decay_mask,
    init_optimizer,
    split_groups,
    warmup_cosine,
)

PARAMS = {
    "grounder": {
        "blocks_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones((3, 1, 2))},
        "norm": {"scale": jnp.ones(3), "bias": jnp.ones(3)},
        "gate": jnp.array(1.0),
    },
    "proj": jnp.ones((3, 2)),
}


def group_of(path: str) -> str:
    return "backbone" if "blocks" in path else "head"


def test_decay_spares_one_dimensional_tensors_and_biases() -> None:
    decayed = {
        path
        for group in split_groups(PARAMS, group_of).values()
        for path, yes in decay_mask(group).items()
        if yes
    }
    assert decayed == {"grounder/blocks_0/kernel", "grounder/gate", "proj"}


def test_schedule() -> None:
    schedule = warmup_cosine(1.0, 0.1, warmup_steps=10, total_steps=30)
    values = [float(schedule(jnp.array(t))) for t in (0, 5, 10, 20, 30, 31)]
    np.testing.assert_allclose(values, [1e-4, 0.50005, 1.0, 0.55, 0.1, 0.1], rtol=1e-5)
    assert float(warmup_cosine(1.0, 0.1, 0, 10)(jnp.array(0))) == 1.0


def test_groups_without_gradient_stay_as_they_are() -> None:
    adamw, groups = AdamW(weight_decay=0.1), split_groups(PARAMS, group_of)
    state = init_optimizer(adamw, groups)
    gradient = {"head": {k: jnp.ones_like(v) for k, v in groups["head"].items()}}
    new, new_state, _ = apply_updates(adamw, groups, gradient, state, jnp.array(0.1))
    assert new["backbone"] is groups["backbone"]
    assert new_state["backbone"] is state["backbone"]
    assert int(new_state["head"][0].count) == 1
    # One step of Adam moves by the learning rate, decay takes 0.1 x 0.1 more.
    np.testing.assert_allclose(new["head"]["grounder/norm/scale"], 0.9, rtol=1e-4)
    np.testing.assert_allclose(new["head"]["proj"], 0.89, rtol=1e-4)


@pytest.mark.parametrize("size", [0.1, 10.0])
def test_clipping_is_by_the_global_norm(size: float) -> None:
    adamw = AdamW(clip_norm=1.0, weight_decay=0.0, eps=1e3)  # so large that steps are linear
    groups = {"head": {"a": jnp.zeros(4), "b": jnp.zeros(12)}}
    gradient = {"head": {"a": jnp.full(4, size), "b": jnp.full(12, size)}}
    state = init_optimizer(adamw, groups)
    new, _, norm = apply_updates(adamw, groups, gradient, state, jnp.array(1.0))
    assert float(norm) == pytest.approx(4 * size, rel=1e-6)
    expected = size * min(1, 1 / (4 * size)) / 1e3
    np.testing.assert_allclose(new["head"]["a"], -expected, rtol=1e-3)
