"""Everything that a training step reads and writes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from tcl_jax.training.objectives import Objective
from tcl_jax.training.optim import AdamW, init_optimizer, split_groups


@struct.dataclass
class TrainState:
    """Learned parameters and their optimiser; the frozen ones are held apart.

    Attributes:
        step: int32, number of updates made, so the next batch to take.
        params: learned parameters, float32.
        opt_state: Adam's moments and count per parameter group.
    """

    step: jax.Array
    params: Any
    opt_state: dict[str, Any]


@struct.dataclass
class Failure:
    """The first step whose loss or gradient was not finite, remembered on the device.

    From that step on parameters and moments keep their last good values, so that the host may
    look only when it logs and still name the step and keep the state.

    Attributes:
        step: int32, -1 while all is well.
        terms: loss terms and gradient norm of that step.
    """

    step: jax.Array
    terms: dict[str, jax.Array]


def create_state(params: Any, objective: Objective, adamw: AdamW) -> TrainState:
    """A state at step 0 with zero moments."""
    groups = split_groups(params, objective.group_of)
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, opt_state=init_optimizer(adamw, groups)
    )
