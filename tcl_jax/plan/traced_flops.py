"""FLOPs of a traced program, the bodies of its loops as often as they run."""

from __future__ import annotations

import math
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr


def traced_flops(traced: ClosedJaxpr, platform: str = "cpu") -> float:
    """FLOPs of all matrix products and convolutions that a program needs for its results.

    Over all devices, and what is computed again for the gradient counts again. XLA's own count
    (`cost_analysis`) takes the body of a loop once, however often it runs. The zeros between the
    samples of a transposed convolution do not count.

    Args:
        traced: `jax.stages.Traced.jaxpr`.
        platform: of the devices, where it computes in different ways.
    """
    needed, _ = dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    return _flops(needed, platform)


def _flops(jaxpr: Jaxpr, platform: str) -> float:
    return sum(_flops_of(equation, platform) for equation in jaxpr.eqns)


def _flops_of(equation: JaxprEqn, platform: str) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = _shape(equation.invars[0])
        return 2.0 * _size(equation.outvars[0]) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = _shape(equation.invars[1])
        _, inputs, *spatial = params["dimension_numbers"].rhs_spec
        taps = math.prod(kernel[axis] for axis in spatial) * kernel[inputs]
        zeros = math.prod(params["lhs_dilation"])
        return 2.0 * _size(equation.outvars[0]) * taps / zeros
    # Whether closed or not depends on the primitive.
    inner = [_flops(getattr(jaxpr, "jaxpr", jaxpr), platform) for jaxpr in jaxprs_in_params(params)]
    if not inner:
        return 0.0
    if name == "cond":
        places = params.get("branches_platforms") or [None] * len(inner)
        own = [flops for flops, of in zip(inner, places, strict=True) if of and platform in of]
        return own[0] if own else max(f for f, of in zip(inner, places, strict=True) if not of)
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
