"""The pre-norm transformer block of every tower, as functions of its parameters.

Parameters are nested dicts of float32 arrays, and settings hold only what cannot be read from them:
number and size of heads are axes of the kernels, and biases, LayerScale and SwiGLU are used where
their parameters are there. A block holds

    ln_1, ln_2      {norm: {scale, bias}}, [c] each
    attn            {in_proj: {kernel [c, 3, heads, d], bias [3, heads, d]},
                     out_proj: {kernel [heads, d, c], bias [c]}}
    mlp             {c_fc: {kernel [c, m], bias [m]}, c_proj: {kernel [m, c], bias [c]}}, and
                    `gate`, as c_fc, for SwiGLU
    ls_1, ls_2      LayerScale, [c] each; may be absent, as any bias may
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.nn.initializers import lecun_normal
from jaxtyping import Array, Float, Key

from tcl_jax.errors import InputError
from tcl_jax.models.attention import Attention, softmax_attention

CLIP_EPS = 1e-5
"""Epsilon of every LayerNorm in CLIP and in TCL's decoder (PyTorch's default)."""

Activation = Callable[[jax.Array], jax.Array]


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x * sigmoid(1.702 x)`, the GELU approximation that OpenAI's weights were trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The error-function GELU, used by OpenCLIP's ViTs, DINOv2, DINOv3 and by TCL's decoder."""
    return jax.nn.gelu(x, approximate=False)


def tanh_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The GELU approximated by a tanh, which TIPS was trained with."""
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Activation] = {"quick_gelu": quick_gelu, "gelu": exact_gelu}
"""Of CLIPs, by the name that configs and flags give."""

COMPUTE_DTYPES: dict[str, Any] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
"""What a network may compute in, by the name that configs and flags give."""


def compute_dtype(name: str, field: str = "dtype") -> Any:
    """The dtype of a name in `COMPUTE_DTYPES`.

    Raises:
        InputError: if there is none; it calls the name by its field.
    """
    if name not in COMPUTE_DTYPES:
        known = ", ".join(COMPUTE_DTYPES)
        raise InputError(f"{field}={name!r} is unknown; choose one of {known}")
    return COMPUTE_DTYPES[name]


def matmul_precision(dtype: Any) -> AbstractContextManager[None]:
    """While active, products of float32 arrays are traced so that a network's dtype means itself.

    By itself JAX rounds their factors on TPUs (to bfloat16) and GPUs (to TF32). That is in keeping
    with a network that computes in bfloat16, but not with one in float32.
    """
    exact = jnp.dtype(dtype) == jnp.float32
    return jax.default_matmul_precision("highest" if exact else "default")


CONVOLUTION = "convolution"
"""Name of what convolutions return, by which rematerialisation knows it."""

REMAT: dict[str, Any] = {
    "none": None,
    "activations": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(CONVOLUTION),
    ),
    "blocks": jax.checkpoint_policies.nothing_saveable,
}
"""What a block computes again for the gradient instead of keeping it: nothing; norms, softmax and
activation functions, but no dense layer or convolution; everything but the block's input."""


def rematerialized(function: Callable[..., Any], remat: str) -> Callable[..., Any]:
    """A function of arrays that keeps for its gradient what a row of `REMAT` lets it."""
    return function if remat == "none" else jax.checkpoint(function, policy=REMAT[remat])


@dataclasses.dataclass(frozen=True)
class Transformer:
    """Settings of a tower that its parameters do not show.

    Attributes:
        eps: of every LayerNorm.
        activation: of plain MLPs; SwiGLU has its own.
        dtype: compute dtype; norms and softmax are float32.
        remat: a key of `REMAT`.
    """

    eps: float = 1e-6
    activation: Activation = exact_gelu
    dtype: Any = jnp.float32
    remat: str = "none"


@struct.dataclass
class BlockOutput:
    """What a block computes; `jit` drops what the caller leaves unread.

    Attributes:
        output: [b, l, c] after both residual branches.
        attended: [b, l, c] what the attention branch alone yields, after its output projection.
        query, key, value: [b, l, heads, d], before RoPE.
    """

    output: jax.Array
    attended: jax.Array
    query: jax.Array
    key: jax.Array
    value: jax.Array


def layer_norm(x: Float[Array, "... c"], params: Any, eps: float) -> Float[Array, "... c"]:
    """LayerNorm over the last axis, computed in float32 and returned in the input's dtype."""
    wide, norm = x.astype(jnp.float32), params["norm"]
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    # Two passes: E[x^2] - E[x]^2 loses digits that parity needs.
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    scaled = centred * (jax.lax.rsqrt(variance + eps) * norm["scale"]) + norm["bias"]
    return scaled.astype(x.dtype)


