"""SC-CLIP: segmentation by CLIP alone, its last block repaired by what its middle layers know.

Bai et al., "Self-Calibrated CLIP for Training-Free Open-Vocabulary Segmentation", 2024 (arXiv
2411.15869). Distances, similarities and scores are float32 in full precision whatever the compute
dtype: rounded, other patches and other pairs would be on this side of a threshold.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tcl_jax.models import flops
from tcl_jax.models.attention import softmax_attention
from tcl_jax.models.dense import CroppedCLIP, PatchTokens
from tcl_jax.models.layers import Transformer, dense, layer_norm
from tcl_jax.models.method import MaskOptions
from tcl_jax.models.vit import Features
from tcl_jax.ops.masking import l2_normalize

NEIGHBOURS = 30
"""How many nearest patches a patch's distance is compared with."""
OUTLIERS = 20
"""One patch in so many is an outlier (the authors' contamination of 0.05)."""
LEAST_SIMILARITY = 0.4
"""Patches that are less similar are not averaged (the authors' beta)."""
SHARPNESS = 3.0
"""Of the softmax over similarities."""
CLASS_SHARE = 0.3
"""Of the class token that is added to every patch."""
ROUNDING = 4e-6
"""Share of two squared norms below which their squared distance is none, and of two scores below
which they are one: more than float32 loses."""


def outlier_scores(tokens: Float[Array, "b n c"]) -> Float[Array, "b n"]:
    """How much farther a token is from its neighbours than these are from theirs, float32.

    `r_i mean_j (1 / r_j)` over the `NEIGHBOURS` tokens j of the image that are nearest to i (all
    others where there are fewer), r being the squared distance to the farthest of these. Not finite
    in an image where one is 0.
    """
    number = tokens.shape[1]
    neighbours = min(NEIGHBOURS, number - 1)
    if not neighbours:
        return jnp.ones(tokens.shape[:2])
    tokens = tokens.astype(jnp.float32)
    # From their mean the squares are smaller, and so is the rounding of their differences.
    products = _products(tokens - jnp.mean(tokens, axis=1, keepdims=True))
    square = jnp.diagonal(products, axis1=1, axis2=2)
    squares = square[:, :, None] + square[:, None]
    distances = squares - 2 * products
    distances = jnp.where(distances < ROUNDING * squares, 0.0, distances)
    distances = jnp.where(jnp.eye(number, dtype=bool), jnp.inf, distances)
    farthest = smallest(distances, neighbours)[..., None]
    nearer, last = distances < farthest, distances == farthest
    # Tokens that are equally far share the places that are left.
    left = neighbours - jnp.sum(nearer, axis=-1, keepdims=True)
    chosen = nearer + last * (left / jnp.sum(last, axis=-1, keepdims=True))
    inverse = jnp.einsum("bij,bjk->bik", chosen, 1 / farthest, precision="highest")
    return (farthest * inverse / neighbours)[..., 0]


