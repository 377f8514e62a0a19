"""Colours: of pages, and of labels, easily told apart and the same every time."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float, UInt8

PAPER, INK, FAINT = (255, 255, 255), (34, 36, 40), (120, 124, 132)
"""Colours of pages and of what is written on them."""

DISTINCT = 256
"""Number of different colours; beyond it they begin again."""
BACKGROUND = (0, 0, 0)
"""Colour of the background class in a label map."""

# The first colours are of middle lightness and clearly coloured; with more of them, paler, darker
# and greyer ones are needed to keep them apart. (number of colours, lightness, chroma) in OKLab.
_STAGES = (
    (20, (0.57, 0.86), (0.11, 0.205)),
    (64, (0.40, 0.92), (0.07, 0.26)),
    (DISTINCT, (0.28, 0.97), (0.0, 0.33)),
)
_FIRST_HUE = 250.0


def class_palette(names: int, background: bool) -> UInt8[np.ndarray, "labels 3"]:
    """A colour for every name, after `BACKGROUND` if there is that class.

    A name has the same colour with and without background, and however many follow it.

    Args:
        names: number of names.
        background: whether label 0 is the background.

    Returns:
        uint8 [names, 3], or [names + 1, 3] with background.
    """
    colors = np.resize(_distinct_colors(), (names, 3))
    return np.concatenate([np.array([BACKGROUND], np.uint8), colors]) if background else colors


@functools.cache
def _distinct_colors() -> UInt8[np.ndarray, "count 3"]:
    """Each colour is the one of all candidates that is farthest from the colours before it."""
    taken = [np.array([0.0, 0.0, 0.0]), np.array([1.0, 0.0, 0.0])]  # black and white
    hue = np.deg2rad(_FIRST_HUE)
    taken.append(np.array([0.68, 0.15 * np.cos(hue), 0.15 * np.sin(hue)]))
    for count, lightness, chroma in _STAGES:
        candidates = _candidates(lightness, chroma)
        distance = np.min([((candidates - lab) ** 2).sum(-1) for lab in taken], axis=0)
        while len(taken) < count + 2:
            lab = candidates[distance.argmax()]
            taken.append(lab)
            distance = np.minimum(distance, ((candidates - lab) ** 2).sum(-1))
    colors = np.rint(255 * _oklab_to_srgb(np.array(taken[2:]))).astype(np.uint8)
    colors.setflags(write=False)
    return colors


def _candidates(
    lightness: tuple[float, float], chroma: tuple[float, float]
) -> Float[np.ndarray, "k 3"]:
    """Colours of a range in OKLab that a screen can show."""
    light, saturation, hue = np.meshgrid(
        np.linspace(*lightness, 16),
        np.linspace(*chroma, 12),
        np.deg2rad(np.arange(0, 360, 6)),
        indexing="ij",
    )
    lab = np.stack([light, saturation * np.cos(hue), saturation * np.sin(hue)], -1).reshape(-1, 3)
    rgb = _oklab_to_srgb(lab)
    return lab[((rgb >= 0) & (rgb <= 1)).all(-1)]


def _oklab_to_srgb(lab: Float[np.ndarray, "k 3"]) -> Float[np.ndarray, "k 3"]:
    """Björn Ottosson's OKLab (2020), where distances are about as large as they look, to sRGB."""
    to_cones = [
        [1, 0.3963377774, 0.2158037573],
        [1, -0.1055613458, -0.0638541728],
        [1, -0.0894841775, -1.2914855480],
    ]
    to_linear = [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
    linear = (lab @ np.transpose(to_cones)) ** 3 @ np.transpose(to_linear)
    high = 1.055 * np.abs(linear) ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, 12.92 * linear, high)
