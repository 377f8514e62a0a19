"""Making masks: padding, PAMR, KP mixing and resizing (TCL section 4.1)."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tcl_jax.models.clip import CLIP, encode_image
from tcl_jax.models.layers import matmul_precision
from tcl_jax.models.tcl import TCL, ground
from tcl_jax.models.vision import VisionOutput
from tcl_jax.ops.images import center_pad
from tcl_jax.ops.masking import pixel_text_similarity
from tcl_jax.ops.pamr import pamr
from tcl_jax.ops.resize import resize

Synonyms: TypeAlias = tuple[tuple[int, ...], ...]
"""Per class the indices of its texts."""

KP_SCALE, KP_OFFSET = 10.0, 0.25
"""Steepness and centre of the sigmoid over CLIP's own patch similarities in KP mixing."""


@dataclasses.dataclass(frozen=True)
class MaskOptions:
    """How masks are post-processed; the defaults are the paper's evaluation without PAMR.

    Attributes:
        pamr: whether masks are refined by pixel-adaptive mask refinement.
        kp_weight: share of CLIP's own dense prediction that is mixed in, in [0, 1].
    """

    pamr: bool = False
    kp_weight: float = 0.3


def make_masks(
    model: TCL | CLIP,
    params: Any,
    image: Float[Array, "b H W 3"],
    text_embeddings: Float[Array, "n d"],
    options: MaskOptions = MaskOptions(),
    synonyms: Synonyms | None = None,
) -> Float[Array, "b H W classes"]:
    """Soft masks of every class at the images' own size, float32 in [0, 1].

    Args:
        model, params: TCL and all its parameters, `clip` included; or CLIP alone and its own.
        image: [b, H, W, 3] normalised; any size.
        text_embeddings: [n, d], normalised or not.
        options: post-processing.
        synonyms: texts of each class, see `best_synonym`; None: each text is a class.
    """
    padded, offset = center_pad(image, model.config.patch_size)
    masks = grid_masks(model, params, padded, text_embeddings, options)
    if synonyms is not None:
        masks = best_synonym(masks, synonyms)
    return _at_image(masks, padded, offset, image)


def best_synonym(
    masks: Float[Array, "b h w n"], synonyms: Synonyms
) -> Float[Array, "b h w classes"]:
    """The mask of every class: where it has several texts, the largest of their masks."""
    if synonyms == each_alone(masks.shape[-1]):
        return masks
    longest = max(len(texts) for texts in synonyms)
    # Classes with fewer synonyms repeat their last one.
    table = np.array([[*texts, *[texts[-1]] * (longest - len(texts))] for texts in synonyms])
    best = masks[..., table[:, 0]]
    for column in table.T[1:]:
        best = jnp.maximum(best, masks[..., column])
    return best


def each_alone(texts: int) -> Synonyms:
    """Every text a class."""
    return tuple((i,) for i in range(texts))


def grid_masks(
    model: TCL | CLIP,
    params: Any,
    image: Float[Array, "b H W 3"],
    text_embeddings: Float[Array, "n d"],
    options: MaskOptions = MaskOptions(),
) -> Float[Array, "b h w n"]:
    """`make_masks` before they are resized to the image.

    TCL's grid is four times that of the patches. CLIP alone gives KP mixing's sigmoid of its patch
    similarities on the patches, and with PAMR on four times as many, as TCL's are.

    A float32 model computes its products in full precision on every platform; accelerators would
    round them to fewer bits.

    Args:
        model, params, text_embeddings, options: as in `make_masks`; of CLIP, `pamr` alone is read.
        image: [b, H, W, 3] normalised; H and W multiples of the patch size.
    """
    with matmul_precision(model.dtype):
        if isinstance(model, TCL):
            grounding = ground(model, params, image, text_embeddings)
            masks = jnp.moveaxis(jax.nn.sigmoid(grounding.mask_logits), 1, -1)
            grid, vision = masks.shape[1:3], grounding.vision
        else:
            vision = encode_image(model, params, image)
            masks = _dense_masks(_patch_similarity(vision, text_embeddings))
            grid = (4 * masks.shape[1], 4 * masks.shape[2])
        if options.pamr:
            masks = pamr(resize(image, grid, align_corners=True), masks)
        if isinstance(model, TCL) and options.kp_weight:
            dense = _dense_masks(_patch_similarity(vision, text_embeddings))
            masks = options.kp_weight * resize(dense, grid) + (1 - options.kp_weight) * masks
        return masks


def maskclip_similarity(
    model: CLIP,
    params: Any,
    image: Float[Array, "b H W 3"],
    text_embeddings: Float[Array, "n d"],
) -> Float[Array, "b H W n"]:
    """Cosine of CLIP's own dense features with the texts, bilinear to the images' size.

    The MaskCLIP baseline (Zhou et al., ECCV 2022): nothing that TCL learns is used.

    Args:
        model, params: CLIP and its parameters.
        image, text_embeddings: as in `make_masks`.
    """
    padded, offset = center_pad(image, model.config.patch_size)
    with matmul_precision(model.dtype):
        similarity = _patch_similarity(encode_image(model, params, padded), text_embeddings)
    return _at_image(similarity, padded, offset, image)


def _patch_similarity(
    vision: VisionOutput, text_embeddings: Float[Array, "n d"]
) -> Float[Array, "b h w n"]:
    similarity = pixel_text_similarity(vision.patch_embeddings, text_embeddings)
    return jnp.moveaxis(similarity, 1, -1)


def _dense_masks(similarity: Float[Array, "b h w n"]) -> Float[Array, "b h w n"]:
    return jax.nn.sigmoid(KP_SCALE * (similarity - KP_OFFSET))


def _at_image(
    x: Float[Array, "b h w n"],
    padded: Float[Array, "b p q 3"],
    offset: tuple[int, int],
    image: Float[Array, "b H W 3"],
) -> Float[Array, "b H W n"]:
    """From the grid to the padded image, and what belongs to the image of it."""
    (top, left), (height, width) = offset, image.shape[1:3]
    return resize(x, padded.shape[1:3])[:, top : top + height, left : left + width]
