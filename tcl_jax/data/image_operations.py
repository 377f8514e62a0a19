"""The operations of RandAugment on uint8 images; the results are Pillow's, byte for byte.

An operation that maps each value by itself is a table of 256 values, applied by OpenCV, which is
several times as fast as Pillow; what moves pixels is left to Pillow. Only a posterisation to no
bits at all, which Pillow refuses since version 10, gives what it gave before: black.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Int
from PIL import Image, ImageEnhance

from tcl_jax.data.images import Rgb

FILL = (124, 116, 104)
"""Colour of what comes in from outside: the ImageNet mean in [0, 255], rounded as timm does."""

_VALUES = np.arange(256)

# ------------------------------------------------------------------------------ a table for values


def invert(image: Rgb) -> Rgb:
    """255 minus each value."""
    return _apply(image, 255 - _VALUES)


def posterize(image: Rgb, bits: int) -> Rgb:
    """Keeps the highest bits of each value, 0 (a black image) to 8."""
    return _apply(image, _VALUES & ~(2 ** (8 - bits) - 1))


def solarize(image: Rgb, threshold: int) -> Rgb:
    """Inverts values from the threshold on; 256 changes nothing, 0 inverts all."""
    return _apply(image, np.where(threshold > _VALUES, _VALUES, 255 - _VALUES))


def solarize_add(image: Rgb, addition: int) -> Rgb:
    """Adds to values below 128, up to 255."""
    return _apply(image, np.where(_VALUES < 128, np.minimum(_VALUES + addition, 255), _VALUES))


def auto_contrast(image: Rgb) -> Rgb:
    """Stretches each channel's values to 0 to 255; a channel of one value stays."""
    tables = np.empty((256, 3), np.int64)
    for channel, counts in enumerate(_histograms(image)):
        low, high = np.flatnonzero(counts)[[0, -1]]
        tables[:, channel] = _VALUES
        if high > low:
            scale = 255 / (high - low)
            tables[:, channel] = _VALUES * scale - low * scale
    return _apply(image, tables)


def equalize(image: Rgb) -> Rgb:
    """Maps each channel's values so that they are spread evenly; a channel of one value stays."""
    tables = np.empty((256, 3), np.int64)
    for channel, counts in enumerate(_histograms(image)):
        step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
        tables[:, channel] = _VALUES
        if step:
            tables[:, channel] = (step // 2 + np.cumsum(counts) - counts) // step
    return _apply(image, tables)


def brightness(image: Rgb, factor: int | float) -> Rgb:
    """Multiplies each value: 0 is black, 1 the image, more is brighter."""
    return _apply(image, _blend_values(0, factor))


def contrast(image: Rgb, factor: int | float) -> Rgb:
    """Stretches the values about the image's mean grey: 0 is that grey, 1 the image."""
    counts = np.asarray(Image.fromarray(image).convert("L").histogram())
    mean = int(counts @ _VALUES / counts.sum() + 0.5)
    return _apply(image, _blend_values(mean, factor))


def _apply(image: Rgb, table: Int[np.ndarray, "256 *channels"]) -> Rgb:
    """Maps each value by a table, or by one for each channel; results are clipped to 0 to 255."""
    clipped = np.clip(table, 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(image, clipped.reshape(1, 256, -1)))


def _histograms(image: Rgb) -> Int[np.ndarray, "3 256"]:
    """How often each value occurs in each channel."""
    return np.asarray(Image.fromarray(image).histogram()).reshape(3, 256)


def _blend_values(start: int, factor: int | float) -> Int[np.ndarray, "256"]:
    """A table: factor * (value - start) + start, computed and clipped by Pillow."""
    values = Image.fromarray(_VALUES.astype(np.uint8)[None])
    table = Image.blend(Image.new("L", values.size, start), values, factor)
    return np.asarray(table)[0].astype(np.int64)


# ------------------------------------------------------------------------- neighbours and channels


def color(image: Rgb, factor: int | float) -> Rgb:
    """Saturates: 0 is the grey image, 1 the image, more is more colourful."""
    return np.asarray(ImageEnhance.Color(Image.fromarray(image)).enhance(factor))


def sharpness(image: Rgb, factor: int | float) -> Rgb:
    """Sharpens: 0 is the image smoothed over 3 x 3 pixels, 1 the image, more is sharper."""
    smooth = Image.fromarray(_smooth(image))
    return np.asarray(Image.blend(smooth, Image.fromarray(image), factor))


def _smooth(image: Rgb) -> Rgb:
    """Pillow's SMOOTH: the mean of 3 x 3 pixels, the middle one counted five times; no borders."""
    total = cv2.boxFilter(image, cv2.CV_16U, (3, 3), normalize=False)
    total += np.uint16(4) * image
    # The nearest integer to total / 13, which never lies between two.
    smooth = ((total + np.uint16(6)) // np.uint16(13)).astype(np.uint8)
    smooth[[0, -1]] = image[[0, -1]]
    smooth[:, [0, -1]] = image[:, [0, -1]]
    return smooth


# ---------------------------------------------------------------------------------------- geometry


def rotate(image: Rgb, degrees: int | float) -> Rgb:
    """Turns counter-clockwise about the centre."""
    turned = Image.fromarray(image).rotate(
        degrees, resample=Image.Resampling.BILINEAR, fillcolor=FILL
    )
    return np.asarray(turned)


def shear_x(image: Rgb, factor: int | float) -> Rgb:
    """Moves each row to the left by `factor` pixels per row, the first by least."""
    return _affine(image, (1, factor, 0, 0, 1, 0))


def shear_y(image: Rgb, factor: int | float) -> Rgb:
    """Moves each column up by `factor` pixels per column, the first by least."""
    return _affine(image, (1, 0, 0, factor, 1, 0))


def translate_x(image: Rgb, share: int | float) -> Rgb:
    """Moves everything to the left by a share of the width."""
    return _affine(image, (1, 0, share * image.shape[1], 0, 1, 0))


def translate_y(image: Rgb, share: int | float) -> Rgb:
    """Moves everything up by a share of the height."""
    return _affine(image, (1, 0, 0, 0, 1, share * image.shape[0]))


def _affine(image: Rgb, matrix: tuple[int | float, ...]) -> Rgb:
    """The image read, bilinearly, at x' = a x + b y + c, y' = d x + e y + f."""
    picture = Image.fromarray(image)
    moved = picture.transform(
        picture.size,
        Image.Transform.AFFINE,
        matrix,
        resample=Image.Resampling.BILINEAR,
        fillcolor=FILL,
    )
    return np.asarray(moved)
