"""The embedded shapes data: reproducible, true to its captions and labels, fair to zero-shot."""

from __future__ import annotations

import colorsys
import hashlib
import itertools
import pickle
import re
from collections import Counter

import numpy as np
import pytest

from tcl_jax.shapes.drawing import draw_scene
from tcl_jax.shapes.grammar import Subject, describe
from tcl_jax.shapes.source import (
    CLASSES,
    COLORS,
    PALETTE,
    PATTERNS,
    SPLITS,
    UNSEEN,
    ShapesSource,
    class_names,
)

PATTERN_SAYINGS = {
    "plain": "plain", "solid": "plain", "no pattern": "plain",
    "striped": "striped", "stripy": "striped", "stripes": "striped",
    "dotted": "dotted", "spotted": "dotted", "polka-dot": "dotted", "dots": "dotted",
    "spots": "dotted", "checked": "checked", "checkered": "checked", "checks": "checked",
}  # fmt: skip


def examples(split, count, image_size=32, **options):
    source = ShapesSource(split, num_examples=count, image_size=image_size, **options)
    return [source[index] for index in range(count)]


@pytest.fixture(scope="module")
def train_texts():
    return [example["text"] for example in examples("train", 1000)]


def colors_in(text):
    return re.findall(rf"\b({'|'.join(COLORS)})\b", text)


def patterns_in(text):
    return [PATTERN_SAYINGS[word] for word in re.findall("|".join(PATTERN_SAYINGS), text)]


def pairs_in(text):
    """Pairs that follow from the wording alone."""
    colors, patterns = "|".join(COLORS), "|".join(PATTERN_SAYINGS)
    found = re.findall(rf"\b({colors}) (?:and )?({patterns})\b", text)
    found += [(c, p) for p, c in re.findall(rf"\b({patterns}) (?:and )?({colors})\b", text)]
    return {(color, PATTERN_SAYINGS[pattern]) for color, pattern in found}


def hue(rgb):
    return 360.0 * colorsys.rgb_to_hsv(*(float(v) / 255.0 for v in rgb))[0]


def test_classes_are_all_pairs_and_unseen_ones_leave_each_attribute_mostly_seen():
    assert {(c.color, c.pattern) for c in CLASSES} == set(itertools.product(COLORS, PATTERNS))
    assert class_names() == tuple(f"{c.pattern} {c.color}" for c in CLASSES)
    unseen = [c for c in CLASSES if c.name in UNSEEN]
    assert len(unseen) == len(UNSEEN) == 6
    assert max(Counter(c.color for c in unseen).values()) <= len(PATTERNS) // 2
    assert max(Counter(c.pattern for c in unseen).values()) <= len(COLORS) // 2


def test_palette_tells_classes_apart():
    assert PALETTE.shape == (25, 3) and PALETTE.dtype == np.uint8
    distances = np.linalg.norm(PALETTE[:, None].astype(float) - PALETTE[None], axis=-1)
    assert distances[~np.eye(25, dtype=bool)].min() > 20


def test_examples_depend_on_split_seed_and_index_alone():
    streams = [e for split in SPLITS for seed in (0, 1) for e in examples(split, 9, seed=seed)]
    assert len({e["image"].tobytes() for e in streams}) == len({e["key"] for e in streams}) == 54
    source = ShapesSource("validation", num_examples=20)
    longer = pickle.loads(pickle.dumps(ShapesSource("validation", num_examples=1000)))
    forward = [source[i] for i in range(20)]
    for index in reversed(range(20)):
        again = longer[index]
        assert again.keys() == forward[index].keys()
        for name, value in again.items():
            np.testing.assert_array_equal(value, forward[index][name])


def test_example_fields():
    train = ShapesSource("train", num_examples=200)[123]
    assert set(train) == {"image", "text", "key"} and train["key"] == "train-0-000123"
    test = ShapesSource("test", num_examples=5, image_size=64, seed=7)[np.int64(4)]
    assert set(test) == {*train, "label", "class_ids"} and test["key"] == "test-7-000004"
    for example, side in ((train, 48), (test, 64)):
        assert example["image"].shape == (side, side, 3) and example["image"].dtype == np.uint8
    assert test["label"].shape == (64, 64) and test["label"].dtype == np.uint8
    assert (*np.unique(test["label"])[1:],) == test["class_ids"]


