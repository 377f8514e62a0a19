"""FLOPs of the method itself, by formula: what any implementation has to compute, nothing twice.

Only products of matrices and convolutions count, a multiplication and an addition as two. What is
computed again to save memory does not count, so that these FLOPs over time and peak give MFU
(Chowdhery et al., PaLM, appendix B).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tcl_jax.models.decoder import STAGES, UPSAMPLING
from tcl_jax.models.shapes import Shapes, count_prefix, shape_of

if TYPE_CHECKING:
    from tcl_jax.models.clip import CLIPConfig


@dataclasses.dataclass(frozen=True)
class Tower:
    """Sizes of a vision tower.

    Attributes:
        embed_dim: of the texts' space that it is projected into.
        resolution, patch_size: of the images, in pixels.
        vision_width, vision_layers: of its blocks.
        prefix_tokens: number of tokens that are no patches.
    """

    embed_dim: int
    resolution: int
    patch_size: int
    vision_width: int
    vision_layers: int
    prefix_tokens: int


Parts = dict[str, int]
"""FLOPs of one image (with its text) by what they are for."""

_CONVS, _KERNEL = 2, 9


def total(parts: Mapping[str, int] | Mapping[str, float]) -> float:
    """The sum of all parts."""
    return float(sum(parts.values()))


# ------------------------------------------------------------------------------------- the networks


def image_tower(tower: Tower, blocks: int | None = None, side: int | None = None) -> int:
    """Forward FLOPs of the patches and of `blocks` blocks (None: all, and the projection).

    Args:
        tower: sizes.
        blocks: with full attention, from the first.
        side: of a square image in pixels, a multiple of the patch; None: the trained resolution.
    """
    width, patches = tower.vision_width, _patches(tower, side)
    embed = 2 * patches * tower.patch_size**2 * 3 * width
    count = tower.vision_layers if blocks is None else blocks
    forward = embed + count * _block(tower.prefix_tokens + patches, width)
    return forward + (2 * width * tower.embed_dim if blocks is None else 0)


def text_tower(config: CLIPConfig) -> int:
    """Forward FLOPs of a text of full length."""
    width, length = config.text_width, config.context_length
    return config.text_layers * _block(length, width) + 2 * width * config.embed_dim


def decoder(tower: Tower, side: int | None = None) -> int:
    """Forward FLOPs of the grounder's decoder, two stages of two 3x3 convolutions."""
    patches, width = _patches(tower, side), tower.vision_width
    pixels = sum(patches * 4 ** (stage + 1) for stage in range(STAGES))
    return _CONVS * 2 * _KERNEL * width**2 * pixels


