"""The grounder: from CLIP's tapped tokens to an embedding for every pixel of the mask grid."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tcl_jax.models.attention import full_attention, self_only_attention
from tcl_jax.models.decoder import Decoder
from tcl_jax.models.layers import Block, LayerNorm, rematerialized


class Grounder(nn.Module):
    """Trainable copy of CLIP's last blocks, decoder, and copy of `ln_post` and `proj`.

    Attributes:
        width, heads: of CLIP's vision tower.
        blocks_after_tap: number of blocks copied, those after the tap; at least 1.
        embed_dim: size of the space shared with text.
        activation, dtype, remat: as in the vision tower.
    """

    width: int
    heads: int
    blocks_after_tap: int
    embed_dim: int
    activation: str = "quick_gelu"
    dtype: Any = jnp.float32
    remat: str = "none"

    def setup(self) -> None:
        block = rematerialized(Block, self.remat, static=(2,))
        self.blocks = [
            block(self.heads, self.activation, self.dtype) for _ in range(self.blocks_after_tap)
        ]
        self.decoder = Decoder(dtype=self.dtype, remat=self.remat)
        self.ln_post = LayerNorm()
        self.proj = self.param(
            "proj", nn.initializers.normal(self.width**-0.5), (self.width, self.embed_dim)
        )

    def __call__(
        self, tap: Float[Array, "b l c"], grid: tuple[int, int]
    ) -> Float[Array, "b h w d"]:
        """Pixel embeddings, float32 and not normalised, on four times the patch grid.

        Args:
            tap: [b, 1 + rows*columns, c] tokens of `VisionOutput.tap`.
            grid: rows and columns of patches.
        """
        x = tap
        for block in self.blocks[:-1]:
            x = block(x, full_attention)
        x = self.blocks[-1](x, self_only_attention)
        x = self.decoder(x[:, 1:].reshape(x.shape[0], *grid, self.width))
        x = jnp.einsum("bhwc,cd->bhwd", self.ln_post(x), self.proj.astype(self.dtype))
        return x.astype(jnp.float32)


def grounder_from_clip(initial: Any, clip: Any, tap_layer: int) -> Any:
    """Grounder parameters at the start of training: CLIP's copies, and a fresh decoder.

    Args:
        initial: freshly initialised parameters of `Grounder`.
        clip: parameters of the frozen `CLIP`.
        tap_layer: as in `TCL`.
    """
    visual = clip["visual"]
    blocks = [name for name in initial if name.startswith("blocks_")]
    copies = {f"blocks_{i}": visual[f"blocks_{tap_layer + i}"] for i in range(len(blocks))}
    return {**initial, **copies, "ln_post": visual["ln_post"], "proj": visual["proj"]}
