from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tcl_jax.errors import InputError
from tcl_jax.evaluation import benchmark_schema
from tcl_jax.evaluation.benchmark import (
    BENCHMARKS,
    Benchmark,
    custom_benchmark,
    describe_labels,
    load_benchmark,
)
from tcl_jax.evaluation.labels import IGNORE, LabelError, read_label, to_classes

GOLDEN = Path(__file__).parent.parent / "golden"
EXPECTED = json.loads((GOLDEN / "eval" / "expected.json").read_text())
OWN = 'images = "photos"\nlabels = "labels"\n'
ONE = OWN + 'classes = ["a"]\n'


def write_toml(folder: Path, text: str, name: str = "own.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def three(**settings: Any) -> Benchmark:
    return custom_benchmark("images", "labels", ["cat", "dog", "cow"], **settings)


# ----------------------------------------------------------------------------------- built-in ones


@pytest.mark.parametrize("name", BENCHMARKS)
def test_class_names_are_the_published_ones(name: str) -> None:
    benchmark = load_benchmark(name)
    assert list(benchmark.names) == EXPECTED[f"{name}/classes"]
    assert benchmark.name == name
    assert all(len(synonyms) == 1 for synonyms in benchmark.classes)
    assert benchmark.background == (name in ("voc", "context", "coco_object"))
    assert benchmark.reduce_zero_label == (name in ("voc20", "context59", "ade20k"))
    assert benchmark.ignore == (255,)


def test_splits_and_names() -> None:
    assert load_benchmark("ade20k").split == "val"
    train = load_benchmark("ade20k", split="train")
    assert (train.split, train.splits["train"], train.folders["train"]) == (
        "train", 20210, "training",
    )  # fmt: skip
    with pytest.raises(InputError, match=r"no split 'test'; choose one of val, train"):
        load_benchmark("voc", split="test")
    with pytest.raises(InputError, match=r"'vok' is not known.*voc, context.*\.toml"):
        load_benchmark("vok")


# ------------------------------------------------------------------------------------- a user's own


def test_the_example_of_the_schema(tmp_path: Path) -> None:
    example = re.search(r"\n    # birds.toml(.*?)\n\n\{key\}", benchmark_schema.__doc__ or "", re.S)
    assert example
    text = "\n".join(line.removeprefix("    ") for line in example[1].splitlines()[1:])
    benchmark = load_benchmark(write_toml(tmp_path, text, "birds.toml"))
    assert benchmark == Benchmark(
        name="birds",
        title="Birds of my garden",
        classes=(("sparrow",), ("great tit", "tit"), ("crow",)),
        background=True,
        reduce_zero_label=False,
        ignore=(255,),
        images=f"{tmp_path}/photos/{{key}}.*",
        labels=f"{tmp_path}/labels/{{key}}_mask.png",
        list=f"{tmp_path}/lists/{{split}}.txt",
        split="val",
        splits={"val": 120, "train": 900},
        hint="Ask Ann for the photos.",
        published={"Ann's model": 41.2},
        short_side=448,
        window=448,
        stride=224,
        threshold=0.4,
        folders={"val": "validation"},
        exif="apply",
        cleaning=False,
    )
    assert benchmark.names == ("background", "sparrow", "great tit", "crow")


def test_names_in_a_toml_are_taken_as_they_are_and_in_a_text_file_stripped(tmp_path: Path) -> None:
    text = "\ufeff# animals\n\n cat , kitten\n  dog\n"
    (tmp_path / "classes.txt").write_text(text, encoding="utf-8")
    path = write_toml(tmp_path, OWN + 'classes = "classes.txt"')
    assert load_benchmark(path).classes == (("cat", "kitten"), ("dog",))
    path = write_toml(tmp_path, OWN + 'classes = ["cat ", ["dog, big", "dog"]]')
    assert load_benchmark(path).classes == (("cat ",), ("dog, big", "dog"))


def test_custom_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("names.txt").write_text("cat, kitten\ndog\n")
    benchmark = custom_benchmark(
        Path("photos"),
        "masks/{key}.png",
        Path("names.txt"),
        image_list="all.txt",
        background=True,
        threshold=1,
        window=None,
    )
    assert benchmark.name == "custom"
    assert benchmark.classes == (("cat", "kitten"), ("dog",))
    assert benchmark.images == f"{tmp_path}/photos/{{key}}.*"
    assert benchmark.labels == f"{tmp_path}/masks/{{key}}.png"
    assert benchmark.list == f"{tmp_path}/all.txt"
    assert benchmark.threshold == 1.0 and isinstance(benchmark.threshold, float)
    assert benchmark.window is None and benchmark.ignore == (255,) and benchmark.title == "custom"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OWN, "'classes'"),
        ('labels = "l"\nclasses = ["a"]', "'images'"),
        (ONE + "colour = 3", "'colour'; known are .*reduce_zero_label"),
        (ONE + "ignore = 70000", "ignore is 70000; .* 0 to 65535"),
        (ONE + "threshold = 40", "threshold is 40"),
        (ONE + "splits = {train = 3}", "no split 'val'; choose one of train"),
        (ONE + "published = {TCL = 512}", "published is .*per cent"),
        (OWN + 'classes = ["a", ["b", " "]]', r"classes has the entry \['b', ' '\]"),
        (OWN + 'classes = ["a", ["b", "A "]]', "classes: 'a' and 'A '"),
        (ONE + "background = true\nreduce_zero_label = true", "value 0 .*background, reduce_zero"),
        (OWN + 'classes = ["a", "b"]\nignore = 1', "value 1 .*'b'.* ignore .*0 to 1; .*255"),
        (OWN + 'classes = ["a", "b"]\nvalues = [3, 3]', "value 3 .*'b', and also of 'a'"),
        (ONE + 'name = "a/b"', "'a/b' cannot be that of a file"),
        (ONE + 'name = "voc"', "'voc' is the name of a built-in"),
        ('images = "i/{name}.jpg"\nlabels = "l"\nclasses = ["a"]', r"images .*\{name\}.*\{key\}"),
        ('images = "i/*.jpg"\nlabels = "l"\nclasses = ["a"]', r"images .*\{key\}.* in place of \*"),
        (OWN + 'classes = "nowhere.txt"', "nowhere.txt.* cannot be read: .*No such file"),
        (OWN + "classes = [cat]", "is not a TOML file"),
    ],
)
def test_what_is_wrong_in_a_toml_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = write_toml(tmp_path, text)
    with pytest.raises(InputError, match=message) as caught:
        load_benchmark(path)
    assert str(tmp_path) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog,\n")
    with pytest.raises(InputError, match=r"names.txt.*line 2, 'dog,'"):
        custom_benchmark("i", "l", names)
    names.write_text("")
    with pytest.raises(InputError, match="classes: .* empty"):
        custom_benchmark("i", "l", names)
    with pytest.raises(InputError, match=r"gone.toml' .*No such file"):
        load_benchmark(tmp_path / "gone.toml")


