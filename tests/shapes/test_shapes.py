"""The embedded shapes data: reproducible, true to its captions and labels, fair to zero-shot."""

from __future__ import annotations

import colorsys
import itertools
import pickle
import re
from collections import Counter

import numpy as np
import pytest

from tcl_jax.shapes import drawing, grammar
from tcl_jax.shapes import source as shapes
from tcl_jax.shapes.source import CLASSES, COLORS, PALETTE, PATTERNS, UNSEEN, ShapesSource

PATTERN_SAYINGS = {
    "plain": "plain",
    "solid": "plain",
    "no pattern": "plain",
    "striped": "striped",
    "stripy": "striped",
    "stripes": "striped",
    "dotted": "dotted",
    "spotted": "dotted",
    "polka-dot": "dotted",
    "dots": "dotted",
    "spots": "dotted",
    "checked": "checked",
    "checkered": "checked",
    "checks": "checked",
}
ALL_SAID = {
    "color_only_probability": 0.0,
    "pattern_only_probability": 0.0,
    "partial_caption_probability": 0.0,
}


def _scenes(split: str, count: int, **options):
    source = ShapesSource(split, num_examples=count, image_size=32, **options)
    return [source._scene(index) for index in range(count)]


@pytest.fixture(scope="module")
def train_scenes():
    return _scenes("train", 5000)


@pytest.fixture(scope="module")
def eval_scenes():
    return _scenes("validation", 1500)


def _words(text: str, sayings: dict[str, str]) -> list[str]:
    found = re.findall(r"\b(" + "|".join(sayings) + r")\b", text)
    return [sayings[word] for word in found]


def _hue(rgb) -> float:
    return 360.0 * colorsys.rgb_to_hsv(*(float(v) / 255.0 for v in rgb))[0]


def _turned(a: float, b: float) -> float:
    return abs((a - b + 180.0) % 360.0 - 180.0)


# Vocabulary


def test_classes_are_all_pairs():
    pairs = {(c.color, c.pattern) for c in CLASSES}
    assert pairs == set(itertools.product(COLORS, PATTERNS))
    assert shapes.class_names() == tuple(c.name for c in CLASSES)
    assert len(set(shapes.class_names())) == 24
    assert all(c.name == f"{c.pattern} {c.color}" for c in CLASSES)


def test_unseen_pairs_leave_every_attribute_mostly_seen():
    unseen = [c for c in CLASSES if c.name in UNSEEN]
    assert len(unseen) == len(UNSEEN) == 6
    assert max(Counter(c.color for c in unseen).values()) <= len(PATTERNS) // 2
    assert max(Counter(c.pattern for c in unseen).values()) <= len(COLORS) // 2


def test_palette_colours_can_be_told_apart():
    assert PALETTE.shape == (25, 3) and PALETTE.dtype == np.uint8
    assert PALETTE[0].max() < 40
    gaps = [
        np.linalg.norm(a.astype(float) - b.astype(float))
        for a, b in itertools.combinations(PALETTE, 2)
    ]
    assert min(gaps) > 30


def test_templates_take_class_names():
    templates = grammar.caption_templates()
    assert len(templates) >= 3
    for template in templates:
        assert "striped red" in template.format("striped red")
        assert template.count("{}") == 1


# Random access


def test_examples_do_not_depend_on_order_or_length():
    source = ShapesSource("validation", num_examples=20)
    forward = [source[i] for i in range(20)]
    longer = ShapesSource("validation", num_examples=1000)
    for index in reversed(range(20)):
        again = longer[index]
        assert again["text"] == forward[index]["text"]
        assert again["key"] == forward[index]["key"]
        assert again["class_ids"] == forward[index]["class_ids"]
        np.testing.assert_array_equal(again["image"], forward[index]["image"])
        np.testing.assert_array_equal(again["label"], forward[index]["label"])


def test_splits_seeds_and_indices_are_different_streams():
    sources = [
        ShapesSource(split, num_examples=50, image_size=32, seed=seed)
        for split in shapes.SPLITS
        for seed in (0, 1)
    ]
    examples = [source[i] for source in sources for i in range(50)]
    assert len({e["image"].tobytes() for e in examples}) == len(examples)
    assert len({e["key"] for e in examples}) == len(examples)


def test_caption_habits_do_not_touch_the_picture():
    habit = ShapesSource("test", num_examples=10, color_only_probability=0.7)
    usual = ShapesSource("test", num_examples=10)
    for a, b in zip((habit[i] for i in range(10)), (usual[i] for i in range(10)), strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])


