"""The grounder's convolutional decoder, which quadruples the resolution of the patch grid."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tcl_jax.models.layers import LayerNorm, exact_gelu, rematerialized
from tcl_jax.ops.resize import upsample_nearest


class GatedConv(nn.Module):
    """`x + tanh(gate) * conv3x3(gelu(norm(x)))`; the gate starts at 0, so the layer at identity."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        gate = self.param("gate", nn.initializers.zeros, ())
        y = exact_gelu(LayerNorm(name="norm")(x))
        y = nn.Conv(x.shape[-1], (3, 3), padding="SAME", dtype=self.dtype, name="conv")(y)
        return x + jnp.tanh(gate).astype(y.dtype) * y


class Decoder(nn.Module):
    """`stages` times: nearest upsampling by two, then two gated convolutions (TCL section 3.2)."""

    stages: int = 2
    dtype: Any = jnp.float32
    remat: str = "none"

    def setup(self) -> None:
        conv = rematerialized(GatedConv, self.remat)
        self.convs = [(conv(self.dtype), conv(self.dtype)) for _ in range(self.stages)]

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W c"]:
        """[b, h, w, c] -> [b, 4h, 4w, c] with two stages."""
        for first, second in self.convs:
            x = second(first(upsample_nearest(x, 2)))
        return x
