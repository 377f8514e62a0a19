"""From pixels to the numbers that the model takes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Statistics of RGB in [0, 1]; TCL feeds CLIP with these and not with CLIP's own."""


def normalize(image: UInt8[Array, "... 3"] | Float[Array, "... 3"]) -> Float[Array, "... 3"]:
    """RGB bytes (uint8, 0 to 255) to normalised float32; floating input is taken as normalised."""
    if jnp.issubdtype(image.dtype, jnp.floating):
        return jnp.asarray(image, jnp.float32)
    mean = jnp.asarray(np.array(IMAGENET_MEAN, np.float32) * 255)
    std = jnp.asarray(np.array(IMAGENET_STD, np.float32) * 255)
    return (image.astype(jnp.float32) - mean) / std


def center_pad(image: Float[Array, "b H W c"], multiple: int) -> tuple[jax.Array, tuple[int, int]]:
    """Pads with zeros, centred (the smaller half above and left), to a multiple of the patch.

    Returns:
        The padded image and the (top, left) offset of the original in it.
    """
    rows, columns = (-image.shape[1]) % multiple, (-image.shape[2]) % multiple
    top, left = rows // 2, columns // 2
    padded = jnp.pad(image, ((0, 0), (top, rows - top), (left, columns - left), (0, 0)))
    return padded, (top, left)
