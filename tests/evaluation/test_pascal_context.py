"""PASCAL-Context's labels: .mat files good and bad, the list of images, the names of classes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from tcl_jax.errors import InputError
from tcl_jax.evaluation import pascal_context
from tcl_jax.evaluation.benchmark import load_benchmark
from tcl_jax.evaluation.labels import LabelError
from tcl_jax.evaluation.mat_file import read_matrix
from tcl_jax.evaluation.prepare import make_labels, plan_labels


def make(root: Path, name: str = "context", mat: Path | None = None) -> tuple[int, int, int]:
    """How many labels are made, kept and failed."""
    plan = plan_labels(load_benchmark(name), root, mat=mat)
    done = make_labels(plan, threads=2, progress=False)
    return done.made, done.kept, len(done.failed)


def read_png(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "L" and image.format == "PNG"
        return np.asarray(image)


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
    assert make(tmp_path) == (2, 0, 0)
    labels = home / "SegmentationClassContext"
    np.testing.assert_array_equal(read_png(labels / "2008_000001.png"), [[1, 2, 59], [0, 0, 0]])
    assert len([*labels.iterdir()]) == 2
    assert make(tmp_path, "context59") == (0, 2, 0)


def test_mat_files_may_be_elsewhere(tmp_path: Path) -> None:
    home = context(tmp_path, {"2008_000001": np.array([[2]], np.uint16)}, "../../other")
    with pytest.raises(InputError, match="--mat=DIR"):
        make(tmp_path)
    assert make(tmp_path, mat=home / "../../other") == (1, 0, 0)


DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_matrices_that_scipy_wrote(tmp_path: Path, dtype: str, compressed: bool) -> None:
    # Of few numbers and of short names, which are stored within their tags, and of more.
    for shape, name in (((1, 1), "a"), ((1, 3), "abcd"), ((7, 5), "LabelMap"), ((30, 1), "b" * 31)):
        values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
        file = {"first": np.eye(3), name: values, "cells": np.array([1, "x"], object)}
        scipy.io.savemat(tmp_path / "a.mat", file, do_compression=compressed)
        read = read_matrix(tmp_path / "a.mat", name, max_size=35)
        np.testing.assert_array_equal(read, values)
        with pytest.raises(LabelError, match=f"no variable c, but first, {name}, cells"):
            read_matrix(tmp_path / "a.mat", "c", max_size=35)


def element(kind: int, data: bytes) -> bytes:
    """An element in the other byte order."""
    return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)


def test_other_byte_order_and_smaller_storage(tmp_path: Path) -> None:
    # A double matrix as old Macs wrote it: entries that are small are stored as uint16.
    matrix = (
        element(6, struct.pack(">II", 6, 0))
        + element(5, struct.pack(">ii", 2, 3))
        + element(1, b"LabelMap")
        + element(4, np.array([1, 2, 3, 4, 458, 459], ">u2").tobytes())
    )
    header = b"MATLAB 5.0".ljust(124) + b"\x01\x00MI"
    path = tmp_path / "a.mat"
    path.write_bytes(header + element(14, matrix))
    expected = [[1, 3, 458], [2, 4, 459]]
    np.testing.assert_array_equal(pascal_context.read_label_map(path), expected)
    np.testing.assert_array_equal(scipy.io.loadmat(path)["LabelMap"], expected)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (np.zeros((2, 2, 2), np.uint16), r"size \[2, 2, 2\]"),
        (np.zeros((0, 3), np.uint16), r"\[0, 3\]"),
        (np.zeros((1 << 13, 1 << 12), np.uint8), r"size \[8192, 4096\]"),
        (np.array([[1.5]]), "not whole numbers"),
        (np.array([[np.nan]]), "not whole numbers"),
        (np.array([[np.inf]]), "not whole numbers"),
        (np.array([[-1.0]]), "not whole numbers"),
        (np.array([[1 + 2j]]), "is complex"),
        ("text", "is text"),
        ({"a": 1}, "is a struct"),
        (np.array([[1, "a"]], object), "is a cell array"),
        (np.array([[True]]), "is logical"),
    ],
)
def test_mat_of_other_things(tmp_path: Path, values: object, why: str) -> None:
    with pytest.raises(LabelError, match=why):
        pascal_context.read_label_map(mat(tmp_path / "a.mat", values))


def test_hostile_mat_files(tmp_path: Path) -> None:
    path = mat(tmp_path / "a.mat", np.zeros((200, 200), np.uint16), compressed=False)
    whole = path.read_bytes()

    def refused(data: bytes) -> str:
        path.write_bytes(data)
        with pytest.raises(LabelError) as caught:
            pascal_context.read_label_map(path)
        return str(caught.value)

    for size in (0, 1, 127, 128, 130, 140, 200, len(whole) // 2, len(whole) - 1):
        assert refused(whole[:size])
    assert "not a MATLAB 5 file" in refused(b"\x89PNG\r\n\x1a\n" * 100)
    scipy.io.savemat(path, {"LabelMap": np.zeros((5, 7))}, format="4")
    assert "MATLAB 4 file" in refused(path.read_bytes())
    hdf = bytearray(whole)
    hdf[124:128] = b"\x00\x02IM"  # what -v7.3 writes
    assert "MATLAB 7.3" in refused(bytes(hdf))
    # A header of four billion entries, and streams of more and of fewer bytes than they should.
    at = whole.index(struct.pack("<II", 200, 200))
    large = struct.pack("<II", 1 << 16, 1 << 16)
    assert "size [65536, 65536]" in refused(whole[:at] + large + whole[at + 8 :])
    packer = zlib.compressobj(9)
    zeros = b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()
    assert "inflates to more" in refused(whole[:128] + struct.pack("<II", 15, len(zeros)) + zeros)
    assert "damaged" in refused(whole[:128] + struct.pack("<II", 15, 100) + bytes(100))
    cut = zlib.compress(whole[128:])[:-5]
    assert "cut short" in refused(whole[:128] + struct.pack("<II", 15, len(cut)) + cut)
    short = struct.pack("<I", 5 << 16 | 1) + b"abcd"
    assert "a short element is too long" in refused(whole[:128] + short)
    path.unlink()
    with pytest.raises(LabelError, match="No such file"):
        pascal_context.read_label_map(path)


def test_any_damage_is_a_label_error(tmp_path: Path) -> None:
    """SciPy's own reader crashes on some of these."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 460, (9, 9)).astype(np.uint16)
    path = mat(tmp_path / "a.mat", values, compressed=False)
    whole = path.read_bytes()
    refused = 0
    for _ in range(1000):
        data = bytearray(whole)
        for position in rng.integers(124, 200, 3):
            data[position] = rng.integers(256)
        path.write_bytes(data)
        try:
            read = pascal_context.read_label_map(path)
        except LabelError:
            refused += 1
        else:
            assert read.ndim == 2 and np.issubdtype(read.dtype, np.integer)
    assert 500 < refused < 1000


