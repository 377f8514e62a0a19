"""PASCAL-Context's labels: .mat files good and bad, the list of images, the names of classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from tcl_jax.errors import InputError, RunError
from tcl_jax.evaluation import pascal_context
from tcl_jax.evaluation.benchmark import load_benchmark
from tcl_jax.evaluation.labels import LabelError
from tcl_jax.evaluation.prepare import find_sources, make_labels


def make(root: Path, name: str = "context") -> int:
    """How many labels were made."""
    benchmark = load_benchmark(name)
    return make_labels(benchmark, find_sources(benchmark, root))


def mat(path: Path, values: object, *, compressed: bool = True, name: str = "LabelMap") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {name: values}, do_compression=compressed)
    return path


def context(root: Path, values: Mapping[str, object], folder: str = "trainval") -> Path:
    home = root / "VOCdevkit/VOC2010"
    for key, value in values.items():
        mat(home / folder / f"{key}.mat", value)
    lists = home / "ImageSets/SegmentationContext"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / "val.txt").write_text("".join(f"{key}\n" for key in values))
    return home


@pytest.mark.parametrize("folder", ["trainval", "Context"])
def test_context_labels(tmp_path: Path, folder: str) -> None:
    raw = np.array([[2, 9, 458], [459, 431, 0]], np.uint16)
    home = context(tmp_path, {"2008_000001": raw, "2010_000002": raw.T}, folder)
    mat(home / folder / "2009_000003.mat", raw)  # of another split
    assert make(tmp_path) == 2
    labels = home / "SegmentationClassContext"
    with Image.open(labels / "2008_000001.png") as made:
        assert made.mode == "L" and made.format == "PNG"
        np.testing.assert_array_equal(made, [[1, 2, 59], [0, 0, 0]])
    assert len([*labels.iterdir()]) == 2
    assert make(tmp_path, "context59") == 0


@pytest.mark.parametrize("dtype", ["u1", "u2", "i8", "f8"])
def test_label_maps_of_all_types(tmp_path: Path, dtype: str) -> None:
    whole = np.arange(256).reshape(16, 16).astype(dtype)
    for compressed in (True, False):
        read = pascal_context.read_label_map(mat(tmp_path / "a.mat", whole, compressed=compressed))
        np.testing.assert_array_equal(read, whole)
        assert read.dtype == np.int64


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((2, 2, 2), np.uint16),
        np.array([[1.5]]),
        np.array([[np.nan]]),
        {"a": 1},
    ],
)
def test_mat_of_other_things(tmp_path: Path, values: object) -> None:
    with pytest.raises(LabelError, match="LabelMap"):
        pascal_context.read_label_map(mat(tmp_path / "a.mat", values))
    with pytest.raises(LabelError, match="LabelMap"):
        pascal_context.read_label_map(mat(tmp_path / "a.mat", values, name="Other"))


def test_damaged_mat_files(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 460, (300, 300)).astype(np.uint16)
    path = mat(tmp_path / "a.mat", values)
    whole = path.read_bytes()
    damaged = [whole[:size] for size in (0, 140, len(whole) - 1)]
    damaged += [whole[:4096] + bytes(64) + whole[4160:]]  # it has a checksum
    damaged += [whole[:124] + b"\x00\x02IM" + whole[128:]]  # as MATLAB 7.3 begins
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(LabelError):
            pascal_context.read_label_map(path)


def test_missing_and_wrong_mat_files(tmp_path: Path) -> None:
    values = {"2008_000001": np.array([[460]], np.uint16), "2008_000002": np.array([[2]])}
    home = context(tmp_path, values)
    with (home / "ImageSets/SegmentationContext/val.txt").open("a") as file:
        file.write("2008_000003\n")
    with pytest.raises(RunError, match="2 of 3 labels could not be made") as caught:
        make(tmp_path)
    assert "000001.mat: it has the value(s) 460" in str(caught.value)
    assert "000003.mat: " in str(caught.value) and "No such file" in str(caught.value)


def voc_list(home: Path, count: int) -> Path:
    path = home / "ImageSets/Main/val.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"2008_{i:06}\n" for i in range(count)))
    return path


def test_a_missing_list_is_that_of_voc_2010(tmp_path: Path) -> None:
    home = context(tmp_path, {"2008_000000": np.array([[2]], np.uint16)})
    listed = home / "ImageSets/SegmentationContext/val.txt"
    listed.unlink()
    for count, found in ((None, "has 0"), (5823, "has 5823")):  # VOC 2012's list
        if count is not None:
            voc_list(home, count)
        with pytest.raises(InputError, match=rf"Main/val\.txt with the 5105 .* {found}"):
            make(tmp_path)
    assert not listed.exists()
    voc_list(home, 5105)
    with pytest.raises(RunError, match="5104 of 5105"):
        make(tmp_path)
    assert listed.read_text() == (home / "ImageSets/Main/val.txt").read_text()


def test_a_list_that_is_there_is_kept(tmp_path: Path) -> None:
    home = context(tmp_path, {"2008_000001": np.array([[2]]), "2008_000002": np.array([[2]])})
    listed = home / "ImageSets/SegmentationContext/val.txt"
    voc_list(home, 5105)
    listed.write_text("\ufeff2008_000002\r\n\r\n2008_000002\r\n", encoding="utf-8")
    before = listed.read_bytes()
    assert make(tmp_path) == 1
    assert listed.read_bytes() == before
    assert [p.name for p in (home / "SegmentationClassContext").iterdir()] == ["2008_000002.png"]