def test_example_fields():
    example = ShapesSource("train", num_examples=200)[123]
    assert set(example) == {"image", "text", "key"}
    assert example["key"] == "train-0-000123"
    assert example["image"].shape == (48, 48, 3) and example["image"].dtype == np.uint8

    example = ShapesSource("test", num_examples=5, image_size=64, seed=7)[np.int64(4)]
    assert set(example) == {"image", "text", "key", "label", "class_ids"}
    assert example["key"] == "test-7-000004"
    assert example["image"].shape == (64, 64, 3)
    assert example["label"].shape == (64, 64) and example["label"].dtype == np.uint8
    present = tuple(int(v) for v in np.unique(example["label"]) if v)
    assert present == example["class_ids"]


def test_source_can_be_pickled_and_named():
    source = ShapesSource("test", num_examples=9, image_size=32, seed=3, max_objects=2)
    copy = pickle.loads(pickle.dumps(source))
    assert repr(copy) == repr(source) and len(copy) == 9
    np.testing.assert_array_equal(copy[8]["image"], source[8]["image"])
    rebuilt = eval(repr(source), {"ShapesSource": ShapesSource})
    assert repr(rebuilt) == repr(source)
    assert repr(ShapesSource("test", num_examples=9)) != repr(source)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": "dev"}, "split is 'dev'"),
        ({"num_examples": 0}, "num_examples is 0"),
        ({"image_size": 16}, "image_size is 16"),
        ({"seed": -1}, "seed is -1"),
        ({"max_objects": 4}, "max_objects is 4"),
        ({"color_only_probability": 1.5}, "color_only_probability is 1.5"),
        ({"ground_probability": float("nan")}, "ground_probability is nan"),
        ({"color_only_probability": 0.6, "pattern_only_probability": 0.6}, "must not pass 1"),
    ],
)
def test_bad_arguments_are_refused(changes, words):
    arguments = {"split": "train", "num_examples": 4} | changes
    with pytest.raises(ValueError, match=re.escape(words)):
        ShapesSource(arguments.pop("split"), **arguments)


def test_bad_types_and_indices_are_refused():
    with pytest.raises(TypeError, match="num_examples"):
        ShapesSource("train", num_examples=4.5)  # type: ignore[arg-type]
    source = ShapesSource("train", num_examples=4)
    for index in (-1, 4):
        with pytest.raises(IndexError, match=f"index is {index}, .* 0 to 3"):
            source[index]
    with pytest.raises(TypeError, match="index"):
        source["0"]  # type: ignore[index]
    with pytest.raises(ValueError, match="'zigzag', which cannot be drawn"):
        drawing.draw_scene(np.random.default_rng(0), 32, [((200, 0, 0), "zigzag")])


# Scenes


def test_scenes_hold_every_class(train_scenes):
    names = Counter(CLASSES[i - 1].name for scene in train_scenes for i in scene.class_ids)
    assert set(names) == set(shapes.class_names())


def test_eval_scenes_hold_all_classes_equally(eval_scenes):
    counts = Counter(i for scene in eval_scenes for i in scene.class_ids)
    assert set(counts) == set(range(1, 25))
    mean = sum(counts.values()) / 24
    assert min(counts.values()) > 0.6 * mean and max(counts.values()) < 1.4 * mean


def test_every_object_stays_visible(eval_scenes):
    totals = []
    for scene in eval_scenes:
        areas = np.bincount(scene.drawing.owner.ravel(), minlength=len(scene.class_ids) + 1)
        assert areas.size == len(scene.class_ids) + 1
        assert areas[1:].min() >= 0.04 * areas.sum()
        totals.append(areas[1:].sum() / areas.sum())
    assert min(totals) >= 0.2
    assert 0.27 < np.mean(totals) < 0.34


def test_number_of_objects(eval_scenes):
    counts = Counter(len(scene.class_ids) for scene in eval_scenes)
    assert set(counts) == {1, 2, 3} and min(counts.values()) > 0.2 * len(eval_scenes)
    assert {len(scene.class_ids) for scene in _scenes("train", 100, max_objects=1)} == {1}
    assert {len(scene.class_ids) for scene in _scenes("train", 100, max_objects=2)} == {1, 2}


def test_labels_agree_with_pixels():
    source = ShapesSource("validation", num_examples=300)
    checked = Counter()
    for index in range(300):
        example = source[index]
        pixels = example["image"].astype(np.float64)
        for class_id in example["class_ids"]:
            inside = pixels[example["label"] == class_id]
            shape = CLASSES[class_id - 1]
            spread = inside.std(axis=0).max()
            if shape.pattern == "plain":
                assert _turned(_hue(inside.mean(axis=0)), _hue(COLORS[shape.color])) < 12
                assert spread < 38
            else:
                assert spread > 38
            checked[shape.pattern] += 1
        ground = pixels[example["label"] == 0]
        chroma = np.median(ground.max(axis=1) - ground.min(axis=1))
        assert chroma < 60
    assert min(checked.values()) > 50


def test_later_objects_cover_earlier_ones():
    scenes = [s for s in _scenes("test", 300) if s.drawing.covers]
    assert len(scenes) > 30
    for scene in scenes:
        for front, back in scene.drawing.covers:
            assert 0 <= back < front < len(scene.class_ids)