def smallest(x: Float[Array, "*b n"], k: int) -> Float[Array, "*b"]:
    """The k-th smallest of numbers that are not negative, counted from 1.

    Bit by bit, as non-negative floats are in the order of their bits: sorting takes much longer,
    and devices exchange what they sort.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)

    def refine(i: Int[Array, ""], found: Int[Array, "*b"]) -> Int[Array, "*b"]:
        larger = found | (1 << (30 - i))
        return jnp.where(jnp.sum(bits < larger[..., None], axis=-1) < k, larger, found)

    found = jax.lax.fori_loop(0, 31, refine, jnp.zeros(x.shape[:-1], jnp.int32))
    return jax.lax.bitcast_convert_type(found, jnp.float32)


def find_outliers(scores: Float[Array, "b n"]) -> Bool[Array, "b n"]:
    """Where scores exceed the 0.95-quantile of their image.

    None of them do where one is not finite: a token that has as many equals has no neighbourhood.
    """
    # No score lies between the quantile and the one before it in order, whatever is interpolated.
    before = (OUTLIERS - 1) * (scores.shape[-1] - 1) // OUTLIERS
    quantile = jnp.sort(scores, axis=-1)[..., before, None]
    finite = jnp.all(jnp.isfinite(scores), axis=-1, keepdims=True)
    return (scores > (1 + ROUNDING) * quantile) & finite


def repair(
    patches: Float[Array, "b h w c"], outliers: Bool[Array, "b h w"]
) -> Float[Array, "b h w c"]:
    """Every outlier becomes the mean of those of its eight neighbours that are none, float32.

    It stays what it is where all of them are outliers.
    """
    patches = patches.astype(jnp.float32)
    good = 1.0 - outliers[..., None]
    total, number = (
        jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
        for x in (patches * good, good)
    )
    return jnp.where(outliers[..., None] & (number > 0), total / jnp.maximum(number, 1), patches)


def similarities(tokens: Float[Array, "b n c"]) -> Float[Array, "b n n"]:
    """Cosine of every two tokens of an image, float32 in [-1, 1]."""
    return _products(l2_normalize(tokens))


def _products(x: Float[Array, "b n c"]) -> Float[Array, "b n n"]:
    return jnp.einsum("bic,bjc->bij", x, x, precision="highest")


def aggregate(
    similarity: Float[Array, "b n n"],
    tokens: Float[Array, "b n c"],
    least: float = LEAST_SIMILARITY,
) -> Float[Array, "b n c"]:
    """Means of the tokens, weighted by what of the similarity is not below the least."""
    weights = jnp.where(similarity < least, 0.0, similarity)
    total = jnp.sum(weights, axis=-1, keepdims=True) + 1e-6
    return jnp.einsum("bij,bjc->bic", weights.astype(tokens.dtype), tokens) / total


def shared_weights(similarity: Float[Array, "b n n"]) -> Float[Array, "b n n"]:
    """What every head attends to: softmax of `SHARPNESS (S - mean S)` where it is not negative."""
    excess = SHARPNESS * (similarity - jnp.mean(similarity, axis=(1, 2), keepdims=True))
    # A token's similarity with itself is not below the mean, but for rounding.
    kept = (excess >= 0) | jnp.eye(similarity.shape[-1], dtype=bool)
    return jax.nn.softmax(jnp.where(kept, excess, -jnp.inf), axis=-1)


def attend(
    settings: Transformer,
    params: Any,
    tokens: Float[Array, "b n c"],
    shared: Float[Array, "b n n"],
) -> Float[Array, "b n c"]:
    """A block's attention by half `softmax(k k^T / sqrt(d))` and half `shared_weights`, float32."""
    in_proj = {name: x[..., 1:, :, :] for name, x in params["attn"]["in_proj"].items()}
    normed = layer_norm(tokens, params["ln_1"], settings.eps)
    key, value = jnp.moveaxis(dense(normed, in_proj, settings.dtype), 2, 0)
    own = softmax_attention(key, key, value)
    # All heads at once: to add the shared weights to those of each takes longer, and more memory.
    similar = jnp.einsum("bij,bjhd->bihd", shared.astype(value.dtype), value)
    output = dense((own + similar) / 2, params["attn"]["out_proj"], settings.dtype, axes=2)
    return output.astype(jnp.float32)


class SCCLIP(CroppedCLIP, PatchTokens):
    """CLIP's last block, of patches alone, on tokens that are repaired and made smooth.

    Outliers among the tokens that enter it are replaced; similar patches, by a middle block, are
    averaged before it and attend to each other in it. It runs a second time on the sum of the
    middle blocks' outputs. Each yields what attention does, without residual and MLP, and a share
    of its class token; their sum is averaged over patches that are similar in an earlier block.
    """

    name = "sc_clip"
    title = "SC-CLIP"
    protocol = "sc_clip"

    @property
    def layers(self) -> tuple[int, int, int]:
        """Blocks, counted from 1: of the similarities in the middle, and the first and last summed.

        The first one summed has the similarities that the result is averaged with. The authors
        name 9, 4 and 10 of 12 blocks. They have no others: in proportion is this project's choice.
        """
        blocks = self.config.vision_layers
        middle, first, last = (min((n * blocks + 6) // 12, blocks - 1) for n in (9, 4, 10))
        return middle, first, last

    @property
    def summary(self) -> str:
        blocks, (middle, first, last) = self.config.vision_layers, self.layers
        if blocks == 12:
            return super().summary
        return (
            f"{super().summary}; blocks {middle} and {first} to {last} of {blocks}, in proportion "
            "to its authors' 9 and 4 to 10 of 12"
        )

    def patch_tokens(self, clip: Any, features: Features) -> Float[Array, "b h w c"]:
        """What enters `ln_post`, float32, of CLIP's parameters and features."""
        (middle, first, last), entering = self.layers, len(features.blocks) - 1
        vision, params = self.clip_model.vision, clip["visual"][f"blocks_{entering}"]
        tokens = features.after(entering)
        outliers = find_outliers(outlier_scores(tokens[:, 1:])).reshape(-1, *features.grid)

        def repaired(tokens: Float[Array, "b l c"]) -> Float[Array, "b n c"]:
            patches = repair(features.patches(tokens), outliers)
            return patches.reshape(patches.shape[0], -1, patches.shape[-1])

        similarity = similarities(repaired(features.after(middle)))
        shared = shared_weights(similarity)
        smooth = aggregate(similarity, repaired(tokens))
        summed = [features.after(i).astype(jnp.float32) for i in range(first, last + 1)]
        levels = sum(summed[1:], start=summed[0])
        early = similarities(features.after(first)[:, 1:])
        # One product for the sum of what the authors average one by one.
        both = CLASS_SHARE * (tokens[:, :1] + levels[:, :1])
        for entered in (smooth, levels[:, 1:]):
            both = both + attend(vision, params, entered, shared)
        return features.patches(aggregate(early, both))

    def flops(self, side: int, texts: int, options: MaskOptions) -> flops.Parts:
        del options
        return flops.sc_clip_masks(self.config.tower, side, texts)
