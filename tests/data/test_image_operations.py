"""Each operation against Pillow, and against what it says it does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageEnhance, ImageOps

from tcl_jax.data import image_operations as operations
from tcl_jax.ops.images import PIXEL_MEAN

BILINEAR = Image.Resampling.BILINEAR
FILL = (124, 116, 104)


def noise(height: int, width: int, low: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(height).integers(low, high, (height, width, 3), np.uint8)


def one_flat_channel() -> np.ndarray:
    image = noise(31, 17)
    image[..., 1] = 200
    return image


IMAGES = {
    "photo": np.asarray(Image.fromarray(skimage.data.astronaut()).resize((224, 224))),
    "noise": noise(40, 57),
    "narrow range": noise(33, 20, 90, 131),
    "flat": np.full((12, 9, 3), (3, 128, 255), np.uint8),
    "one flat channel": one_flat_channel(),
    "two values": np.where(noise(64, 64) < 250, 10, 240).astype(np.uint8),
    # Pillow's table for it goes beyond 255.
    "small steps": np.arange(20 * 30 * 3, dtype=np.uint16).reshape(20, 30, 3).astype(np.uint8),
    "row": noise(1, 30),
    "column": noise(30, 1),
    "pixel": noise(1, 1),
    "two by two": noise(2, 2),
    "view": noise(40, 57)[::2, 3:40],
}


def affine(matrix: Callable[[Image.Image, float], tuple[float, ...]]) -> Callable:
    def apply(image: Image.Image, value: float) -> Image.Image:
        return image.transform(
            image.size,
            Image.Transform.AFFINE,
            matrix(image, value),
            resample=BILINEAR,
            fillcolor=FILL,
        )

    return apply


def point_add(image: Image.Image, addition: int) -> Image.Image:
    return image.point([min(255, v + addition) if v < 128 else v for v in range(256)] * 3)


FACTORS = (0.1, 0.1900001, 0.55, 1.0, 1.3, 1.81, 1.9)
SHIFTS = (-0.3, -0.27123, -0.01, 0.0, 0.1, 0.26789, 0.3, 0.45)
PILLOW: dict[str, tuple[Callable, tuple]] = {
    "posterize": (ImageOps.posterize, (1, 2, 3, 4, 8)),
    "solarize": (ImageOps.solarize, (0, 1, 26, 128, 255, 256)),
    "solarize_add": (point_add, (0, 1, 99, 110, 255)),
    "color": (lambda image, v: ImageEnhance.Color(image).enhance(v), FACTORS),
    "contrast": (lambda image, v: ImageEnhance.Contrast(image).enhance(v), FACTORS),
    "brightness": (lambda image, v: ImageEnhance.Brightness(image).enhance(v), FACTORS),
    "sharpness": (lambda image, v: ImageEnhance.Sharpness(image).enhance(v), FACTORS),
    "rotate": (
        lambda image, v: image.rotate(v, resample=BILINEAR, fillcolor=FILL),
        (-30.0, -27.3, -1.5, 0.0, 12.25, 29.9),
    ),
    "shear_x": (affine(lambda _, v: (1, v, 0, 0, 1, 0)), SHIFTS),
    "shear_y": (affine(lambda _, v: (1, 0, 0, v, 1, 0)), SHIFTS),
    "translate_x": (affine(lambda image, v: (1, 0, v * image.width, 0, 1, 0)), SHIFTS),
    "translate_y": (affine(lambda image, v: (1, 0, 0, 0, 1, v * image.height)), SHIFTS),
}
OURS = {
    name: getattr(operations, name)
    for name in (*PILLOW, "invert", "auto_contrast", "equalize")
}  # fmt: skip


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("name", PILLOW)
def test_same_as_pillow(name: str, kind: str) -> None:
    image = IMAGES[kind]
    before = image.copy()
    theirs, values = PILLOW[name]
    for value in values:
        result = OURS[name](image, value)
        assert result.dtype == np.uint8
        expected = np.asarray(theirs(Image.fromarray(image), value))
        np.testing.assert_array_equal(result, expected, err_msg=f"{name}({value})")
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("invert", ImageOps.invert),
        ("auto_contrast", ImageOps.autocontrast),
        ("equalize", ImageOps.equalize),
    ],
)
def test_same_as_pillow_without_argument(name: str, theirs: Callable, kind: str) -> None:
    image = IMAGES[kind]
    expected = np.asarray(theirs(Image.fromarray(image)))
    np.testing.assert_array_equal(OURS[name](image), expected)


def test_equalize_is_clipped_where_pillow_clips() -> None:
    """The image that makes a table go beyond 255 is among those compared."""
    counts = np.bincount(IMAGES["small steps"][..., 0].ravel(), minlength=256)
    step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
    assert (step // 2 + counts.sum() - counts[-1]) // step > 255


@pytest.mark.parametrize("seed", range(4))
def test_any_factor_gives_pillows_table(seed: int) -> None:
    """Rounding of products in float32 included."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    picture = Image.fromarray(ramp)
    for factor in np.random.default_rng(seed).uniform(0.1, 1.9, 60):
        for name, theirs in (
            ("brightness", ImageEnhance.Brightness),
            ("contrast", ImageEnhance.Contrast),
        ):
            expected = np.asarray(theirs(picture).enhance(float(factor)))
            np.testing.assert_array_equal(OURS[name](ramp, factor), expected)


