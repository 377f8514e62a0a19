"""One training step: loss, gradient, clip, AdamW; compiled once per phase."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from tcl_jax.models.layers import matmul_precision
from tcl_jax.training.objectives import Batch, LossOutput, Objective, with_keys
from tcl_jax.training.optim import AdamW, Schedule, apply_updates, merge_groups, split_groups
from tcl_jax.training.state import Failure, TrainState

PHASES: Mapping[int, tuple[str, ...]] = {1: ("head",), 2: ("head", "backbone")}
"""Groups of parameters that train in each phase, counted from 1."""

StepFn = Callable[
    [TrainState, Failure, Any, Batch, jax.Array],
    tuple[TrainState, Failure, dict[str, jax.Array]],
]


def make_step(
    objective: Objective,
    adamw: AdamW,
    schedule: Schedule,
    train_groups: tuple[str, ...],
    accumulation_steps: int = 1,
) -> StepFn:
    """A function of one step, to be jitted by the caller with its shardings.

    Args:
        objective: loss and parameter groups.
        adamw, schedule: of the update.
        train_groups: groups that train in this phase; no gradient is computed for the others.
        accumulation_steps: parts that the batch is taken in, see `loss_and_gradient`.

    Returns:
        `(state, failure, frozen, batch, key) -> (state, failure, metrics)`; the step's number is
        folded into `key`, the root key of the masks' noise. `metrics` are float32 scalars.
    """

    def step(
        state: TrainState, failure: Failure, frozen: Any, batch: Batch, key: jax.Array
    ) -> tuple[TrainState, Failure, dict[str, jax.Array]]:
        groups = split_groups(state.params, objective.group_of)
        fixed = {name: group for name, group in groups.items() if name not in train_groups}
        trained = {name: group for name, group in groups.items() if name in train_groups}

        with matmul_precision(objective.model.dtype):
            output, gradients = loss_and_gradient(
                objective,
                lambda trained: merge_groups({**fixed, **trained}),
                trained,
                frozen,
                with_keys(batch, jax.random.fold_in(key, state.step)),
                parts=accumulation_steps,
            )
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


def loss_and_gradient(
    objective: Objective,
    params_of: Callable[[Any], Any],
    trained: Any,
    frozen: Any,
    batch: Batch,
    *,
    parts: int = 1,
) -> tuple[LossOutput, Any]:
    """The loss of a global batch and its gradient, in the memory that a part of the batch takes.

    With more than one part every example is embedded twice: first without a gradient, for what the
    loss needs of all rows; then part by part again, for the gradient of the parameters from that of
    the rows (Gao et al., "Scaling deep contrastive learning batch size under memory limited setup",
    2021). Loss and gradient are those of the whole batch, up to rounding.

    Args:
        objective: the loss.
        params_of: `trained` to the objective's learned parameters.
        trained: what the gradient is taken of.
        frozen: frozen parameters.
        batch: rows with their `keys`.
        parts: number of parts; each takes every parts-th row.
    """

    def combine(trained: Any, embedded: Any) -> tuple[jax.Array, LossOutput]:
        output = objective.combine(params_of(trained), embedded)
        return output.total, output

    if parts == 1:
        prepared = objective.prepare(frozen, batch)

        def loss(trained: Any) -> tuple[jax.Array, LossOutput]:
            embedded = objective.embed(params_of(trained), frozen, prepared, prepared)
            return combine(trained, embedded)

        gradient, output = jax.grad(loss, has_aux=True)(trained)
        return output, gradient

    pieces = jax.lax.map(lambda rows: objective.prepare(frozen, rows), _split(batch, parts))
    prepared = _join(pieces)

    def embed(trained: Any, rows: Batch) -> Any:
        return objective.embed(params_of(trained), frozen, rows, prepared)

    embedded = _join(jax.lax.map(lambda rows: embed(trained, rows), pieces))
    (gradient, towards_rows), output = jax.grad(combine, argnums=(0, 1), has_aux=True)(
        trained, embedded
    )

    def add(gradient: Any, piece: tuple[Batch, Any]) -> tuple[Any, None]:
        rows, towards = piece
        _, pull = jax.vjp(lambda trained: embed(trained, rows), trained)
        return jax.tree.map(jnp.add, gradient, *pull(towards)), None

    gradient, _ = jax.lax.scan(add, gradient, (pieces, _split(towards_rows, parts)))
    return output, gradient


def _split(batch: Any, parts: int) -> Any:
    """[b, ...] to [parts, b / parts, ...]; strided, so that every device's rows stay there."""
    return jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0), batch
    )


def _join(pieces: Any) -> Any:
    """Inverse of `_split`."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), pieces)


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
    """The step of either phase (paper section 4.1), each compiled once, when it is first needed.

    Phase 1 trains the head; from `backbone_from_step` on, the backbone trains too (the original's
    `set_train` with `decoder_only` and without).

    Args:
        objective, adamw, schedule, accumulation_steps: see `make_step`.
        backbone_from_step: first step of phase 2.
    """

    def __init__(
        self,
        objective: Objective,
        adamw: AdamW,
        schedule: Schedule,
        *,
        backbone_from_step: int,
        accumulation_steps: int = 1,
    ) -> None:
        self._backbone_from_step = backbone_from_step
        self._steps = {
            phase: make_step(objective, adamw, schedule, groups, accumulation_steps)
            for phase, groups in PHASES.items()
        }
        self._compiled: dict[int, jax.stages.Compiled] = {}

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
        phase = 2 if step >= self._backbone_from_step else 1
        arguments = (state, failure, frozen, batch, key)
        if phase not in self._compiled:
            self._compiled = {phase: self.trace(phase, *arguments).lower().compile()}
        return self._compiled[phase](*arguments)

    def trace(
        self, phase: int, state: TrainState, failure: Failure, *rest: Any
    ) -> jax.stages.Traced:
        """The step of a phase of `PHASES` for arguments with these shapes, dtypes and shardings.

        Output shardings equal the inputs'; the metrics are replicated as the failure record is.
        """
        shardings = jax.tree.map(lambda x: x.sharding, (state, failure))
        step = jax.jit(
            self._steps[phase],
            out_shardings=(*shardings, failure.step.sharding),
            donate_argnums=(0, 1),
        )
        traced: jax.stages.Traced = step.trace(state, failure, *rest)
        return traced
