"""Labels derived from published ones: every value, and what happens to bad sources."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tcl_jax.errors import InputError, RunError
from tcl_jax.evaluation import pascal_context
from tcl_jax.evaluation.benchmark import load_benchmark
from tcl_jax.evaluation.labels import LabelError, to_classes
from tcl_jax.evaluation.prepare import find_sources, make_labels, replace_values, train_id_table

COCO = "coco_stuff164k/annotations/val2017"
# Ids of COCO's things: 1 to 90 without those that were dropped.
DROPPED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
THINGS = [i for i in range(1, 91) if i not in DROPPED]
# Category ids of COCO and COCO-Stuff whose names both have.
KNOWN_THINGS = {
    1: "person", 11: "fire hydrant", 13: "stop sign", 27: "backpack", 31: "handbag", 44: "bottle",
    46: "wine glass", 65: "bed", 67: "dining table", 70: "toilet", 72: "tv", 82: "refrigerator",
    84: "book", 90: "toothbrush",
}  # fmt: skip
KNOWN_STUFF = {92: "banner", 105: "clothes", 124: "grass", 149: "road", 169: "tree", 182: "wood"}
# Name to id in the definition of Cityscapes' labels.
CITYSCAPES_IDS = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17,
    "traffic light": 19, "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23,
    "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32,
    "bicycle": 33,
}  # fmt: skip


def write_png(path: Path, values: np.ndarray | list[list[int]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)
    return path


def read_png(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "L" and image.format == "PNG"
        return np.asarray(image)


def make(name: str, root: Path, split: str = "val") -> int:
    """How many labels were made."""
    benchmark = load_benchmark(name, split=split)
    return make_labels(benchmark, find_sources(benchmark, root))


# ------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize(
    ("name", "value_of"),
    [
        ("coco_stuff", {name: i - 1 for i, name in (KNOWN_THINGS | KNOWN_STUFF).items()}),
        ("coco_object", {name: i - 1 for i, name in KNOWN_THINGS.items()}),
        ("cityscapes", CITYSCAPES_IDS),
        ("context", {name: i for i, name in pascal_context.CLASSES.items()}),
    ],
)
def test_new_values_are_those_of_the_classes_of_that_name(
    name: str, value_of: dict[str, int]
) -> None:
    names, table = load_benchmark(name).names, train_id_table(name)
    assert [names[table[value]] for value in value_of.values()] == list(value_of)


def test_every_value() -> None:
    stuff, objects = train_id_table("coco_stuff"), train_id_table("coco_object")
    assert [stuff[i - 1] for i in [*THINGS, *range(92, 183)]] == list(range(171))
    assert stuff[255] == 255 and stuff[11] == stuff[182] == objects[11] == -1
    assert [objects[i - 1] for i in THINGS] == list(range(1, 81))
    # Stuff and what is not labelled is background: 255 is not kept.
    assert {objects[value] for value in [*range(91, 182), 255]} == {0}
    cityscapes = train_id_table("cityscapes")
    assert [cityscapes[value] for value in CITYSCAPES_IDS.values()] == list(range(19))
    assert {cityscapes[v] for v in {*range(34), 255} - {*CITYSCAPES_IDS.values()}} == {255}
    context = train_id_table("context59")
    assert [context[value] for value in pascal_context.CLASSES] == list(range(1, 60))
    assert context.shape == (461,) and context[460] == -1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint64])
def test_values_of_all_types(dtype: type) -> None:
    table = train_id_table("cityscapes")
    raw = np.array([[7, 33], [0, 255]], dtype)
    np.testing.assert_array_equal(replace_values(raw, table), [[0, 18], [255, 255]])
    largest = int(np.iinfo(dtype).max) if dtype != np.uint8 else 254
    for wrong in (34, largest, *([-1] if dtype == np.int32 else [])):
        raw[0, 0] = wrong
        with pytest.raises(LabelError, match=rf"value\(s\) {wrong}, which"):
            replace_values(raw, table)


# ------------------------------------------------------------------------------- labels of pictures


def test_coco_labels(tmp_path: Path) -> None:
    raw, folder = np.array([[0, 12, 89], [91, 181, 255]]), tmp_path / COCO
    for key, values in (("139", raw), ("285", raw[:, ::-1])):
        write_png(folder / f"{key}.png", values)
    assert make("coco_stuff", tmp_path) == make("coco_object", tmp_path) == 2
    stuff = read_png(folder / "139_labelTrainIds.png")
    np.testing.assert_array_equal(stuff, [[0, 11, 79], [80, 170, 255]])
    things = read_png(folder / "285_instanceTrainIds.png")
    np.testing.assert_array_equal(things, [[80, 12, 1], [0, 0, 0]])
    assert make("coco_stuff", tmp_path) == 0  # made labels are no sources
    train = write_png(tmp_path / "coco_stuff164k/annotations/train2017/1.png", [[181]])
    assert make("coco_stuff", tmp_path, "train") == 1
    assert read_png(train.with_name("1_labelTrainIds.png")).item() == 170


def test_cityscapes_labels(tmp_path: Path) -> None:
    root = tmp_path / "of [all] data*"
    folder = root / "cityscapes/gtFine/val"
    raw = np.arange(34, dtype=np.uint8).reshape(2, 17)
    for city in ("ulm", "jena"):
        write_png(folder / city / f"{city}_000000_000019_gtFine_labelIds.png", raw)
        write_png(folder / city / f"{city}_000000_000019_gtFine_instanceIds.png", raw)
    write_png(folder / "ulm/._ulm_000000_000019_gtFine_labelIds.png", raw)
    assert make("cityscapes", root) == 2
    made = read_png(folder / "jena/jena_000000_000019_gtFine_labelTrainIds.png")
    expected = np.full(34, -1)
    expected[[*CITYSCAPES_IDS.values()]] = range(19)
    classes = to_classes(made, load_benchmark("cityscapes"))
    np.testing.assert_array_equal(classes.ravel(), expected)


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / COCO
    sources = [write_png(folder / f"{key}.png", [[i]]) for i, key in enumerate("abcd", 1)]
    labels = [folder / f"{path.stem}_labelTrainIds.png" for path in sources]
    assert make("coco_stuff", tmp_path) == 4
    for path in (*labels, *sources):
        os.utime(path, ns=(10**18, 10**18))
    assert make("coco_stuff", tmp_path) == 0
    labels[1].write_bytes(b"")  # by some other program that was stopped
    os.utime(sources[2], ns=(10**18 + 1, 10**18 + 1))
    labels[3].unlink()
    assert make("coco_stuff", tmp_path) == 3
    assert labels[0].stat().st_mtime_ns == 10**18
    assert [read_png(path).item() for path in labels] == [1, 2, 3, 4]


def test_bad_sources_are_named_and_the_rest_is_done(tmp_path: Path) -> None:
    folder = tmp_path / COCO
    for key, values in (("good", [[1]]), ("odd", [[11, 11], [90, 1]]), ("cut", np.eye(200) * 3)):
        write_png(folder / f"{key}.png", values)
    whole = (folder / "cut.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    Image.new("RGB", (2, 2)).save(folder / "colours.png")
    with pytest.raises(RunError, match="4 of 5 labels could not be made") as caught:
        make("coco_stuff", tmp_path)
    expected = {"colours": "RGB", "cut": ".*truncated", "odd": "11, 90,"}
    for name, why in expected.items():
        assert re.search(rf"{folder / name}\.png: [^:]*{why}", str(caught.value))
    assert sorted(path.name for path in folder.glob("*TrainIds*")) == ["good_labelTrainIds.png"]


def test_what_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    source = write_png(tmp_path / COCO / "a.png", [[1]])
    source.with_name("a_labelTrainIds.png").mkdir()
    os.utime(source, ns=(4 * 10**18, 4 * 10**18))
    with pytest.raises(OSError, match=r"a_labelTrainIds\.png"):
        make("coco_stuff", tmp_path)
    assert not [*source.parent.glob(".*")]


def test_missing_folders_are_explained(tmp_path: Path) -> None:
    (tmp_path / "cityscapes/gtFine/val").mkdir(parents=True)
    for name, message in (
        ("coco_object", r"val2017/, but there are none.*stuffthingmaps_trainval2017"),
        ("cityscapes", r"labelIds\.png in .*but there are none.*gtFine_trainval"),
        ("context", r"VOC2010/trainval or .*VOC2010/Context.*trainval\.tar\.gz"),
    ):
        with pytest.raises(InputError, match=message):
            make(name, tmp_path)
