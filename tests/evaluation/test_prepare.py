"""Labels derived from published ones: every value, and what happens to bad sources."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tcl_jax.errors import InputError, RunError
from tcl_jax.evaluation import pascal_context
from tcl_jax.evaluation.benchmark import load_benchmark
from tcl_jax.evaluation.labels import LabelError, to_classes
from tcl_jax.evaluation.prepare import (
    make_labels,
    plan_labels,
    replace_values,
    train_id_table,
)

# Ids of COCO's things: 1 to 90 without those that were dropped.
DROPPED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_IDS = [i for i in range(1, 91) if i not in DROPPED]
# Category ids of COCO and COCO-Stuff whose names both have.
KNOWN_IDS = {
    1: "person", 2: "bicycle", 11: "fire hydrant", 13: "stop sign", 18: "dog", 27: "backpack",
    31: "handbag", 44: "bottle", 46: "wine glass", 62: "chair", 65: "bed", 67: "dining table",
    70: "toilet", 72: "tv", 82: "refrigerator", 84: "book", 90: "toothbrush",
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


def coco(root: Path, keys: Mapping[str, np.ndarray | list[list[int]]]) -> Path:
    folder = root / "coco_stuff164k/annotations/val2017"
    for key, values in keys.items():
        write_png(folder / f"{key}.png", values)
    return folder


def make(name: str, root: Path, **options: str | Path) -> tuple[int, int, tuple[str, ...]]:
    done = make_labels(
        plan_labels(load_benchmark(name), root, **options), threads=2, progress=False
    )
    return done.made, done.kept, done.failed


# ------------------------------------------------------------------------------------------ values


def test_coco_stuff_values_are_the_classes_names() -> None:
    names = load_benchmark("coco_stuff").names
    table = train_id_table("coco_stuff")
    for category, name in (KNOWN_IDS | KNOWN_STUFF).items():
        assert names[table[category - 1]] == name
    used = [table[i - 1] for i in [*COCO_IDS, *range(92, 183)]]
    assert used == list(range(171)) and table[255] == 255
    others = {*range(257)} - {i - 1 for i in COCO_IDS} - {*range(91, 182)} - {255}
    assert {table[value] for value in others} == {-1}


def test_coco_object_values_are_the_classes_names() -> None:
    names = load_benchmark("coco_object").names
    table = train_id_table("coco_object")
    assert names[0] == "background"
    for category, name in KNOWN_IDS.items():
        assert names[table[category - 1]] == name
    assert [table[i - 1] for i in COCO_IDS] == list(range(1, 81))
    # Stuff and what is not labelled is background: 255 is not kept.
    assert {table[value] for value in [*range(91, 182), 255]} == {0}
    assert {table[i - 1] for i in {*DROPPED, 91}} == {-1}


def test_cityscapes_values_are_the_classes_names() -> None:
    table = train_id_table("cityscapes")
    assert [table[CITYSCAPES_IDS[name]] for name in load_benchmark("cityscapes").names] == list(
        range(19)
    )
    ignored = {*range(34), 255} - {*CITYSCAPES_IDS.values()}
    assert {table[value] for value in ignored} == {255}
    assert {table[value] for value in range(34, 255)} == {-1}


@pytest.mark.parametrize("name", ["context", "context59"])
def test_context_values_are_the_classes_names(name: str) -> None:
    classes = [synonyms[0] for synonyms in load_benchmark(name).classes]
    assert [*pascal_context.CLASSES.values()] == classes
    table = train_id_table(name)
    assert [table[value] for value in pascal_context.CLASSES] == list(range(1, 60))
    assert {table[v] for v in range(460) if v not in pascal_context.CLASSES} == {0}
    assert table.shape == (461,) and table[460] == -1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint64])
def test_values_of_all_types(dtype: type) -> None:
    table = train_id_table("cityscapes")
    raw = np.array([[7, 33], [0, 255]], dtype)
    np.testing.assert_array_equal(replace_values(raw, table), [[0, 18], [255, 255]])
    raw[0, 0] = 34
    with pytest.raises(LabelError, match=r"value\(s\) 34, which"):
        replace_values(raw, table)
    if dtype != np.uint8:
        raw[0] = [300, np.iinfo(dtype).max]
        with pytest.raises(LabelError, match=f"300, {np.iinfo(dtype).max}"):
            replace_values(raw, table)
    if np.issubdtype(dtype, np.signedinteger):
        with pytest.raises(LabelError, match="-1"):
            replace_values(np.array([[-1]], dtype), table)


# ------------------------------------------------------------------------------- labels of pictures


def test_coco_labels(tmp_path: Path) -> None:
    write_png(tmp_path / "coco_stuff164k/annotations/train2017/1.png", [[181]])
    plan = plan_labels(load_benchmark("coco_stuff", split="train"), tmp_path)
    assert plan.expected == 118287 and make_labels(plan, threads=1, progress=False).made == 1
    assert read_png(plan.folder / "1_labelTrainIds.png").item() == 170
    raw = np.array([[0, 12, 89], [91, 181, 255]])
    folder = coco(tmp_path, {"000000000139": raw, "000000000285": raw[:, ::-1]})
    assert make("coco_stuff", tmp_path) == (2, 0, ())
    assert make("coco_object", tmp_path) == (2, 0, ())
    stuff = read_png(folder / "000000000139_labelTrainIds.png")
    np.testing.assert_array_equal(stuff, [[0, 11, 79], [80, 170, 255]])
    things = read_png(folder / "000000000285_instanceTrainIds.png")
    np.testing.assert_array_equal(things, [[80, 12, 1], [0, 0, 0]])
    # Made labels are no sources.
    assert plan_labels(load_benchmark("coco_stuff"), tmp_path).sources == {
        folder / f"{key}_labelTrainIds.png": folder / f"{key}.png"
        for key in ("000000000139", "000000000285")
    }
    assert {path.name for path in folder.iterdir()} == {
        f"{key}{ending}.png"
        for key in ("000000000139", "000000000285")
        for ending in ("", "_labelTrainIds", "_instanceTrainIds")
    }


def test_cityscapes_labels(tmp_path: Path) -> None:
    tmp_path = tmp_path / "of [all] data*"
    folder = tmp_path / "cityscapes/gtFine/val"
    raw = np.arange(34, dtype=np.uint8).reshape(2, 17)
    for city in ("ulm", "jena"):
        write_png(folder / city / f"{city}_000000_000019_gtFine_labelIds.png", raw)
        write_png(folder / city / f"{city}_000000_000019_gtFine_instanceIds.png", raw)
    write_png(folder / "ulm/._ulm_000000_000019_gtFine_labelIds.png", raw)
    assert make("cityscapes", tmp_path) == (2, 0, ())
    made = read_png(folder / "jena/jena_000000_000019_gtFine_labelTrainIds.png")
    classes = to_classes(made, load_benchmark("cityscapes"))
    expected = np.full(34, -1)
    expected[[*CITYSCAPES_IDS.values()]] = range(19)
    np.testing.assert_array_equal(classes.ravel(), expected)


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    folder = coco(tmp_path, {"a": [[1]], "b": [[2]], "c": [[3]], "d": [[4]]})
    labels = {key: folder / f"{key}_labelTrainIds.png" for key in "abcd"}
    assert make("coco_stuff", tmp_path) == (4, 0, ())
    for path in labels.values():
        os.utime(path, ns=(10**18, 10**18))
        os.utime(folder / path.name.replace("_labelTrainIds", ""), ns=(10**18, 10**18))
    assert make("coco_stuff", tmp_path) == (0, 4, ())
    labels["b"].write_bytes(b"")  # by some other program that was stopped
    os.utime(folder / "c.png", ns=(10**18 + 1, 10**18 + 1))
    labels["d"].unlink()
    assert make("coco_stuff", tmp_path) == (3, 1, ())
    assert labels["a"].stat().st_mtime_ns == 10**18
    assert [read_png(path).item() for path in labels.values()] == [1, 2, 3, 4]


def test_bad_sources_are_named_and_the_rest_is_done(tmp_path: Path) -> None:
    folder = coco(tmp_path, {"good": [[1]], "odd": [[11, 11], [90, 1]], "cut": np.eye(200) * 3})
    whole = (folder / "cut.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    Image.new("RGB", (2, 2)).save(folder / "colours.png")
    made, kept, failed = make("coco_stuff", tmp_path)
    assert (made, kept) == (1, 0)
    expected = {"colours": "3 channels", "cut": "truncated", "empty": "empty", "odd": "11, 90,"}
    assert len(failed) == len(expected)
    for message, (name, why) in zip(failed, expected.items(), strict=True):
        assert message.startswith(f"{folder / name}.png: ") and why in message
    assert sorted(path.name for path in folder.glob("*TrainIds*")) == ["good_labelTrainIds.png"]


def test_what_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    folder = coco(tmp_path, {"a": [[1]]})
    (folder / "a_labelTrainIds.png").mkdir()
    os.utime(folder / "a.png", ns=(4 * 10**18, 4 * 10**18))
    with pytest.raises(
        RunError, match=r"a_labelTrainIds\.png cannot be written: .*run the command"
    ):
        make("coco_stuff", tmp_path)
    assert not [*folder.glob(".*")]


def test_missing_folders_are_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"val2017/, but this folder.*stuffthingmaps_trainval2017"):
        make("coco_object", tmp_path)
    (tmp_path / "cityscapes/gtFine/val").mkdir(parents=True)
    with pytest.raises(InputError, match=r"labelIds\.png in .*but there are none.*gtFine_trainval"):
        make("cityscapes", tmp_path)
    with pytest.raises(
        InputError, match=r"VOC2010/trainval or .*VOC2010/Context.*trainval\.tar\.gz"
    ):
        make("context", tmp_path)
