"""One training step: loss, gradient, clip, AdamW; compiled once per phase."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tcl_jax.parallel.mesh import batch_sharded, replicated
from tcl_jax.training.objectives import Batch, LossOutput, Objective
from tcl_jax.training.optim import (
    AdamW,
    Flat,
    Schedule,
    apply_updates,
    merge_groups,
    split_groups,
)
from tcl_jax.training.state import Failure, TrainState

LossFn = Callable[[Any, Batch, jax.Array], LossOutput]
StepFn = Callable[
    [TrainState, Failure, Any, Batch, jax.Array],
    tuple[TrainState, Failure, dict[str, jax.Array]],
]


def make_step(
    objective: Objective,
    adamw: AdamW,
    schedule: Schedule,
    *,
    train_groups: tuple[str, ...],
    accumulation_steps: int = 1,
) -> StepFn:
    """A function of one step, to be jitted by the caller with its shardings.

    Args:
        objective: loss and parameter groups.
        adamw, schedule: of the update.
        train_groups: groups that train in this phase; no gradient is computed for the others.
        accumulation_steps: the batch is taken in this many parts and their gradients averaged.
            Each part contrasts within itself, so for contrastive terms this is a smaller batch.

    Returns:
        `(state, failure, frozen, batch, key) -> (state, failure, metrics)`; `key` is the run's
        root key for this stream, folded with the step here. `metrics` are float32 scalars.
    """

    def step(
        state: TrainState, failure: Failure, frozen: Any, batch: Batch, key: jax.Array
    ) -> tuple[TrainState, Failure, dict[str, jax.Array]]:
        groups = split_groups(state.params, objective.group_of)
        fixed = {name: group for name, group in groups.items() if name not in train_groups}
        trained = {name: group for name, group in groups.items() if name in train_groups}

        def loss(trained: dict[str, Flat], batch: Batch, key: jax.Array) -> LossOutput:
            return objective(merge_groups({**fixed, **trained}), frozen, batch, key)

        key = jax.random.fold_in(key, state.step)
        output, gradients = accumulated_gradient(loss, trained, batch, key, accumulation_steps)
        learning_rate = schedule(state.step)
        new_groups, new_opt_state, norm = apply_updates(
            adamw, groups, gradients, state.opt_state, learning_rate
        )
        finite = jnp.isfinite(output.total) & jnp.isfinite(norm)
        healthy = (failure.step < 0) & finite
        keep = lambda new, old: jax.tree.map(  # noqa: E731
            lambda a, b: jnp.where(healthy, a, b), new, old
        )
        terms = {**output.terms, "total": output.total, "grad_norm": norm}
        first = (failure.step < 0) & ~finite
        new_failure = Failure(
            step=jnp.where(first, state.step, failure.step),
            terms=jax.tree.map(lambda a, b: jnp.where(first, a, b), terms, failure.terms),
        )
        new_state = TrainState(
            step=state.step + 1,
            params=keep(merge_groups(new_groups), state.params),
            opt_state=keep(new_opt_state, state.opt_state),
        )
        return new_state, new_failure, {**terms, **output.measures, "lr": learning_rate}

    return step


def accumulated_gradient(
    loss: LossFn, trained: Any, batch: Batch, key: jax.Array, parts: int
) -> tuple[LossOutput, Any]:
    """Loss output and gradient, averaged over `parts` of the batch (every parts-th row each)."""

    def value(trained: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, LossOutput]:
        output = loss(trained, batch, key)
        return output.total, output

    gradient = jax.grad(value, has_aux=True)
    if parts == 1:
        grads, output = gradient(trained, batch, key)
        return output, grads

    # Strided parts keep every device's rows on that device.
    split = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0), batch
    )

    def body(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        grads, output = gradient(trained, *part)
        return jax.tree.map(jnp.add, total, (output, grads)), None

    keys = jax.random.split(key, parts)
    first = jax.tree.map(lambda x: x[0], split)
    shapes = jax.eval_shape(lambda: gradient(trained, first, keys[0])[::-1])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(body, zeros, (split, keys))
    output, grads = jax.tree.map(lambda x: x / parts, total)
    return output, grads


def no_failure(
    objective: Objective, state: TrainState, frozen: Any, batch: Batch, key: jax.Array
) -> Failure:
    """The failure record of a healthy run, on the host, with the objective's own terms."""
    output = jax.eval_shape(objective, state.params, frozen, batch, key)
    names = [*output.terms, "total", "grad_norm"]
    # NumPy, as the loop forbids implicit transfers to the device.
    terms: dict[str, Any] = {name: np.zeros((), np.float32) for name in names}
    return Failure(step=cast(jax.Array, np.full((), -1, np.int32)), terms=terms)


class PhasedStep:
    """The step of either phase, each compiled once, when it is first needed.

    Phase 1 trains the head; from `backbone_from_step` on, the backbone trains too.

    Args:
        objective, adamw, schedule, accumulation_steps: see `make_step`.
        mesh: batches are split over it by rows, everything else is replicated.
        backbone_from_step: first step of phase 2.
    """

    def __init__(
        self,
        objective: Objective,
        adamw: AdamW,
        schedule: Schedule,
        mesh: Mesh,
        *,
        backbone_from_step: int,
        accumulation_steps: int = 1,
    ) -> None:
        self._backbone_from_step = backbone_from_step
        everywhere, rows = replicated(mesh), batch_sharded(mesh)

        def jitted(groups: tuple[str, ...]) -> Any:
            step = make_step(
                objective,
                adamw,
                schedule,
                train_groups=groups,
                accumulation_steps=accumulation_steps,
            )
            return jax.jit(
                step,
                in_shardings=(everywhere, everywhere, everywhere, rows, everywhere),
                out_shardings=everywhere,
                donate_argnums=(0, 1),
            )

        self._jitted = (jitted(("head",)), jitted(("head", "backbone")))
        self._compiled: dict[int, Any] = {}
        self.flops = 0.0
        """FLOPs of the last phase's step on one device, as XLA counts them."""

    def __call__(
        self,
        step: int,
        state: TrainState,
        failure: Failure,
        frozen: Any,
        batch: Batch,
        key: jax.Array,
    ) -> tuple[TrainState, Failure, dict[str, jax.Array]]:
        """One update; state and failure record are donated."""
        phase = int(step >= self._backbone_from_step)
        arguments = (state, failure, frozen, batch, key)
        if phase not in self._compiled:
            self._compiled = {phase: self.trace(phase, *arguments).lower().compile()}
            self.flops = self._compiled[phase].cost_analysis().get("flops", 0.0)
        return self._compiled[phase](*arguments)

    def trace(
        self,
        phase: int,
        state: TrainState,
        failure: Failure,
        frozen: Any,
        batch: Batch,
        key: jax.Array,
    ) -> jax.stages.Traced:
        """The step of a phase (0 or 1) for arguments placed like these; shapes will do."""
        traced: jax.stages.Traced = self._jitted[phase].trace(state, failure, frozen, batch, key)
        return traced
