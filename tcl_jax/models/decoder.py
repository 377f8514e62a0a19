"""The grounder's convolutional decoder, which quadruples the resolution of the patch grid."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from tcl_jax.models.layers import CONVOLUTION, LayerNorm, exact_gelu, rematerialized
from tcl_jax.ops.convolution import conv3x3, upsampled_conv3x3
from tcl_jax.ops.resize import upsample_nearest

STAGES = 2
"""Upsamplings by two."""


class Conv3x3(nn.Module):
    """A 3x3 convolution with bias and zero padding, of x or of x upsampled by two.

    Parameters and their initial values are those of `nn.Conv`.
    """

    upsample: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W c"]:
        width = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, width, width))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        convolve = upsampled_conv3x3 if self.upsample else conv3x3
        y = convolve(x.astype(self.dtype), kernel) + bias.astype(self.dtype)
        return checkpoint_name(y, CONVOLUTION)


class GatedConv(nn.Module):
    """`x + tanh(gate) * conv3x3(gelu(norm(x)))`; the gate starts at 0, so the layer at identity.

    With `upsample` x is first upsampled by two. Norm and GELU, of single pixels, are computed
    before that, on a quarter of the pixels.
    """

    upsample: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W c"]:
        gate = self.param("gate", nn.initializers.zeros, ())
        y = exact_gelu(LayerNorm(name="norm")(x))
        y = Conv3x3(self.upsample, self.dtype, name="conv")(y)
        if self.upsample:
            x = upsample_nearest(x, 2)
        return x + jnp.tanh(gate).astype(y.dtype) * y


class Decoder(nn.Module):
    """`STAGES` times nearest upsampling by two, then two gated convolutions (TCL section 3.2)."""

    dtype: Any = jnp.float32
    remat: str = "none"

    def setup(self) -> None:
        conv = rematerialized(GatedConv, self.remat)
        self.convs = [(conv(True, self.dtype), conv(False, self.dtype)) for _ in range(STAGES)]

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W c"]:
        """[b, h, w, c] -> [b, 4h, 4w, c]."""
        for first, second in self.convs:
            x = second(first(x))
        return x
