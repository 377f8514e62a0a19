"""The grounder: from tokens of a feature layer to an embedding of every pixel of the masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tcl_jax.models.attention import self_only_attention
from tcl_jax.models.decoder import decode
from tcl_jax.models.layers import Transformer, run_blocks
from tcl_jax.models.vit import project


def run_copies(
    settings: Transformer,
    params: Any,
    tokens: Float[Array, "b l c"],
    grid: tuple[int, int],
    rotate: Callable[[jax.Array], jax.Array] | None = None,
) -> Float[Array, "b h w c"]:
    """Patches after the trainable copies of a tower's last blocks (TCL section 3.2).

    Args:
        settings: of the tower that the tokens are from.
        params: `blocks_N`, the copies of its blocks after the feature layer, of which the last is
            MaskCLIP's.
        tokens: after the feature layer, the patches last.
        grid: rows and columns of patches.
        rotate: RoPE of the tower, where there is one.
    """
    blocks = run_blocks(settings, params, tokens, rotate=rotate, last_attention=self_only_attention)
    patches = blocks[-1].output[:, tokens.shape[1] - grid[0] * grid[1] :]
    return patches.reshape(tokens.shape[0], *grid, -1)


def embed_patches(
    settings: Transformer, params: Any, patches: Float[Array, "b h w c"]
) -> Float[Array, "b H W d"]:
    """Pixel embeddings, float32 and not normalised, on four times the patch grid (TCL section 3.2).

    Args:
        settings: of the tower that the patches are from.
        params: `decoder`, and copies of the tower's `ln_post` and, into the texts' space, `proj`.
        patches: of `run_copies`.
    """
    pixels = decode(params["decoder"], patches, dtype=settings.dtype, remat=settings.remat)
    return project(settings, params, pixels).astype(jnp.float32)
