"""Transformer layers shared by both CLIP towers and the grounder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tcl_jax.errors import InputError
from tcl_jax.models.attention import AttentionFn

LAYER_NORM_EPS = 1e-5
"""Epsilon of every LayerNorm in CLIP and in TCL's decoder (PyTorch's default)."""


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x * sigmoid(1.702 x)`, the GELU approximation that OpenAI's weights were trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The error-function GELU, used by OpenCLIP's ViTs and by TCL's decoder."""
    return jax.nn.gelu(x, approximate=False)


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

LayerClass = TypeVar("LayerClass", bound=type[nn.Module])


def rematerialized(layer: LayerClass, remat: str, static: tuple[int, ...] = ()) -> LayerClass:
    """A layer that keeps for its gradient what a row of `REMAT` lets it.

    Args:
        layer: the class; parameters and results stay the same.
        remat: a key of `REMAT`.
        static: positions of arguments of its call that are no arrays, `self` being 0.
    """
    if remat == "none":
        return layer
    return nn.remat(layer, policy=REMAT[remat], static_argnums=static)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": exact_gelu,
}


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, computed in float32 and returned in the input's dtype."""

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        # Two-pass variance: E[x^2] - E[x]^2 loses digits that parity needs.
        norm = nn.LayerNorm(epsilon=LAYER_NORM_EPS, use_fast_variance=False, name="norm")
        return norm(x.astype(jnp.float32)).astype(x.dtype)


class Attention(nn.Module):
    """Multi-head attention with one fused projection for queries, keys and values.

    Attributes:
        heads: number of heads; the width must be a multiple of it.
        dtype: compute dtype of the projections; parameters are float32.
    """

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"], attention: AttentionFn) -> Float[Array, "b l c"]:
        width = x.shape[-1]
        qkv = nn.DenseGeneral(
            (3, self.heads, width // self.heads), dtype=self.dtype, name="in_proj"
        )(x)
        query, key, value = jnp.moveaxis(qkv, 2, 0)
        mixed = attention(query, key, value)
        return nn.DenseGeneral(width, axis=(-2, -1), dtype=self.dtype, name="out_proj")(mixed)


class MLP(nn.Module):
    """Two dense layers with a hidden width of four times the input's."""

    activation: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "b l c"]:
        width = x.shape[-1]
        x = nn.Dense(4 * width, dtype=self.dtype, name="c_fc")(x)
        x = ACTIVATIONS[self.activation](x)
        return nn.Dense(width, dtype=self.dtype, name="c_proj")(x)


class Block(nn.Module):
    """Pre-norm residual block: attention, then MLP.

    The attention is an argument of the call and not of the module, so that the same parameters
    serve ordinary attention and the dense variants of the last block (MaskCLIP and others).
    """

    heads: int
    activation: str = "quick_gelu"
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.ln_1 = LayerNorm()
        self.attn = Attention(self.heads, self.dtype)
        self.ln_2 = LayerNorm()
        self.mlp = MLP(self.activation, self.dtype)

    def __call__(self, x: Float[Array, "b l c"], attention: AttentionFn) -> Float[Array, "b l c"]:
        x = x + self.attn(self.ln_1(x), attention)
        return x + self.mlp(self.ln_2(x))
