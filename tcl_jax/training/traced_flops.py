"""FLOPs of a traced program, the bodies of its loops as often as they run."""

from __future__ import annotations

import math
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr


def traced_flops(traced: ClosedJaxpr) -> float:
    """FLOPs of all matrix products and convolutions that a program needs for its results.

    Over all devices, and what is computed again for the gradient counts again. XLA's own count
    (`cost_analysis`) takes the body of a loop once, however often it runs.

    Args:
        traced: `jax.stages.Traced.jaxpr`.
    """
    needed, _ = dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    return _flops(needed)


def _flops(jaxpr: Jaxpr) -> float:
    return sum(_flops_of(equation) for equation in jaxpr.eqns)


def _flops_of(equation: JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = _shape(equation.invars[0])
        return 2.0 * _size(equation.outvars[0]) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = _shape(equation.invars[1])
        _, inputs, *spatial = params["dimension_numbers"].rhs_spec
        taps = math.prod(kernel[axis] for axis in spatial) * kernel[inputs]
        return 2.0 * _size(equation.outvars[0]) * taps
    # Whether closed or not depends on the primitive.
    inner = [_flops(getattr(jaxpr, "jaxpr", jaxpr)) for jaxpr in jaxprs_in_params(params)]
    if not inner:
        return 0.0
    if name == "cond":
        return max(inner)
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "shard_map":
        mesh, axes = params["mesh"], params["newly_manual_axes"]
        return math.prod(mesh.shape[axis] for axis in axes) * sum(inner)
    return sum(inner)


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(variable.aval.shape)


def _size(variable: Any) -> int:
    return math.prod(_shape(variable))
