"""Masks of images at their own size: padding, the method's masks, synonyms, resizing."""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tcl_jax.errors import InputError
from tcl_jax.models.layers import matmul_precision
from tcl_jax.models.method import MaskOptions as MaskOptions
from tcl_jax.models.method import Method
from tcl_jax.ops.images import center_pad
from tcl_jax.ops.resize import resize

Synonyms: TypeAlias = tuple[tuple[int, ...], ...]
"""Per class the indices of its texts."""

DEFAULT = MaskOptions()


def make_masks(
    model: Method,
    params: Any,
    image: Float[Array, "b H W 3"],
    text_embeddings: Float[Array, "n d"],
    options: MaskOptions = DEFAULT,
    synonyms: Synonyms | None = None,
) -> Float[Array, "b H W classes"]:
    """Soft masks of every class at the images' own size, float32 in [0, 1].

    Of cosines (`options.scores`) these are the probabilities of the texts among each other, the
    softmax at the image's size of the scaled cosines. A row of zeros has none.

    Args:
        model, params: the method and all its parameters.
        image: [b, H, W, 3] normalised; any size.
        text_embeddings: [n, d], normalised or not.
        options: post-processing.
        synonyms: texts of each class, see `best_synonym`; None: each text is a class.
    """
    padded, offset = center_pad(image, model.patch_size)
    masks = grid_masks(model, params, padded, text_embeddings, options)
    if synonyms is not None and options.scores == "masks":
        masks = best_synonym(masks, synonyms)
    (top, left), (height, width) = offset, image.shape[1:3]
    masks = resize(masks, padded.shape[1:3])[:, top : top + height, left : left + width]
    if options.scores == "cosines":
        real = jnp.any(text_embeddings != 0, axis=-1)
        masks = jax.nn.softmax(options.logit_scale * masks, axis=-1, where=real)
    if synonyms is not None and options.scores != "masks":
        masks = best_synonym(masks, synonyms)
    return masks


def check_finite(name: str, values: Any) -> None:
    """Refuses numbers on the host of which some are not finite; those of a device are not read.

    Raises:
        InputError: with the name of the argument.
    """
    if isinstance(values, np.ndarray) and not np.isfinite(values).all():
        raise InputError(f"{name}: some values are not finite")


def best_synonym(
    masks: Float[Array, "b h w n"], synonyms: Synonyms
) -> Float[Array, "b h w classes"]:
    """The mask of every class: where it has several texts, the largest of their masks."""
    if synonyms == tuple((i,) for i in range(masks.shape[-1])):
        return masks
    longest = max(len(texts) for texts in synonyms)
    # Classes with fewer synonyms repeat their last one.
    table = np.array([[*texts, *[texts[-1]] * (longest - len(texts))] for texts in synonyms])
    best = masks[..., table[:, 0]]
    for column in table.T[1:]:
        best = jnp.maximum(best, masks[..., column])
    return best


def grid_masks(
    model: Method,
    params: Any,
    image: Float[Array, "b H W 3"],
    text_embeddings: Float[Array, "n d"],
    options: MaskOptions = DEFAULT,
) -> Float[Array, "b h w n"]:
    """`make_masks` before they are resized to the image: `Method.masks`, or `options.scores`.

    A float32 model computes its products in full precision on every platform.

    Args:
        model, params, text_embeddings, options: as in `make_masks`.
        image: [b, H, W, 3] normalised; H and W multiples of the patch size.
    """
    height, width = model.seen_size((image.shape[1], image.shape[2]))
    image = image[:, :height, :width]
    with matmul_precision(model.dtype):
        if options.scores == "cosines":
            return model.cosines(params, image, text_embeddings)
        make = model.probabilities if options.scores == "probabilities" else model.masks
        return make(params, image, text_embeddings, options)
