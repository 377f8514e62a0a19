"""The grounder: from tokens of a feature layer to an embedding of every pixel of the masks."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from tcl_jax.models.attention import self_only_attention
from tcl_jax.models.decoder import decode
from tcl_jax.models.layers import run_blocks
from tcl_jax.models.vit import Features, ViT, find_rotation, project


def run_copies(
    vit: ViT, params: Any, tower: Any, features: Features, layer: int
) -> Float[Array, "b h w c"]:
    """Patches after the trainable copies of a tower's last blocks (TCL section 3.2).

    Args:
        vit, tower: settings and parameters of the frozen tower.
        params: `blocks_N`, the copies of its blocks after the feature layer, of which the last is
            MaskCLIP's.
        features: of the tower.
        layer: number of the feature layer, counted from 1.
    """
    tokens = features.after(layer)
    rotate = find_rotation(tower, tokens, features.grid)
    blocks = run_blocks(vit, params, tokens, rotate=rotate, last_attention=self_only_attention)
    return features.patches(blocks[-1].output)


def embed_patches(
    vit: ViT, params: Any, patches: Float[Array, "b h w c"]
) -> Float[Array, "b H W d"]:
    """Pixel embeddings, float32 and not normalised, on four times the patch grid (TCL section 3.2).

    Args:
        vit: settings of the tower that the patches are from.
        params: `decoder`, and copies of the tower's `ln_post` and, into the texts' space, `proj`.
        patches: of `run_copies`.
    """
    pixels = decode(params["decoder"], patches, dtype=vit.dtype, remat=vit.remat)
    return project(vit, params, pixels).astype(jnp.float32)
