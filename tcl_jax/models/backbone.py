"""Dense features of a vision tower of any family (see `families`), as functions of parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from tcl_jax.models.layers import layer_norm, matmul_precision
from tcl_jax.models.vit import ViT, encode


@struct.dataclass
class Features:
    """What a vision tower says of images, float32 whatever it computed in.

    Attributes:
        cls: [b, c] of the class token after the final norm; [b, 2, c] where there are two (TIPS),
            and [b, 0, c] where there is none.
        registers: [b, r, c] of the tokens that belong to no place, after the final norm; r may
            be 0.
        patches: [b, h, w, c] of the patches on their grid, after the final norm.
        blocks: of every block if asked for, else (): [b, l, c] its output, of all tokens in the
            order class, registers, patches row by row.
    """

    cls: jax.Array
    registers: jax.Array
    patches: jax.Array
    blocks: tuple[jax.Array, ...] = ()


def backbone_features(
    vit: ViT,
    params: Any,
    image: Float[Array, "b H W 3"],
    mask: Bool[Array, "b h w"] | None = None,
    *,
    blocks: bool = False,
) -> Features:
    """Features of images; may be traced, also under a mesh.

    Args:
        vit, params: settings and parameters of the tower, see `models.vit`.
        image: normalised with the family's statistics; see `ViT.ragged` for sides that are no
            multiples of the patch.
        mask: patches that the mask token takes the place of.
        blocks: whether `Features.blocks` is wanted.

    Raises:
        ValueError: as `vit.encode`.
    """
    with matmul_precision(vit.dtype):
        found = encode(vit, params, image, mask)
    last = found.after(len(found.blocks)).astype(jnp.float32)
    tokens = layer_norm(last, params["ln_post"], vit.eps)
    classes = params.get("class_embedding", tokens[0, :0])
    number = classes.size // classes.shape[-1]
    end = tokens.shape[1] - found.grid[0] * found.grid[1]
    return Features(
        cls=tokens[:, 0] if classes.ndim == 1 else tokens[:, :number],
        registers=tokens[:, number:end],
        patches=found.patches(tokens),
        blocks=tuple(b.output.astype(jnp.float32) for b in found.blocks) if blocks else (),
    )