# Captions


def test_captions_say_what_is_there(train_scenes, eval_scenes):
    color_words = {color: color for color in COLORS}
    for scene in train_scenes + eval_scenes:
        caption = scene.caption
        present = [CLASSES[i - 1] for i in scene.class_ids]
        left = list(present)
        for mention in caption.mentions:
            fitting = [
                c
                for c in left
                if mention.color in (None, c.color) and mention.pattern in (None, c.pattern)
            ]
            assert len(fitting) >= mention.count, (caption, present)
            if mention.color and mention.pattern:
                for shape in fitting[: mention.count]:
                    left.remove(shape)
        said = caption.mentions
        assert _words(caption.text, color_words) == [m.color for m in said if m.color]
        assert _words(caption.text, PATTERN_SAYINGS) == [m.pattern for m in said if m.pattern]
        for pair in _adjacent_pairs(caption.text):
            assert pair in {(c.color, c.pattern) for c in present}, caption.text


def _adjacent_pairs(text: str) -> set[tuple[str, str]]:
    """Pairs that follow from the wording alone."""
    colors, patterns = "|".join(COLORS), "|".join(PATTERN_SAYINGS)
    pairs = {
        (color, PATTERN_SAYINGS[pattern])
        for color, pattern in re.findall(rf"\b({colors}) (?:and )?({patterns})\b", text)
    }
    return pairs | {
        (color, PATTERN_SAYINGS[pattern])
        for pattern, color in re.findall(rf"\b({patterns}) (?:and )?({colors})\b", text)
    }


def test_training_captions_never_name_an_unseen_pair(train_scenes):
    unseen = {(c.color, c.pattern) for c in CLASSES if c.name in UNSEEN}
    named = set()
    for scene in train_scenes:
        assert not unseen & _adjacent_pairs(scene.caption.text), scene.caption.text
        assert not unseen & {(m.color, m.pattern) for m in scene.caption.mentions}
        named |= _adjacent_pairs(scene.caption.text)
    assert len(named) == 18


def test_captions_vary(train_scenes):
    texts = [scene.caption.text for scene in train_scenes]
    assert len(set(texts)) > 0.8 * len(texts)
    assert max(len(text.split()) for text in texts) <= 30
    shortened = [t for t in texts if not _words(t, PATTERN_SAYINGS)]
    assert 0.02 < len(shortened) / len(texts) < 0.2
    joined = " ".join(texts)
    for wording in ("in front of", "next to", "two ", "with stripes", "on a grey background"):
        assert wording in joined
    assert not re.search(r"\ba [aeio]|\ban [^aeio]|  ", joined)


def test_full_captions_name_every_object():
    for scene in _scenes("test", 300, **ALL_SAID):
        assert sum(m.count for m in scene.caption.mentions) == len(scene.class_ids)
        assert all(m.color and m.pattern for m in scene.caption.mentions)


def test_objects_of_unseen_pairs_are_named_by_one_attribute_in_training():
    said = Counter()
    for scene in _scenes("train", 600, max_objects=1, **ALL_SAID):
        (mention,), unseen = scene.caption.mentions, CLASSES[scene.class_ids[0] - 1].name in UNSEEN
        assert (None in (mention.color, mention.pattern)) == unseen
        said[mention.color is None] += unseen
    assert min(said[True], said[False]) > 0.3 * said.total()


def test_partial_captions_leave_objects_out():
    scenes = _scenes("train", 300, **(ALL_SAID | {"partial_caption_probability": 1.0}))
    several = [s for s in scenes if len(s.class_ids) > 1]
    assert several
    for scene in several:
        assert sum(m.count for m in scene.caption.mentions) < len(scene.class_ids)
        assert not re.search(r"nothing|only|just", scene.caption.text)


def test_relations_are_true():
    habits = grammar.CaptionHabits(0.0, 0.0, 0.0, 0.0)
    left = grammar.Subject("red", "plain", x=0.2, y=0.5, area=0.15)
    right = grammar.Subject("blue", "striped", x=0.8, y=0.5, area=0.15)
    rng = np.random.default_rng(0)
    found = Counter()
    for _ in range(400):
        text = grammar.describe(rng, [left, right], [(1, 0)], "grey", habits).text
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


def test_a_number_is_said_only_if_it_is_all():
    habits = grammar.CaptionHabits(0.0, 0.0, 1.0, 0.0)
    dot = grammar.Subject("red", "dotted", x=0.5, y=0.5, area=0.1)
    rng = np.random.default_rng(0)
    texts = [
        grammar.describe(rng, [dot, dot, dot], [], "grey", habits).text for _ in range(100)
    ]
    assert not any("two" in text for text in texts)
    assert any("some" in text for text in texts)
