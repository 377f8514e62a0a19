"""Strengths and distribution of RandAugment."""

from __future__ import annotations

import io
import pickle
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from tcl_jax.data import image_operations as operations
from tcl_jax.data.rand_augment import OPERATIONS, RandAugment

DRAWS = 30_000
CHI_SQUARE_14 = 36.1
"""Exceeded with probability 0.001 by 14 degrees of freedom."""


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def samples() -> list:
    rng = generator()
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
    strength = OPERATIONS[name].strength
    assert strength is not None
    rng = generator()
    for magnitude, expected in ((0.0, at_0), (9.0, at_9), (10.0, at_10)):
        drawn = {strength(magnitude, rng) for _ in range(40)}
        assert {round(value, 9) for value in drawn} == expected


def test_three_take_no_argument() -> None:
    without = {name for name, operation in OPERATIONS.items() if operation.strength is None}
    assert without == {"AutoContrast", "Equalize", "Invert"}


@pytest.mark.parametrize("magnitude", [0.0, 2.5, 9.0, 10.0])
def test_every_operation_takes_what_its_strength_gives(magnitude: float) -> None:
    image = generator().integers(0, 256, (16, 16, 3), np.uint8)
    rng = generator()
    assert len(OPERATIONS) == 15
    for operation in OPERATIONS.values():
        given = () if operation.strength is None else (operation.strength(magnitude, rng),)
        assert operation.apply(image, *given).shape == image.shape


# -------------------------------------------------------------------------------- distribution


def test_half_of_two_operations_are_applied(samples: list) -> None:
    counts = np.array([Counter(len(sample) for sample in samples)[n] for n in range(3)])
    expected = DRAWS * np.array([0.25, 0.5, 0.25])
    assert ((counts - expected) ** 2 / expected).sum() < 13.8  # 0.001, two degrees of freedom


@pytest.mark.parametrize("place", [0, 1])
def test_operations_are_equally_frequent(samples: list, place: int) -> None:
    names = [sample[place][0] for sample in samples if len(sample) == 2]
    counts = np.array([Counter(names)[name] for name in OPERATIONS])
    expected = len(names) / 15
    assert ((counts - expected) ** 2 / expected).sum() < CHI_SQUARE_14


def test_operations_are_drawn_with_replacement(samples: list) -> None:
    both = [sample for sample in samples if len(sample) == 2]
    same = sum(sample[0][0] == sample[1][0] for sample in both)
    assert abs(same / len(both) - 1 / 15) < 4 * np.sqrt(14 / 15**2 / len(both))


def test_magnitudes_are_normal_and_clipped(samples: list) -> None:
    magnitudes = np.abs(arguments(samples, "Rotate")) / 3
    count = len(magnitudes)
    assert count > 1800 and magnitudes.max() <= 10
    # Of N(9, 0.5): quantiles, and 2.28 % beyond 10.
    error = 4 * 0.5 / np.sqrt(count)
    for quantile, value in ((0.1587, 8.5), (0.5, 9.0), (0.8413, 9.5)):
        assert abs(np.quantile(magnitudes, quantile) - value) < 1.5 * error
    clipped = np.mean(np.isclose(magnitudes, 10))
    assert abs(clipped - 0.0228) < 4 * np.sqrt(0.0228 / count)
    assert len(np.unique(magnitudes)) > 0.95 * count


def test_both_signs_are_equally_frequent(samples: list) -> None:
    centres = {"Rotate": 0, "ShearX": 0, "ShearY": 0, "TranslateX": 0, "TranslateY": 0}
    centres |= {"Color": 1, "Contrast": 1, "Brightness": 1, "Sharpness": 1}
    for name, centre in centres.items():
        values = arguments(samples, name) - centre
        assert abs(np.mean(values > 0) - 0.5) < 4 * 0.5 / np.sqrt(len(values)), name
        size = np.abs(values) / np.abs(values).max() * 10
        assert abs(size.mean() - 9) < 0.1, name


def test_whole_numbers_follow_the_magnitude(samples: list) -> None:
    bits = Counter(arguments(samples, "Posterize").tolist())
    total = bits.total()
    assert set(bits) <= {0, 1, 2}
    assert abs(bits[0] / total - 0.0228) < 4 * np.sqrt(0.0228 / total)
    assert bits[2] / total < 0.006
    thresholds = arguments(samples, "Solarize")
    assert thresholds.min() == 0 and abs(np.median(thresholds) - 26) <= 2
    additions = arguments(samples, "SolarizeAdd")
    assert additions.max() == 110 and abs(np.median(additions) - 98.5) <= 1


def test_fields_are_followed() -> None:
    rng = generator()
    always = RandAugment(operations=3, probability=1.0, magnitude=5, magnitude_std=0)
    drawn = [always.sample(rng) for _ in range(500)]
    assert {len(sample) for sample in drawn} == {3}
    assert set(np.abs(arguments(drawn, "Rotate"))) == {15.0}
    assert set(arguments(drawn, "Posterize")) == {2}
    assert RandAugment(probability=0).sample(rng) == RandAugment(operations=0).sample(rng) == []
    low = RandAugment(probability=1, magnitude=0, magnitude_std=5)
    assert min(arguments([low.sample(rng) for _ in range(500)], "SolarizeAdd")) == 0


@pytest.mark.parametrize(
    "field",
    [{"operations": -1}, {"probability": 1.5}, {"magnitude": 11}, {"magnitude": -1.0},
     {"magnitude_std": -0.5}, {"magnitude_std": float("nan")}],
)  # fmt: skip
def test_bad_fields(field: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(field))}="):
        RandAugment(**field)


# ------------------------------------------------------------------------------------- images


def test_image_is_changed_as_sampled() -> None:
    image = generator().integers(0, 256, (24, 24, 3), np.uint8)
    before = image.copy()
    augment = pickle.loads(pickle.dumps(RandAugment(operations=3, probability=0.9)))
    changed = 0
    for seed in range(40):
        expected = image
        for name, given in augment.sample(generator(seed)):
            expected = OPERATIONS[name].apply(expected, *given)
        result = augment(image, generator(seed))
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result, expected)
        changed += (result != image).any()
    assert changed > 35
    np.testing.assert_array_equal(image, before)


def test_operations_come_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.full((4, 4, 3), 100, np.uint8)
    augment = RandAugment()
    sampled = [("SolarizeAdd", (99,)), ("Invert", ())]
    monkeypatch.setattr(RandAugment, "sample", lambda self, rng: sampled)
    assert (augment(image, generator()) == 255 - 199).all()
    sampled.reverse()
    assert (augment(image, generator()) == 155).all()


def test_bytes_are_decoded() -> None:
    image = generator().integers(0, 256, (9, 7, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    augment = RandAugment(operations=1, probability=1)
    for seed in range(10):
        ours = augment(file.getvalue(), generator(seed))
        np.testing.assert_array_equal(ours, augment(image, generator(seed)))
    assert operations.FILL == (124, 116, 104)