def test_scenes_are_those_the_embedded_clip_was_trained_on(train_texts):
    digest = hashlib.sha256("\n".join(train_texts).encode()).hexdigest()
    assert digest == "586dd160cef1bfe6e7a31660da298f98edb1dee8f44b6817bfbd755435387f98"
    # Of pictures means, which a last bit of another CPU's cosine does not move.
    means = [e["image"].mean() for e in examples("test", 4, image_size=48)]
    np.testing.assert_allclose(means, [115.8822, 79.9151, 150.0450, 108.1879], atol=0.01)


@pytest.mark.parametrize(("name", "value"), [("split", "dev"), ("max_objects", 4)])
def test_bad_arguments_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value!r}"):
        ShapesSource(**{"split": "train", "num_examples": 4, name: value})


@pytest.mark.parametrize("index", [-1, 4])
def test_indices_outside_are_refused(index):
    with pytest.raises(IndexError, match=f"index is {index}, .* 0 to 3"):
        ShapesSource("train", num_examples=4)[index]


@pytest.mark.parametrize("most", [1, 3])
def test_numbers_of_objects_and_classes(most):
    found = [e["class_ids"] for e in examples("validation", 400, max_objects=most)]
    counts = Counter(map(len, found))
    assert set(counts) == set(range(1, most + 1)) and min(counts.values()) > 60
    often = Counter(i for ids in found for i in ids)
    mean = sum(often.values()) / 24
    assert set(often) == set(range(1, 25))
    assert min(often.values()) > 0.4 * mean and max(often.values()) < 1.6 * mean


def test_every_object_stays_visible_and_later_ones_cover_earlier_ones():
    looks = [(COLORS["red"], "plain"), (COLORS["blue"], "dotted"), (COLORS["green"], "striped")]
    totals, covering = [], 0
    for seed in range(150):
        drawing = draw_scene(np.random.default_rng(seed), 32, looks)
        areas = np.bincount(drawing.owner.ravel(), minlength=4) / 32**2
        assert areas.size == 4 and areas[1:].min() >= 0.04
        totals.append(areas[1:].sum())
        assert all(0 <= back < front < 3 for front, back in drawing.covers)
        covering += bool(drawing.covers)
    assert min(totals) >= 0.2 and covering > 30


def test_labels_agree_with_pixels():
    checked = Counter()
    for example in examples("validation", 300, image_size=48):
        pixels = example["image"].astype(np.float64)
        for class_id in example["class_ids"]:
            inside = pixels[example["label"] == class_id]
            shape = CLASSES[class_id - 1]
            spread = inside.std(axis=0).max()
            if shape.pattern == "plain":
                turned = hue(inside.mean(axis=0)) - hue(COLORS[shape.color])
                assert abs((turned + 180.0) % 360.0 - 180.0) < 12
                assert spread < 38
            else:
                assert spread > 38
            checked[shape.pattern] += 1
        ground = pixels[example["label"] == 0]
        assert np.median(ground.max(axis=1) - ground.min(axis=1)) < 60
    assert min(checked.values()) > 50


@pytest.mark.parametrize("nameable", [True, False])
def test_captions_say_what_is_there(nameable):
    rng = np.random.default_rng(0)
    for _ in range(1500):
        shapes = [CLASSES[i] for i in rng.integers(24, size=rng.integers(1, 4))]
        present = {(s.color, s.pattern) for s in shapes}
        subjects = [Subject(s.color, s.pattern, *rng.random(3), nameable) for s in shapes]
        text = describe(rng, subjects, [], "grey")
        assert not Counter(colors_in(text)) - Counter(s.color for s in shapes), (text, present)
        assert set(patterns_in(text)) <= {s.pattern for s in shapes}, (text, present)
        assert pairs_in(text) <= (present if nameable else set()), (text, present)


def test_training_captions_never_name_an_unseen_pair(train_texts):
    named = set().union(*map(pairs_in, train_texts))
    assert named == {(c.color, c.pattern) for c in CLASSES if c.name not in UNSEEN}


def test_relations_are_true():
    left = Subject("red", "plain", x=0.2, y=0.5, area=0.15)
    right = Subject("blue", "striped", x=0.8, y=0.5, area=0.15)
    rng = np.random.default_rng(0)
    found = Counter()
    for _ in range(1000):
        text = describe(rng, [left, right], [(1, 0)], "grey")
        if colors_in(text) not in (["red", "blue"], ["blue", "red"]):
            continue
        red_first = text.index("red") < text.index("blue")
        for words, needs_red_first in (
            ("left of", True), ("right of", False), ("in front of", False), ("behind", True),
            ("partly hidden by", True), ("on top of", False),
        ):  # fmt: skip
            if words in text:
                assert red_first == needs_red_first, text
                found[words] += 1
        assert "above" not in text and "below" not in text
    assert len(found) == 6
