"""The random crop, the flip, and what a config makes of them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from numpy.random import default_rng
from PIL import Image

from configs.shapes import get_config as shapes_config
from configs.tcl import get_config as paper_config
from tcl_jax.data import transforms
from tcl_jax.data.images import ImageDecodeError, decode
from tcl_jax.data.rand_augment import RandAugment
from tcl_jax.data.random_erasing import RandomErasing
from tcl_jax.data.sources import make_erasing, make_transform
from tcl_jax.data.transforms import CenterCrop, Compose, HorizontalFlip, RandomResizedCrop
from tcl_jax.errors import InputError
from tests.data.shards import encode


def smooth_image(height: int, width: int) -> np.ndarray:
    """Colours that change slowly, so that lossy or smaller decoding changes them little."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [255 * x / width, 255 * y / height, 128 + 100 * np.sin((x + y) / 40)]
    return np.stack(channels, -1).astype(np.uint8)


# ------------------------------------------------------------------------------------------- crop


def test_box_is_within_scale_and_ratio():
    crop = RandomResizedCrop(8, scale=(0.2, 0.6), ratio=(0.5, 2.0))
    rng = default_rng(0)
    shares, aspects = [], []
    for _ in range(500):
        left, top, right, bottom = crop.sample_box(300, 400, rng)
        assert 0 <= left < right <= 400
        assert 0 <= top < bottom <= 300
        shares.append((right - left) * (bottom - top) / (300 * 400))
        aspects.append((right - left) / (bottom - top))
    assert 0.19 < min(shares) < 0.25 < 0.5 < max(shares) < 0.61
    assert 0.49 < min(aspects) < 0.7 < 1.5 < max(aspects) < 2.02
    assert abs(np.mean(np.log(aspects))) < 0.1


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10), (1, 1)])
def test_box_of_extreme_images_is_centred(height, width):
    left, top, right, bottom = RandomResizedCrop(8, scale=(0.9, 1.0)).sample_box(
        height, width, default_rng(0)
    )
    assert abs(left - (width - right)) <= 1
    assert abs(top - (height - bottom)) <= 1
    if height != width:
        assert (right - left) / (bottom - top) == pytest.approx(
            4 / 3 if width > height else 3 / 4, abs=0.2
        )


