"""The grounder: from tokens of CLIP's feature layer to an embedding of every pixel of the masks."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from tcl_jax.models.attention import self_only_attention
from tcl_jax.models.decoder import decode
from tcl_jax.models.layers import Transformer, run_blocks
from tcl_jax.models.vit import project


def embed_tokens(
    settings: Transformer, params: Any, tokens: Float[Array, "b l c"], grid: tuple[int, int]
) -> Float[Array, "b h w d"]:
    """Pixel embeddings, float32 and not normalised, on four times the patch grid (TCL section 3.2).

    Args:
        settings: of CLIP's vision tower.
        params: `blocks_N`, the trainable copy of CLIP's blocks after the feature layer, of which
            the last is MaskCLIP's; `decoder`; and copies of CLIP's `ln_post` and `proj`.
        tokens: [b, 1 + rows*columns, c] after the feature layer.
        grid: rows and columns of patches.
    """
    blocks = run_blocks(settings, params, tokens, last_attention=self_only_attention)
    patches = blocks[-1].output[:, 1:].reshape(tokens.shape[0], *grid, -1)
    pixels = decode(params["decoder"], patches, dtype=settings.dtype, remat=settings.remat)
    return project(settings, params, pixels).astype(jnp.float32)