def _patches(tower: Tower, side: int | None) -> int:
    return ((tower.resolution if side is None else side) // tower.patch_size) ** 2


def _block(tokens: int, width: int) -> int:
    """Queries, keys, values and output 4, the MLP 8 of the width's square; and attention."""
    return 24 * tokens * width**2 + 4 * tokens**2 * width


def _last_block(tokens: int, width: int, products: int = 0, *, mlp: bool = True) -> int:
    """A block of values, output and MLP, if it has one.

    Tokens attend to themselves alone, or as `products` of queries or keys with themselves say.
    """
    attention = (products + (products > 0)) * tokens
    return 2 * tokens * width * ((2 + products + 8 * mlp) * width + attention)


# -------------------------------------------------------------------------- the masks of one window


def dense_masks(
    tower: Tower, side: int, texts: int, *, products: int = 0, mlp: bool = True
) -> Parts:
    """Of CLIP alone with a last block of `dense.LastBlock`, see `Method.flops`."""
    patches, width = _patches(tower, side), tower.vision_width
    last = _last_block(tower.prefix_tokens + patches, width, products, mlp=mlp)
    projection = 2 * patches * width * tower.embed_dim
    return {
        "image tower": image_tower(tower, tower.vision_layers - 1, side) + last + projection,
        "masks": 2 * patches * texts * tower.embed_dim,
    }


def sc_clip_masks(tower: Tower, side: int, texts: int) -> Parts:
    """Of SC-CLIP, whose last block runs twice on patches alone, see `Method.flops`."""
    patches, width = _patches(tower, side), tower.vision_width
    last = 2 * _last_block(patches, width, 1, mlp=False) + 2 * patches * width * tower.embed_dim
    return {
        "image tower": image_tower(tower, tower.vision_layers - 1, side) + last,
        # Distances and cosines of the patches in three blocks, and two averages over patches.
        "similarities": 5 * 2 * patches**2 * width,
        "masks": 2 * patches * texts * tower.embed_dim,
    }


def tcl_masks(
    tower: Tower, copied: int, side: int, texts: int, *, mixes_clip: bool, affinity: bool
) -> Parts:
    """Of TCL, with `mixes_clip` of CLIP's own masks, with `affinity` of similar patches, too."""
    patches, width = _patches(tower, side), tower.vision_width
    cells = UPSAMPLING**2 * patches
    if mixes_clip:
        parts = dense_masks(tower, side, texts)
    else:
        shared = tower.vision_layers - copied
        parts = {"image tower": image_tower(tower, shared, side), "masks": 0}
    parts["grounder's blocks"] = _grounder_blocks(tower, patches, copied)
    parts["decoder"] = decoder(tower, side)
    parts["projection"] = 2 * cells * width * tower.embed_dim
    parts["masks"] += 2 * cells * texts * tower.embed_dim
    if affinity:
        parts["affinity"] = 2 * patches**2 * (width + texts)
    return parts


def _grounder_blocks(tower: Tower, patches: int, copied: int) -> int:
    tokens, width = tower.prefix_tokens + patches, tower.vision_width
    return (copied - 1) * _block(tokens, width) + _last_block(tokens, width)


def vision_tower(
    shapes: Shapes, tower: str, patches: int, *, last_sees_itself: bool = False
) -> int:
    """Forward FLOPs of a vision tower's patches and `blocks_of`."""
    embed = 2 * patches * math.prod(shape_of(shapes, f"{tower}/patch_kernel"))
    tokens = count_prefix(shapes, tower) + patches
    return embed + blocks_of(shapes, tower, tokens, last_sees_itself=last_sees_itself)


def blocks_of(shapes: Shapes, tower: str, tokens: int, *, last_sees_itself: bool = False) -> int:
    """Forward FLOPs of all blocks of the tower whose parameters have this name.

    Where the last one's tokens see themselves alone it needs neither queries nor keys.
    """
    flops = 0
    for name, shape in shapes:
        if f"/{tower}/blocks*" not in f"/{name}" or not name.endswith("kernel"):
            continue
        depth = int(name.split("blocks*")[1].split("/")[0])
        flops += depth * 2 * tokens * math.prod(shape)
        if name.endswith("in_proj/kernel"):
            flops += (depth - last_sees_itself) * 4 * tokens**2 * math.prod(shape[2:])
            flops -= last_sees_itself * 2 * tokens * math.prod(shape) * 2 // 3
    return flops


# ---------------------------------------------------- one image with its text in a step of training


def clip_step(config: CLIPConfig, batch: int) -> Parts:
    """Of CLIP, forward and backward."""
    return {
        "image tower": 3 * image_tower(config.tower),
        "text tower": 3 * text_tower(config),
        "contrast": 3 * 2 * batch * config.embed_dim,
    }


def tcl_step(
    config: CLIPConfig, tower: Tower, copied: int, batch: int, train_backbone: bool
) -> Parts:
    """Of TCL, forward and backward, see `Objective.training_flops`.

    The CLIP embeds texts and masked images; the tower that the grounder builds on may be its own.
    """
    width, embed, patches = tower.vision_width, config.embed_dim, _patches(tower, None)
    pixels = UPSAMPLING**2 * patches
    blocks = _grounder_blocks(tower, patches, copied)
    masked = image_tower(config.tower, side=tower.resolution)
    tokens = _patches(config.tower, tower.resolution)
    # Towards the mask alone, as the weights are frozen; both factors of attention have gradients.
    towards_mask = masked + config.vision_layers * 4 * (1 + tokens) ** 2 * config.vision_width
    # Similarity and region of each pair; then two for the region's gradient and, as texts are
    # frozen, one for the similarity's.
    pairs = (2 + 3) * 2 * pixels * embed * batch
    return {
        "image tower": image_tower(tower, tower.vision_layers - copied),
        "text tower": text_tower(config),
        "grounder's blocks": (3 if train_backbone else 1) * blocks,
        "decoder": 3 * decoder(tower),
        "projection": 3 * 2 * pixels * width * embed,
        "masked image": masked + towards_mask,
        "masks of all pairs": pairs,
        # Two contrasts of [n] cosines of d, each with a gradient on one side; the own mask's too.
        "contrast": 2 * 2 * 2 * batch * embed + 2 * 2 * pixels * embed,
    }