def test_crop_of_the_whole_image_is_a_plain_resize():
    image = smooth_image(64, 64)
    crop = RandomResizedCrop(16, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    expected = Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(crop(image, default_rng(0)), np.asarray(expected))


def test_bytes_and_array_are_cropped_alike():
    image = smooth_image(97, 61)
    data = encode(image, "PNG")
    for seed in range(5):
        crop = RandomResizedCrop(16)
        np.testing.assert_array_equal(crop(data, default_rng(seed)), crop(image, default_rng(seed)))


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_jpeg_decoded_smaller_gives_the_same_crop(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(smooth_image(403, 607), "JPEG", quality=95, exif=exif)
    whole = decode(data)
    for seed in range(4):
        crop = RandomResizedCrop(24)
        difference = crop(data, default_rng(seed)).astype(int) - crop(whole, default_rng(seed))
        assert np.abs(difference).max() <= 8, seed


@pytest.mark.parametrize(("height", "width"), [(375, 500), (1200, 1601)])
def test_decoded_size_is_the_smallest_that_keeps_the_detail(height, width, monkeypatch):
    """At least one decoded pixel for each of the result, and less than two where that can be."""
    decoded = []
    load = transforms.load_rgb
    monkeypatch.setattr(
        transforms, "load_rgb", lambda image: [decoded.append(image.size), load(image)][1]
    )
    data = encode(smooth_image(height, width), "JPEG")
    crop = RandomResizedCrop(112)
    shrinks = set()
    for seed in range(12):
        left, top, right, bottom = crop.sample_box(height, width, default_rng(seed))
        crop(data, default_rng(seed))
        shrink = round(width / decoded[-1][0])
        assert decoded[-1] == (-(-width // shrink), -(-height // shrink))
        used = min(right - left, bottom - top) / shrink
        assert shrink == 1 or used >= 112 * (1 - 1e-6)
        assert shrink == 8 or used < 2 * 112 * (1 + 1e-2)
        shrinks.add(shrink)
    assert len(shrinks) > 1


# ------------------------------------------------------------------------------- flip and chaining


def test_flip():
    image = smooth_image(4, 6)
    np.testing.assert_array_equal(HorizontalFlip(1.0)(image, default_rng(0)), image[:, ::-1])
    np.testing.assert_array_equal(HorizontalFlip(0.0)(image, default_rng(0)), image)
    rng = default_rng(0)
    flipped = sum((HorizontalFlip()(image, rng) != image).any() for _ in range(400))
    assert 160 < flipped < 240


def test_chain():
    image = smooth_image(40, 60)
    data = encode(image, "PNG")
    chain = pickle.loads(pickle.dumps(Compose((RandomResizedCrop(16), HorizontalFlip(1.0)))))
    expected = RandomResizedCrop(16)(image, default_rng(3))[:, ::-1]
    np.testing.assert_array_equal(chain(data, default_rng(3)), expected)
    np.testing.assert_array_equal(Compose(())(data, default_rng(0)), image)


# ---------------------------------------------------------------------------------- from a config


def test_paper_config_gives_the_papers_augmentation():
    data = paper_config().data
    expected = (
        RandomResizedCrop(224, (0.08, 1.0), (3 / 4, 4 / 3)),
        HorizontalFlip(0.5),
        RandAugment(operations=2, probability=0.5, magnitude=9.0, magnitude_std=0.5),
    )
    assert make_transform(data, 224) == Compose(expected)
    assert make_erasing(data) == RandomErasing(0.25, (0.02, 1 / 3), (0.3, 1 / 0.3))


def test_drawn_scenes_can_be_augmented_but_are_not_cropped():
    data = shapes_config().data
    assert make_transform(data, 64) == Compose(())
    assert make_erasing(data) is None
    data.rand_augment.operations, data.random_erasing = 1, 0.5
    assert make_transform(data, 64) == Compose((RandAugment(operations=1),))
    assert make_erasing(data) == RandomErasing(0.5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop_scale", (0.5, 2.0)),
        ("crop_scale", (0.5,)),
        ("crop_scale", (0.5, 0.1)),
        ("crop_ratio", (0.0, 1.0)),
        ("crop_ratio", (0.5, 1.0, 2.0)),
        ("flip", 1.5),
        ("rand_augment.operations", -2),
        ("rand_augment.magnitude", 30.0),
        ("rand_augment.probability", 1.5),
        ("rand_augment.magnitude_std", float("nan")),
        ("random_erasing", 25.0),
    ],
)
def test_impossible_config_is_refused_by_the_name_of_the_field(field, value):
    data = paper_config().data
    data.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=field.split(".")[0]):
        make_transform(data, 224)
        make_erasing(data)


# ----------------------------------------------------------------------------------- for features


@pytest.mark.parametrize(("size", "resized", "corner"), [
    ((45, 30), (36, 24), (6, 0)), ((31, 70), (24, 54), (0, 15)), ((24, 24), (24, 24), (0, 0)),
])  # fmt: skip
def test_the_middle_at_a_short_side(
    size: tuple[int, int], resized: tuple[int, int], corner: tuple[int, int]
) -> None:
    """What torchvision's `Resize(24, BICUBIC)` and `CenterCrop(24)` make of a Pillow image."""
    image = Image.fromarray(smooth_image(*reversed(size)))
    left, top = corner
    whole = np.asarray(image.resize(resized, Image.Resampling.BICUBIC))
    expected = whole[top : top + 24, left : left + 24]
    for given in (np.asarray(image), encode(image, "PNG")):
        np.testing.assert_array_equal(CenterCrop(24)(given, default_rng(0)), expected)
    config = paper_config()
    config.data.features = "somewhere"
    assert make_transform(config.data, 24) == Compose((CenterCrop(24),))
    with pytest.raises(ImageDecodeError, match="448000 x 448 pixels"):
        CenterCrop(448)(np.zeros((1, 1000, 3), np.uint8), default_rng(0))