def test_posterize_to_nothing_is_black() -> None:
    assert not operations.posterize(IMAGES["photo"], 0).any()


def test_fill_is_the_mean_that_is_subtracted() -> None:
    np.testing.assert_allclose(operations.FILL, PIXEL_MEAN, atol=0.5)


# ----------------------------------------------------------------------- geometry, by its formula


def read_at(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear values at the given places (pixel i covers [i, i + 1]), FILL outside."""
    height, width = image.shape[:2]
    column, row = x - 0.5, y - 0.5
    left, top = np.floor(column).astype(int), np.floor(row).astype(int)
    value = np.zeros((*x.shape, 3))
    for dy in (0, 1):
        for dx in (0, 1):
            weight = np.abs(1 - dx - (column - left)) * np.abs(1 - dy - (row - top))
            rows, columns = np.clip(top + dy, 0, height - 1), np.clip(left + dx, 0, width - 1)
            value += weight[..., None] * image[rows, columns]
    outside = (x < 0) | (x >= width) | (y < 0) | (y >= height)
    return np.where(outside[..., None], FILL, value)


@pytest.mark.parametrize("value", [-0.27, 0.1, 0.3])
@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_where_pixels_come_from(name: str, value: float) -> None:
    image = IMAGES["noise"]
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width] + 0.5
    if name == "rotate":  # counter-clockwise, with y down
        angle = value * 90 * np.pi / 180
        dx, dy = x - width / 2, y - height / 2
        x, y = (
            np.cos(angle) * dx - np.sin(angle) * dy + width / 2,
            np.sin(angle) * dx + np.cos(angle) * dy + height / 2,
        )
        value *= 90
    else:
        x, y = {
            "shear_x": (x + value * y, y),
            "shear_y": (x, y + value * x),
            "translate_x": (x + value * width, y),
            "translate_y": (x, y + value * height),
        }[name]
    expected = read_at(image, x, y)
    difference = expected - OURS[name](image, value)
    # Pillow cuts off what is behind the point.
    assert difference.min() > -1e-6 and difference.max() < 1 + 1e-6


def test_what_comes_in_is_the_fill_colour() -> None:
    moved = operations.translate_x(IMAGES["flat"], 1 / 3)
    np.testing.assert_array_equal(moved[:, :6], IMAGES["flat"][:, :6])
    np.testing.assert_array_equal(moved[:, 6:], np.broadcast_to(FILL, (12, 3, 3)))
