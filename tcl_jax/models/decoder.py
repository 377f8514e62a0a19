"""The grounder's convolutional decoder, which quadruples the resolution of the patch grid."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.nn.initializers import lecun_normal
from jaxtyping import Array, Float, Key

from tcl_jax.models.layers import (
    CLIP_EPS,
    CONVOLUTION,
    exact_gelu,
    init_layer_norm,
    layer_norm,
    rematerialized,
)
from tcl_jax.ops.convolution import conv3x3, upsampled_conv3x3
from tcl_jax.ops.resize import resize_nearest

STAGES = 2
"""Upsamplings by two."""
UPSAMPLING = 2**STAGES
"""Cells of the mask grid along each side of a patch."""


def decode(
    params: Any, x: Float[Array, "b h w c"], *, dtype: Any = jnp.float32, remat: str = "none"
) -> Float[Array, "b H W c"]:
    """`STAGES` times nearest upsampling by two, then two gated convolutions (TCL section 3.2).

    Args:
        params: of each layer as `convs_STAGE_0` and `convs_STAGE_1`, see `gated_convolution`.
        x: patches; of the result there are `UPSAMPLING` times as many rows and columns.
        dtype: compute dtype.
        remat: a key of `layers.REMAT`.
    """
    for stage in range(STAGES):
        for layer, upsample in enumerate((True, False)):
            run = rematerialized(
                lambda p, x, upsample=upsample: gated_convolution(p, x, upsample, dtype), remat
            )
            x = run(params[f"convs_{stage}_{layer}"], x)
    return x


def gated_convolution(
    params: Any, x: Float[Array, "b h w c"], upsample: bool, dtype: Any
) -> Float[Array, "b H W c"]:
    """`x + tanh(gate) * conv3x3(gelu(norm(x)))`; with a gate of 0 the layer is the identity.

    With `upsample` x is first upsampled by two. Norm and GELU, of single pixels, are computed
    before that, on a quarter of the pixels.

    Args:
        params: {gate, norm: {norm: {scale, bias}}, conv: {kernel [3, 3, c, c], bias [c]}}.
    """
    y = exact_gelu(layer_norm(x, params["norm"], CLIP_EPS))
    convolve = upsampled_conv3x3 if upsample else conv3x3
    y = convolve(y.astype(dtype), params["conv"]["kernel"])
    y = checkpoint_name(y + params["conv"]["bias"].astype(dtype), CONVOLUTION)
    if upsample:
        x = resize_nearest(x, y.shape[1:3])
    return x + jnp.tanh(params["gate"]).astype(y.dtype) * y


def init_decoder(key: Key[Array, ""], width: int) -> dict[str, Any]:
    """Layers of closed gates."""
    return {
        f"convs_{i // 2}_{i % 2}": {
            "gate": jnp.zeros(()),
            "norm": init_layer_norm(width),
            "conv": {
                "kernel": lecun_normal()(key, (3, 3, width, width)),
                "bias": jnp.zeros(width),
            },
        }
        for i, key in enumerate(jax.random.split(key, 2 * STAGES))
    }