# ------------------------------------------------------------------------------------------ labels


def test_a_class_called_background_is_pointed_out() -> None:
    named = custom_benchmark("i", "l", ["Background", "cat"])
    assert "give --background" in describe_labels(named)
    assert "--background" not in describe_labels(custom_benchmark("i", "l", ["cat", "dog"]))


def test_values_of_a_file_of_classes(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("255: thing\n7: road\n")
    benchmark = custom_benchmark("i", "l", names, background=True)
    assert describe_labels(benchmark) == (
        "custom: labels 0 = none of them (by the threshold), 7 = road, 255 = thing; ignored: none"
    )
    assert to_classes(np.array([[0, 255, 7]], np.uint8), benchmark).tolist() == [[0, 2, 1]]
    names.write_text("0: cat\n1: dog\n")
    plain = custom_benchmark("i", "l", ["cat", "dog"])
    assert custom_benchmark("i", "l", names) == plain
    with pytest.raises(InputError, match="value 0 is that of the class 'cat'"):
        custom_benchmark("i", "l", names, reduce_zero_label=True)
    names.write_text("__ignore__\n_background_\ncat\ndog\n")
    labelme = custom_benchmark("i", "l", names)
    assert labelme == custom_benchmark("i", "l", ["cat", "dog"], background=True)


@pytest.mark.parametrize(
    ("settings", "raw", "expected"),
    [
        ({}, [0, 2, 255], [0, 2, IGNORE]),
        ({"background": True}, [0, 3, 255], [0, 3, IGNORE]),
        ({"reduce_zero_label": True}, [0, 1, 3, 255], [IGNORE, 0, 2, IGNORE]),
        ({"ignore": 99}, [1, 99], [1, IGNORE]),
    ],
)
def test_to_classes(settings: dict[str, Any], raw: list[int], expected: list[int]) -> None:
    for dtype in (np.uint8, np.uint16, np.int32):
        classes = to_classes(np.array([raw], dtype), three(**settings))
        assert classes.dtype == np.int32 and classes.tolist() == [expected]


@pytest.mark.parametrize(
    ("settings", "raw", "message"),
    [
        ({}, np.array([[7, 3, 7, 0]], np.uint8), "3 pixels have the label values 3, 7; .*0 to 2"),
        ({"reduce_zero_label": True}, np.array([[4, 0]], np.uint8), "4; .* 1 to 3, and 0, 255 to"),
        ({}, np.array([[-1, 70000, 2]], np.int32), "-1, 70000;"),
    ],
)
def test_values_out_of_range_are_listed(settings: Any, raw: np.ndarray, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        to_classes(raw, three(**settings))


def save(image: Image.Image, path: Path, **settings: Any) -> Path:
    image.save(path, **settings)
    return path


def test_labels_of_every_integer_kind(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    path = save(Image.fromarray(values), tmp_path / "grey.png")
    assert read_label(path).dtype == np.uint8
    np.testing.assert_array_equal(read_label(path), values)

    for colours in (256, 12):  # 8 and 4 bits a pixel
        palette = Image.fromarray(values, "P") if colours == 256 else Image.new("P", (4, 3))
        palette.putdata(values.ravel().tolist())
        palette.putpalette([(37 * i) % 256 for i in range(3 * colours)])
        path = save(palette, tmp_path / "palette.png", bits=8 if colours == 256 else 4)
        np.testing.assert_array_equal(read_label(path), values)
    assert path.read_bytes()[24] == 4

    large = values.astype(np.uint16) * 100
    path = save(Image.fromarray(large), tmp_path / "sixteen.png")
    assert read_label(path).dtype == np.uint16
    np.testing.assert_array_equal(read_label(path), large)

    signed = values.astype(np.int32) - 1
    path = save(Image.fromarray(signed), tmp_path / "signed.tif")
    np.testing.assert_array_equal(read_label(path), signed)


def test_more_than_255_classes(tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(300)]
    with pytest.raises(InputError, match="value 255 .*0 to 299; .*65535"):
        custom_benchmark("i", "l", names)
    many = custom_benchmark("i", "l", names, ignore=65535)
    raw = np.array([[0, 255, 299, 65535]], np.uint16)
    path = save(Image.fromarray(raw), tmp_path / "label.png")
    assert to_classes(read_label(path), many).tolist() == [[0, 255, 299, IGNORE]]


def test_labels_that_cannot_be_used(tmp_path: Path) -> None:
    grey = Image.fromarray(np.zeros((20, 30), np.uint8))
    noise = np.random.default_rng(0).integers(0, 255, (60, 60), np.uint8)
    whole = save(Image.fromarray(noise), tmp_path / "whole.png").read_bytes()
    cut, empty, text = (tmp_path / name for name in ("cut.png", "empty.png", "text.png"))
    cut.write_bytes(whole[: len(whole) // 2])
    empty.write_bytes(b"")
    text.write_text("no image")
    for path, message in (
        (save(grey.convert("RGB"), tmp_path / "rgb.png"), "mode RGB.*palette"),
        (save(grey.convert("F"), tmp_path / "float.tif"), "mode F.*whole number"),
        (save(grey, tmp_path / "jpeg.png", format="JPEG"), "a JPEG.*PNG"),
        (save(grey.convert("1"), tmp_path / "one.png"), r"less than 8 bits"),
        (cut, "damaged"),
        (empty, "cannot be read"),
        (text, "cannot be read.*cannot identify"),
        (tmp_path / "gone.png", "cannot be read.*No such file"),
        (tmp_path, "cannot be read.*Is a directory"),
    ):
        with pytest.raises(LabelError, match=message):
            read_label(path)