def test_missing_and_wrong_mat_files(tmp_path: Path) -> None:
    values = {"2008_000001": np.array([[460]], np.uint16), "2008_000002": np.array([[2]])}
    home = context(tmp_path, values)
    with (home / "ImageSets/SegmentationContext/val.txt").open("a") as file:
        file.write("2008_000003\n")
    plan = plan_labels(load_benchmark("context"), tmp_path)
    done = make_labels(plan, threads=2, progress=False)
    assert (done.made, done.kept, len(done.failed)) == (1, 0, 2)
    assert "000001.mat: it has the value(s) 460" in done.failed[0]
    assert "000003.mat: it cannot be read: No such file" in done.failed[1]


def test_names_of_the_values_are_compared(tmp_path: Path) -> None:
    home = context(tmp_path, {"2008_000001": np.array([[2]], np.uint16)})
    lines = [f"{i}: {pascal_context.CLASSES.get(i, f'other {i}')}" for i in range(1, 460)]
    lines[307] = "308: potted plant"  # spaces and upper case do not count
    (home / "labels.txt").write_text("\n".join(lines))
    assert make(tmp_path) == (1, 0, 0)
    lines[1], lines[2] = "2: air conditioner", "3: aeroplane"
    (home / "trainval/labels.txt").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"labels\.txt calls the value 2 'airconditioner' where"):
        make(tmp_path)


def voc_list(home: Path, count: int) -> Path:
    path = home / "ImageSets/Main/val.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"2008_{i:06}\n" for i in range(count)))
    return path


def test_a_missing_list_is_that_of_voc_2010(tmp_path: Path) -> None:
    home = context(tmp_path, {"2008_000000": np.array([[2]], np.uint16)})
    listed = home / "ImageSets/SegmentationContext/val.txt"
    listed.unlink()
    with pytest.raises(InputError, match=r"Main/val\.txt, of which it can be made.*03-May-2010"):
        make(tmp_path)
    voc_list(home, 5823)  # VOC 2012
    with pytest.raises(InputError, match="has 5823 images, but that of PASCAL VOC 2010 has 5105"):
        make(tmp_path)
    assert not listed.exists()
    voc_list(home, 5105)
    plan = plan_labels(load_benchmark("context"), tmp_path)
    assert plan.expected == 5105 and not listed.exists()
    done = make_labels(plan, threads=2, progress=False)
    assert done.made == 1 and len(done.failed) == 5104
    assert listed.read_text() == (home / "ImageSets/Main/val.txt").read_text()


def test_a_list_that_is_there_is_kept(tmp_path: Path) -> None:
    home = context(tmp_path, {"2008_000001": np.array([[2]]), "2008_000002": np.array([[2]])})
    listed = home / "ImageSets/SegmentationContext/val.txt"
    voc_list(home, 5105)
    listed.write_text("\ufeff2008_000002\r\n\r\n2008_000002\r\n", encoding="utf-8")
    before = listed.read_bytes()
    assert make(tmp_path) == (1, 0, 0)
    assert listed.read_bytes() == before
    assert [p.name for p in (home / "SegmentationClassContext").iterdir()] == ["2008_000002.png"]
    for text, why in (("", "no line"), ("../../x\n", "the line '../../x'"), ("a b\n", "'a b'")):
        listed.write_text(text)
        with pytest.raises(InputError, match=why):
            make(tmp_path)
