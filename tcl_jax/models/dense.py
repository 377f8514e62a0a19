"""What CLIP's last block yields for dense prediction: one small function per method.

None of them needs training: each reads the block's own parameters in another way, so that a patch
keeps to what it shows itself rather than to what the whole image is about.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from tcl_jax.models.attention import (
    correlative_self_attention,
    neighbourhood_attention,
    self_only_attention,
)
from tcl_jax.models.layers import Block

DenseFn = Callable[[Block, jax.Array, tuple[int, int]], jax.Array]
"""(last block, tokens [b, 1 + h*w, c] that enter it, (h, w)) -> tokens [b, 1 + h*w, c].

The class token comes first, then the patches row by row.
"""


def maskclip(
    block: Block, x: Float[Array, "b l c"], grid: tuple[int, int]
) -> Float[Array, "b l c"]:
    """Tokens attend to themselves alone (Zhou et al., "Extract Free Dense Labels from CLIP",
    ECCV 2022).

    The residuals and the MLP are kept, as in TCL.
    """
    del grid
    return block(x, self_only_attention)


def sclip(block: Block, x: Float[Array, "b l c"], grid: tuple[int, int]) -> Float[Array, "b l c"]:
    """Tokens attend to similar ones (Wang et al., "SCLIP: Rethinking Self-Attention for Dense
    Vision-Language Inference", ECCV 2024).

    The residuals and the MLP are kept.
    """
    del grid
    return block(x, correlative_self_attention)


def naclip(block: Block, x: Float[Array, "b l c"], grid: tuple[int, int]) -> Float[Array, "b l c"]:
    """Patches attend to similar ones, nearer ones more (Hajimiri et al., "Pay Attention to Your
    Neighbours: Training-Free Open-Vocabulary Semantic Segmentation", WACV 2025).

    The paper's reduced block: what attention yields, with neither residual nor MLP.
    """
    return block.attn(block.ln_1(x), neighbourhood_attention(grid))


DENSE: dict[str, DenseFn] = {"maskclip": maskclip, "sclip": sclip, "naclip": naclip}
"""What the last block yields for dense prediction, by the name of the method."""