def dense(x: jax.Array, params: Any, dtype: Any, axes: int = 1) -> jax.Array:
    """`x W + b` in a dtype, over the last `axes` axes of x and the first of W."""
    y = jnp.tensordot(x.astype(dtype), params["kernel"].astype(dtype), axes)
    return y + params["bias"].astype(dtype) if "bias" in params else y


def block(
    settings: Transformer,
    params: Any,
    x: Float[Array, "b l c"],
    attention: Attention = softmax_attention,
    rotate: Callable[[jax.Array], jax.Array] | None = None,
) -> BlockOutput:
    """Attention, then MLP, each after a LayerNorm and on a residual branch.

    Args:
        settings, params: of the tower and of this block.
        x: tokens.
        attention: what the tokens take of the values.
        rotate: RoPE of queries and keys, where there is one.
    """
    eps, dtype = settings.eps, settings.dtype
    fused = dense(layer_norm(x, params["ln_1"], eps), params["attn"]["in_proj"], dtype)
    query, key, value = jnp.moveaxis(fused, 2, 0)
    with jax.named_scope("attention"):  # by which profiles know it
        q, k = (query, key) if rotate is None else (rotate(query), rotate(key))
        values = attention(q, k, value)
    attended = dense(values, params["attn"]["out_proj"], dtype, axes=2)
    x = x + _layer_scale(attended, params.get("ls_1"))
    hidden = mlp(settings, params["mlp"], layer_norm(x, params["ln_2"], eps))
    output = x + _layer_scale(hidden, params.get("ls_2"))
    return BlockOutput(output, attended, query, key, value)


def mlp(settings: Transformer, params: Any, x: Float[Array, "b l c"]) -> Float[Array, "b l c"]:
    """Two dense layers, or SwiGLU where the parameters have a gate."""
    hidden = dense(x, params["c_fc"], settings.dtype)
    if "gate" in params:
        hidden = jax.nn.silu(dense(x, params["gate"], settings.dtype)) * hidden
    else:
        hidden = settings.activation(hidden)
    return dense(hidden, params["c_proj"], settings.dtype)


def _layer_scale(x: Float[Array, "b l c"], scale: jax.Array | None) -> Float[Array, "b l c"]:
    return x if scale is None else x * scale.astype(x.dtype)


def run_blocks(
    settings: Transformer,
    params: Any,
    x: Float[Array, "b l c"],
    attention: Attention = softmax_attention,
    rotate: Callable[[jax.Array], jax.Array] | None = None,
    last_attention: Attention | None = None,
) -> tuple[BlockOutput, ...]:
    """All blocks of a tower in a row.

    Args:
        settings: of the tower.
        params: has the blocks as `blocks_0`, `blocks_1`, ..., and may have more.
        x, attention, rotate: as in `block`.
        last_attention: of the last block, if it has another.
    """
    depth, outputs = sum(name.startswith("blocks_") for name in params), []
    for number in range(depth):
        if number == depth - 1 and last_attention is not None:
            attention = last_attention
        run = partial(block, settings, attention=attention, rotate=rotate)
        outputs.append(rematerialized(run, settings.remat)(params[f"blocks_{number}"], x))
        x = outputs[-1].output
    return tuple(outputs)


# -------------------------------------------------------------------------- parameters at the start


def init_layer_norm(width: int) -> dict[str, Any]:
    """The identity but for the norm."""
    return {"norm": {"scale": jnp.ones(width), "bias": jnp.zeros(width)}}


def init_block(key: Key[Array, ""], width: int, heads: int) -> dict[str, Any]:
    """A block with a hidden width of four times its own, kernels drawn by LeCun's rule."""
    keys, size = jax.random.split(key, 4), width // heads
    shapes = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
    in_proj, out_proj, c_fc, c_proj = (
        {"kernel": lecun_normal()(key, shape), "bias": jnp.zeros(shape[1])}
        for key, shape in zip(keys, shapes, strict=True)
    )
    in_proj = {name: x.reshape(*x.shape[:-1], 3, heads, size) for name, x in in_proj.items()}
    out_proj["kernel"] = out_proj["kernel"].reshape(heads, size, width)
    return {
        "ln_1": init_layer_norm(width),
        "attn": {"in_proj": in_proj, "out_proj": out_proj},
        "ln_2": init_layer_norm(width),
        "mlp": {"c_fc": c_fc, "c_proj": c_proj},
    }
