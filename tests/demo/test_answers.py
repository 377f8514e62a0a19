"""Questions and answers of the page, without a page."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tcl_jax.demo.answers import Answers, Limits
from tcl_jax.demo.examples import COUNT, draw_examples, knows_shapes
from tcl_jax.errors import InputError
from tcl_jax.inference.model import model_from_torch
from tcl_jax.inference.segmenter import Segmenter
from tcl_jax.inference.settings import InferenceSettings
from tests.demo.made_model import WORDS, random_tcl, write_scene

TEXT = "\n".join(WORDS)
SIZE = (64, 64)


@pytest.fixture(scope="module")
def answers() -> Answers:
    return Answers(random_tcl(), limits=Limits(max_megabytes=0.5, max_megapixels=0.05, max_words=4))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene(tmp_path_factory.mktemp("scene") / "my scene.png", 0)


def test_the_model_runs_once_for_a_question(answers: Answers, scene: Path, tmp_path: Path) -> None:
    question = answers.question(scene, TEXT, pamr=False, baseline=False)
    answer = answers.answer(question)
    before = answers.model_runs
    assert before >= 1
    assert list(answer.masks) == ["tcl"]
    again = answers.answer(answers.question(scene, TEXT, pamr=False, baseline=False))
    assert again.masks["tcl"] is answer.masks["tcl"]
    for threshold in (None, 0.2, 0.5):
        answers.segmentation(question, "tcl", threshold)
    answers.pack(question, tmp_path, {"tcl": 0.4}, 0.5)
    # The same picture under another name, and with a baseline beside it.
    copy = tmp_path / "copy.png"
    copy.write_bytes(scene.read_bytes())
    assert answers.answer(answers.question(copy, TEXT, pamr=False, baseline=False))
    assert answers.model_runs == before
    both = answers.answer(answers.question(scene, TEXT, pamr=False, baseline=True))
    assert list(both.masks) == ["tcl", "maskclip"] and answers.model_runs == before + 1
    assert np.abs(both.masks["maskclip"].at(SIZE) - both.masks["tcl"].at(SIZE)).max() > 0.01
    answers.answer(answers.question(scene, "plain blue", pamr=False, baseline=False))
    assert answers.model_runs == before + 2


def test_masks_are_the_segmenters(answers: Answers, scene: Path) -> None:
    question = answers.question(scene, TEXT, pamr=False, baseline=False)
    result = answers.segmentation(question, "tcl", 0.3)
    expected = Segmenter(random_tcl()).segment(scene, WORDS, threshold=0.3)
    np.testing.assert_array_equal(result.labels, expected.labels)
    assert result.names == expected.names
    assert answers.threshold("tcl", False) == 0.3 and answers.threshold("maskclip", False) == 0.5
    assert answers.threshold("maskclip", True) == 0.4


def test_forgotten_masks_are_made_again(scene: Path) -> None:
    small = Answers(random_tcl(), cache_bytes=1000)
    question = small.question(scene, TEXT, pamr=False, baseline=False)
    first, second = small.answer(question), small.answer(question)
    assert small.model_runs == 2
    np.testing.assert_array_equal(first.masks["tcl"].grids, second.masks["tcl"].grids)


def test_what_is_taken_away(answers: Answers, scene: Path, tmp_path: Path) -> None:
    question = answers.question(scene, TEXT, pamr=False, baseline=True)
    path = answers.pack(question, tmp_path, {"tcl": 0.3, "maskclip": 0.5}, 0.8)
    assert path.name == "my scene_masks.zip"
    with zipfile.ZipFile(path) as archive:
        kinds = ("_overlay.png", "_tinted.png", "_labels.png", "_masks.npz", ".json")
        methods = ("tcl", "maskclip")
        assert set(archive.namelist()) == {f"my scene_{m}{kind}" for m in methods for kind in kinds}
        record = json.loads(archive.read("my scene_tcl.json"))
        with archive.open("my scene_tcl_labels.png") as file:
            labels = np.asarray(Image.open(file))
        with archive.open("my scene_tcl_tinted.png") as file:
            tinted = np.asarray(Image.open(file))
    assert record["threshold"] == 0.3 and record["masks"] == "auto"
    assert record["method"] == "tcl" and record["texts"] == list(WORDS)
    result = answers.segmentation(question, "tcl", 0.3)
    np.testing.assert_array_equal(labels, result.labels)
    np.testing.assert_array_equal(tinted, result.overlay(0.8))
    without = answers.pack(dataclasses.replace(question, methods=("tcl",)), tmp_path, None, 0.8)
    with zipfile.ZipFile(without) as archive:
        assert json.loads(archive.read("my scene.json"))["threshold"] is None
    assert {p.name for p in tmp_path.iterdir()} == {path.parent.name, without.parent.name}


def test_words(answers: Answers) -> None:
    assert answers.read_words("  a   cat \n\n grass\r\na cat\n") == ("a cat", "grass")
    for text, problem in (
        ("", "at least one word"),
        (" \n ", "at least one word"),
        ("a\nb\nc\nd\ne", "5 words; at most 4"),
        ("a" * 201, "too long"),
        ("Background", "'Background' is what pixels are called"),
        ("a cat\nA cat", "same to CLIP"),
    ):
        with pytest.raises(InputError, match=problem):
            answers.read_words(text)


def test_photos_that_cannot_be_used(answers: Answers, scene: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("fake.png", "cut.png", "huge.png", "heavy.png")}
    files["fake.png"].write_text("no picture")
    files["cut.png"].write_bytes(scene.read_bytes()[:2000])
    Image.new("RGB", (300, 200)).save(files["huge.png"])
    files["heavy.png"].write_bytes(scene.read_bytes() + bytes(600_000))
    for name, problem in (
        ("fake.png", "cannot be used.*no image of a known format"),
        ("cut.png", "cannot be used.*cannot be decoded"),
        ("huge.png", "cannot be used.*300 x 200 pixels, and the limit is 50000"),
        ("heavy.png", r"0.6 MB; at most 0.5 MB"),
    ):
        with pytest.raises(InputError, match=problem) as caught:
            answers.picture(files[name])
        assert str(tmp_path) not in str(caught.value)
    with pytest.raises(InputError, match="upload it again"):
        answers.picture(tmp_path / "gone.png")
    with pytest.raises(InputError, match="Choose a photo"):
        answers.question(None, TEXT, pamr=False, baseline=False)


def test_a_photo_that_is_gone_after_its_answer(answers: Answers, tmp_path: Path) -> None:
    photo = write_scene(tmp_path / "scene.png", 3)
    question = answers.question(photo, TEXT, pamr=False, baseline=False)
    answers.answer(question)
    unanswered = answers.question(photo, TEXT, pamr=False, baseline=True)
    photo.unlink()
    gone = r"^The photo is no longer there; upload it again\.$"
    with pytest.raises(InputError, match=gone):
        answers.pack(question, tmp_path, {"tcl": 0.4}, 0.5)
    with pytest.raises(InputError, match=gone):
        answers.answer(unanswered)
    assert list(tmp_path.iterdir()) == []


def test_a_turned_photo_is_upright(answers: Answers, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), "red").save(tmp_path / "turned.jpg", exif=exif)
    assert answers.picture(tmp_path / "turned.jpg").shape == (40, 20, 3)


def test_limits() -> None:
    for wrong in (
        {"max_megabytes": 0.0},
        {"max_megabytes": float("inf")},
        {"max_megabytes": 1e303},
        {"max_megabytes": float("nan")},
        {"max_megapixels": 101.0},
        {"max_megapixels": float("nan")},
        {"max_words": 0},
        {"max_words": 257},
    ):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Limits(**wrong)


def test_clip_alone_has_nothing_beside_it(scene: Path) -> None:
    alone = Answers(model_from_torch("builtin:shapes_clip"))
    question = alone.question(scene, TEXT, pamr=False, baseline=True)
    assert not alone.has_baseline and question.methods == ("maskclip",)
    assert alone.threshold("maskclip", False) == 0.5


def test_examples(tmp_path: Path) -> None:
    names: dict[bool, set[str]] = {}
    for plain in (True, False):
        examples = draw_examples(tmp_path / str(plain), plain=plain)
        assert len(examples) == COUNT
        names[plain] = {word for example in examples for word in example.words.split("\n")}
        for example in examples:
            with Image.open(example.path) as image:
                assert min(image.size) >= 300
            assert len(example.words.split("\n")) >= 2
    assert "striped yellow" in names[True] and "yellow" in names[False]


def test_models_of_drawn_scenes_are_known() -> None:
    builtin = model_from_torch("builtin:shapes_clip")
    assert knows_shapes(builtin.settings, builtin.origin)
    run = {"run": {"config": {"data": {"source": "shapes"}}}}
    assert knows_shapes(InferenceSettings(), run)
    assert not knows_shapes(InferenceSettings(), {"clip": {"file": "weights/ViT-B-16.pt"}})
