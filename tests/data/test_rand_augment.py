"""Strengths and distribution of RandAugment."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
from numpy.random import default_rng
from PIL import Image

from tcl_jax.data.rand_augment import FILL, OPERATIONS, RandAugment
from tcl_jax.ops.images import IMAGENET

DRAWS = 8_000


@pytest.fixture(scope="module")
def samples() -> list:
    rng = default_rng(0)
    augment = RandAugment()
    return [augment.sample(rng) for _ in range(DRAWS)]


def arguments(samples: list, name: str) -> np.ndarray:
    return np.array([a[0] for sample in samples for n, a in sample if n == name])


# ---------------------------------------------------------------------------------- strengths


@pytest.mark.parametrize(
    ("name", "at_0", "at_9", "at_10"),
    [
        ("Rotate", {0.0}, {-27.0, 27.0}, {-30.0, 30.0}),
        ("Posterize", {4}, {1}, {0}),
        ("Solarize", {256}, {26}, {0}),
        ("SolarizeAdd", {0}, {99}, {110}),
        ("Color", {1.0}, {0.19, 1.81}, {0.1, 1.9}),
        ("Contrast", {1.0}, {0.19, 1.81}, {0.1, 1.9}),
        ("Brightness", {1.0}, {0.19, 1.81}, {0.1, 1.9}),
        ("Sharpness", {1.0}, {0.19, 1.81}, {0.1, 1.9}),
        ("ShearX", {0.0}, {-0.27, 0.27}, {-0.3, 0.3}),
        ("ShearY", {0.0}, {-0.27, 0.27}, {-0.3, 0.3}),
        ("TranslateX", {0.0}, {-0.405, 0.405}, {-0.45, 0.45}),
        ("TranslateY", {0.0}, {-0.405, 0.405}, {-0.45, 0.45}),
    ],
)
def test_strength(name: str, at_0: set, at_9: set, at_10: set) -> None:
    argument = OPERATIONS[name].argument
    assert argument is not None
    rng = default_rng(0)
    for strength, expected in ((0.0, at_0), (0.9, at_9), (1.0, at_10)):
        drawn = {argument(strength, rng) for _ in range(40)}
        assert {round(value, 9) for value in drawn} == expected


# --------------------------------------------------------------------------------- operations


def apply(name: str, image: np.ndarray, *argument: float) -> np.ndarray:
    before = image.copy()
    changed = np.asarray(OPERATIONS[name].apply(Image.fromarray(image), *argument))
    np.testing.assert_array_equal(image, before)
    assert changed.shape == image.shape and changed.dtype == np.uint8
    return changed


def test_values() -> None:
    """What the formulas of timm give; a ramp has every value once."""
    without = {name for name, operation in OPERATIONS.items() if operation.argument is None}
    assert len(OPERATIONS) == 15 and without == {"AutoContrast", "Equalize", "Invert"}
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    values = np.arange(256)
    for name, argument, expected in [
        ("Invert", (), 255 - values),
        ("Posterize", (1,), values & 128),
        ("Posterize", (0,), 0 * values),
        ("Solarize", (26,), np.where(values < 26, values, 255 - values)),
        ("SolarizeAdd", (99,), np.where(values < 128, np.minimum(values + 99, 255), values)),
        ("Brightness", (1.5,), np.minimum(1.5 * values, 255)),
        ("Contrast", (0.5,), 128 + (values - 128) / 2),
        ("Color", (0.1,), values),
        ("AutoContrast", (), values),
        ("Equalize", (), values),
    ]:
        changed = apply(name, ramp, *argument)
        difference = np.abs(changed - expected[None, :, None].astype(float))
        assert difference.max() < 1, name


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
@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"])
def test_where_pixels_come_from(name: str, value: float) -> None:
    image = default_rng(0).integers(0, 256, (40, 57, 3), np.uint8)
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width] + 0.5
    angle = value * 90 * np.pi / 180  # counter-clockwise, with y down
    dx, dy = x - width / 2, y - height / 2
    x, y = {
        "Rotate": (
            np.cos(angle) * dx - np.sin(angle) * dy + width / 2,
            np.sin(angle) * dx + np.cos(angle) * dy + height / 2,
        ),
        "ShearX": (x + value * y, y),
        "ShearY": (x, y + value * x),
        "TranslateX": (x + value * width, y),
        "TranslateY": (x, y + value * height),
    }[name]
    changed = apply(name, image, 90 * value if name == "Rotate" else value)
    difference = read_at(image, x, y) - changed
    # Pillow cuts off what is behind the point.
    assert difference.min() > -1e-6 and difference.max() < 1 + 1e-6


def test_fill_is_the_mean_that_is_subtracted() -> None:
    np.testing.assert_allclose(FILL, 255 * np.array(IMAGENET[0]), atol=0.5)


# -------------------------------------------------------------------------------- distribution


def test_what_is_drawn() -> None:
    """To the bit, as checkpoints of runs that go on depend on it."""
    assert RandAugment().sample(default_rng(3)) == [
        ("ShearY", (0.2762714827008867,)), ("Equalize", ()),
    ]  # fmt: skip
    assert RandAugment(operations=4, probability=0.9).sample(default_rng(0)) == [
        ("ShearY", (0.2715735017572956,)), ("Color", (1.8526186433408158,)),
    ]  # fmt: skip


def test_half_of_two_operations_are_applied_each_as_often(samples: list) -> None:
    counts = np.array([Counter(len(sample) for sample in samples)[n] for n in range(3)])
    np.testing.assert_allclose(counts / DRAWS, [0.25, 0.5, 0.25], atol=0.02)
    names = Counter(name for sample in samples for name, _ in sample)
    np.testing.assert_allclose([names[name] / DRAWS for name in OPERATIONS], 1 / 15, atol=0.01)


def test_magnitudes_are_normal_and_clipped(samples: list) -> None:
    magnitudes = np.abs(arguments(samples, "Rotate")) / 3
    assert magnitudes.max() <= 10
    quantiles = np.quantile(magnitudes, [0.1587, 0.5, 0.8413])  # of N(9, 0.5)
    np.testing.assert_allclose(quantiles, [8.5, 9.0, 9.5], atol=0.1)
    assert abs(np.mean(np.isclose(magnitudes, 10)) - 0.0228) < 0.02


# ------------------------------------------------------------------------------------- images


def test_image_is_changed_as_sampled() -> None:
    image = default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    before = image.copy()
    augment = pickle.loads(pickle.dumps(RandAugment(operations=3, probability=0.9)))
    changed = 0
    for seed in range(10):
        expected = image
        for name, given in augment.sample(default_rng(seed)):
            expected = apply(name, expected, *given)
        result = augment(image, default_rng(seed))
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result, expected)
        changed += (result != image).any()
    assert changed > 7
    np.testing.assert_array_equal(image, before)
