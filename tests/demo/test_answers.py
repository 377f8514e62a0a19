"""Questions and answers of the page, without a page."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tcl_jax.demo import answers as answers_module
from tcl_jax.demo.answers import LONG_SIDE, Answers
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
    return Answers(random_tcl(), max_bytes=500_000, max_pixels=50_000)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene(tmp_path_factory.mktemp("scene") / "my scene.png", 0)


def test_the_model_runs_once_for_a_question(answers: Answers, scene: Path, tmp_path: Path) -> None:
    question = answers.question(scene, TEXT, pamr=False, baseline=False)
    masks = answers.answer(question)[1]["tcl"]
    before = answers.model_runs
    again = answers.answer(answers.question(scene, TEXT, pamr=False, baseline=False))[1]
    assert list(again) == ["tcl"] and again["tcl"] is masks
    answers.pack(question, tmp_path, {"tcl": 0.4}, 0.5)
    assert answers.model_runs == before
    both = answers.answer(answers.question(scene, TEXT, pamr=False, baseline=True))[1]
    assert list(both) == ["tcl", "maskclip"] and answers.model_runs == before + 1
    assert np.abs(both["maskclip"].at(SIZE) - both["tcl"].at(SIZE)).max() > 0.01
    answers.answer(answers.question(scene, "plain blue", pamr=False, baseline=False))
    assert answers.model_runs == before + 2


def test_masks_are_the_segmenters(answers: Answers, scene: Path) -> None:
    question = answers.question(scene, TEXT, pamr=False, baseline=False)
    result = answers.segmentation(question, "tcl", 0.3)
    expected = Segmenter(random_tcl()).segment(scene, WORDS, threshold=0.3)
    np.testing.assert_array_equal(result.labels, expected.labels)
    assert result.names == expected.names
    assert answers.thresholds(False) == {"tcl": 0.3, "maskclip": 0.5}
    assert answers.thresholds(True) == {"tcl": 0.4, "maskclip": 0.4}  # 0.3 is of masks without


def test_masks_used_longest_ago_are_forgotten(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Answers(random_tcl())
    first, second, third = (
        small.question(scene, word, pamr=False, baseline=False) for word in ("red", "blue", "green")
    )
    size = small.answer(first)[1]["tcl"].grids.nbytes
    monkeypatch.setattr(answers_module, "_CACHE_BYTES", 2 * size)
    for question, runs in ((second, 2), (first, 2), (third, 3), (first, 3), (second, 4)):
        small.answer(question)
        assert small.model_runs == runs
    monkeypatch.setattr(answers_module, "_CACHE_BYTES", 0)
    assert small.answer(third)[1]["tcl"].grids.nbytes == size


def test_files_to_download(answers: Answers, scene: Path, tmp_path: Path) -> None:
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
        (" \n ", "at least one word"),
        ("\n".join(f"cat {i}" for i in range(51)), "51 words; at most 50"),
        ("a" * 201, "too long"),
        ("Background", "'Background' is the name of the class"),
        ("a cat\nA cat", "are the same to"),
    ):
        with pytest.raises(InputError, match=problem):
            answers.read_words(text)


def test_photos_that_cannot_be_used(answers: Answers, scene: Path, tmp_path: Path) -> None:
    (tmp_path / "fake.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(scene.read_bytes()[:2000])
    Image.new("RGB", (300, 200)).save(tmp_path / "huge.png")
    (tmp_path / "heavy.png").write_bytes(scene.read_bytes() + bytes(600_000))
    for name, problem in (
        ("fake.png", "cannot be used.*no image of a known format"),
        ("cut.png", "cannot be used.*cannot be decoded"),
        ("huge.png", "cannot be used.*300 x 200 pixels, and the limit is 50000"),
        ("heavy.png", r"0.6 MB; at most 0.5 MB"),
        ("gone.png", "upload it again"),
    ):
        question = answers.question(tmp_path / name, TEXT, pamr=False, baseline=False)
        with pytest.raises(InputError, match=problem) as caught:
            answers.answer(question)
        assert str(tmp_path) not in str(caught.value)
        with pytest.raises(InputError, match=problem):
            answers.picture(question.photo)
    with pytest.raises(InputError, match="Choose a photo"):
        answers.question(None, TEXT, pamr=False, baseline=False)


def test_nothing_is_left_of_files_that_cannot_be_made(answers: Answers, tmp_path: Path) -> None:
    photo = write_scene(tmp_path / "scene.png", 3)
    question = answers.question(photo, TEXT, pamr=False, baseline=False)
    answers.answer(question)
    photo.unlink()
    with pytest.raises(InputError, match="upload it again"):
        answers.pack(question, tmp_path, {"tcl": 0.4}, 0.5)
    assert list(tmp_path.iterdir()) == []


def test_photos_are_upright_and_fit_the_screen(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (3000, 10), "red").save(tmp_path / "turned.jpg", exif=exif)
    assert Answers(random_tcl()).picture(tmp_path / "turned.jpg").shape == (LONG_SIDE, 3, 3)


def test_clip_alone_has_nothing_beside_it(scene: Path) -> None:
    alone = Answers(model_from_torch("builtin:shapes_clip"))
    question = alone.question(scene, TEXT, pamr=False, baseline=True)
    assert not alone.has_baseline and question.methods == ("maskclip",)
    assert alone.thresholds(False) == {"maskclip": 0.5}


def test_examples(tmp_path: Path) -> None:
    for plain, typical in ((True, "striped yellow"), (False, "yellow")):
        examples = draw_examples(tmp_path / str(plain), plain=plain)
        words = [example.words.split("\n") for example in examples]
        assert len(examples) == COUNT and min(map(len, words)) >= 2
        assert any(typical in names for names in words)
        for example in examples:
            with Image.open(example.path) as image:
                assert min(image.size) >= 300


def test_models_of_drawn_scenes_are_known() -> None:
    builtin = model_from_torch("builtin:shapes_clip")
    assert knows_shapes(builtin.settings, builtin.origin)
    assert knows_shapes(InferenceSettings(templates="shapes"), {})
    assert not knows_shapes(InferenceSettings(), {"clip": {"file": "weights/ViT-B-16.pt"}})
