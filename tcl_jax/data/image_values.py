"""The values of arrays that are images."""

from __future__ import annotations

import numpy as np

from tcl_jax.errors import InputError

# Rounding in resizing and colour conversions leaves values this little outside of [0, 1].
_FLOAT_SLACK = 1e-3


def check_values(array: np.ndarray) -> None:
    """Refuses an array whose type or range are not those of an image.

    Raises:
        InputError: it is neither uint8, uint16, bool nor floats in [0, 1].
    """
    if array.dtype in (np.uint8, np.uint16, np.bool_):
        return
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(
            f"image is an array of {array.dtype}; give uint8 (0 to 255), uint16, bool, or floats "
            "in [0, 1]: image.astype(np.uint8), if its values are 0 to 255"
        )
    low, high = float(array.min()), float(array.max())
    if low >= -_FLOAT_SLACK and high <= 1 + _FLOAT_SLACK:
        return
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError("image has values that are not finite; floats must be in [0, 1]")
    hint = "normalise it so that black is 0 and white is 1"
    if low >= 0 and high <= 256:
        hint = "it looks like 0 to 255: divide it by 255, or give it as uint8"
    elif max(-low, high) < 10:
        hint = "if a mean was subtracted, give the image as it was before"
    raise InputError(
        f"image has floats from {low:.6g} to {high:.6g}, and they must be in [0, 1]; {hint}"
    )


def as_uint8(values: np.ndarray) -> np.ndarray:
    """What `check_values` lets pass, from black 0 to white 255."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint16:
        return np.rint(values.astype(np.float32) / 257).astype(np.uint8)
    return np.rint(np.clip(values.astype(np.float32), 0, 1) * 255).astype(np.uint8)
