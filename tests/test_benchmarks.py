"""`python -m tcl_jax.benchmarks` as a user meets it."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

import tcl_jax.evaluation.benchmark
from tcl_jax import benchmarks
from tcl_jax.errors import InputError, RunError
from tcl_jax.evaluation.benchmark import BENCHMARKS, Benchmark, load_benchmark

ROOT = Path(__file__).parent.parent
COCO = "coco_stuff164k/annotations/val2017"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Built-in benchmarks of three images a split."""

    def load(name: str, *, split: str | None = None) -> Benchmark:
        benchmark = load_benchmark(name, split=split)
        return dataclasses.replace(benchmark, splits=dict.fromkeys(benchmark.splits, 3))

    monkeypatch.setattr(tcl_jax.evaluation.benchmark, "load_benchmark", load)


def labels(folder: Path, *names: str, value: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(np.full((4, 6), value, np.uint8)).save(folder / f"{name}.png")
    return folder


def images(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (6, 4)).save(folder / f"{name}.jpg")
    return folder


def joined(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, with wrapped lines joined again."""
    return re.sub(r"\n {13}", " ", capsys.readouterr().out)


# ----------------------------------------------------------------------------------------- prepare


@pytest.mark.usefixtures("few")
def test_prepare_and_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = labels(tmp_path / COCO, "1", "2", "3")
    images(tmp_path / "coco_stuff164k/images/val2017", "1", "2", "3")
    data = f"--data={tmp_path}"
    with pytest.raises(RunError, match="2 of 2 are incomplete"):
        benchmarks.run(["check", data, "coco_object", "coco_stuff"])
    out = joined(capsys)
    for name in ("coco_object", "coco_stuff"):
        command = f"python -m tcl_jax.benchmarks prepare {name} {data}"
        assert re.search(rf"^{name} +incomplete: ", out, re.MULTILINE)
        assert re.search(rf"^  to do +{re.escape(command)}$", out, re.MULTILINE)
    assert "  labels     0 of 3, none is named " in out and "  images     3 of 3\n" in out

    benchmarks.run(["prepare", data, "coco_object", "voc", "coco_stuff", "coco_object"])
    assert joined(capsys).splitlines() == [
        "voc val: nothing to prepare, its labels are published",
        f"coco_object val: 3 of 3 labels are there, in {folder}",
        f"coco_stuff val: 3 of 3 labels are there, in {folder}",
    ]
    (folder / "2_labelTrainIds.png").unlink()
    benchmarks.run(["prepare", data, "coco_stuff", "--threads=1"])
    assert f"3 of 3 labels are there, 2 of them before, in {folder}" in joined(capsys)

    benchmarks.run(["check", data, "coco_object", "coco_stuff", "--deep"])
    lines = joined(capsys).splitlines()
    assert lines[:3] == [
        "coco_object  complete: COCO-Object, val",
        "  images     3 of 3",
        "  labels     3 of 3",
    ]
    assert (
        "without a labelled pixel: they are 2 (100.0 %): all that counts is 'bicycle'" in lines[3]
    )
    assert lines[6:9] == [
        "coco_stuff   complete: COCO-Stuff 164k, val",
        "  images     3 of 3",
        "  labels     3 of 3",
    ]


@pytest.mark.usefixtures("few")
def test_what_prepare_cannot_make(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = labels(tmp_path / COCO, "1", "2")
    with pytest.raises(RunError, match="coco_stuff val: 2 sources are there, and 3 should be"):
        benchmarks.run(["prepare", f"--data={tmp_path}", "coco_stuff"])
    assert "2 of 3 labels are there" in joined(capsys)
    labels(folder, *map(str, range(3, 63)), value=90)
    with pytest.raises(RunError, match="60 could not be made, the first 50 are above"):
        benchmarks.run(["prepare", f"--data={tmp_path}", "coco_stuff"])
    heard = capsys.readouterr()
    assert "2 of 3 labels are there, 2 of them before" in heard.out
    assert heard.err.count(f"failed: {folder}/") == 50 and "it has the value(s) 90" in heard.err


@pytest.mark.usefixtures("few")
def test_prepare_context(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tcl_jax.evaluation.pascal_context.IMAGES, "val", 4)
    home = tmp_path / "VOCdevkit/VOC2010"
    keys = [f"2008_00000{i}" for i in range(4)]
    images(home / "JPEGImages", *keys, "2008_000009")
    for folder in ("trainval", "ImageSets/Main"):
        (home / folder).mkdir(parents=True)
    for key in keys:
        scipy.io.savemat(home / f"trainval/{key}.mat", {"LabelMap": np.full((4, 6), 2, np.uint16)})
    (home / "ImageSets/Main/val.txt").write_text("\n".join(keys))
    data = f"--data={tmp_path}"
    with pytest.raises(RunError):
        benchmarks.run(["check", data, "context"])
    out = joined(capsys)
    assert "  images     5, of which 3 are used" in out and "  list       missing /" in out
    assert f"  to do      python -m tcl_jax.benchmarks prepare context {data}" in out
    benchmarks.run(["prepare", data, "context", "context59"])
    listed = home / "ImageSets/SegmentationContext/val.txt"
    assert joined(capsys).splitlines() == [
        "context59 val: has the same labels as the other",
        f"context val: 4 of 4 labels are there, in {home}/SegmentationClassContext",
        f"the list {listed} is that of PASCAL VOC 2010 with 4 images; mmsegmentation's, made of "
        "trainval_merged.json, has 3: if you have it, put it there",
    ]
    benchmarks.run(["check", data, "context", "context59", "--deep"])
    out = joined(capsys)
    assert out.count("complete: ") == 2 and out.count("images     4 of 4") == 2
    assert f"{listed} has 4 images where 3 are usual" in out
    # Labels that are there need no sources.
    for path in (home / "trainval").iterdir():
        path.unlink()
    benchmarks.run(["prepare", data, "context"])
    assert joined(capsys) == "context val: nothing to prepare, all labels are there\n"


@pytest.mark.usefixtures("few")
def test_all_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("val", "train"):
        city = tmp_path / f"cityscapes/gtFine/{split}/ulm"
        labels(city, *(f"ulm_00000{i}_000019_gtFine_labelIds" for i in range(3)), value=7)
    benchmarks.run(["prepare", f"--data={tmp_path}", "cityscapes", "--split=all"])
    out = joined(capsys)
    assert "cityscapes val: 3 of 3" in out and "cityscapes train: 3 of 3" in out
    path = own(tmp_path, "folders = {val = 'one', train = 'two'}\n")
    assert [each.split for each in benchmarks.load([str(path)], "all")] == ["val", "train"]
    assert [each.split for each in benchmarks.load([str(own(tmp_path))], "all")] == ["val"]
    with pytest.raises(RunError):
        benchmarks.run(["check", f"--data={tmp_path}", "cityscapes", "--split=train"])
    out = joined(capsys)
    assert out.startswith("cityscapes   incomplete: Cityscapes, train\n")
    assert f"none, the folder {tmp_path}/cityscapes/leftImg8bit/train does not exist" in out
    assert "  labels     3 of 3\n" in out and "leftImg8bit_trainvaltest.zip" in out
    assert "stray" not in out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["prepare", "vox"], "'vox' is not known; choose one of voc, context"),
        (["check", "my.toml"], r"'my\.toml' cannot be read"),
        (["prepare", "voc", "--split=test"], "no split 'test'"),
        (["prepare", "coco_stuff", "--threads=0"], "--threads=0 must be"),
        (["prepare", "coco_stuff", "--data=nowhere"], "nowhere/coco_stuff164k/annotations/val2017"),
        (["prepare", "coco_stuff", "cityscapes"], "labels of cityscapes"),
        (["prepare", "context", "--mat=nowhere"], r"\.mat files, but there are none in nowhere"),
    ],
)
def test_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = labels(tmp_path / "data" / COCO, "1")
    with pytest.raises(InputError, match=why):
        benchmarks.run(arguments)
    assert len([*folder.iterdir()]) == 1  # nothing is begun while a later one cannot be


def test_interrupted_and_gone_on(tmp_path: Path) -> None:
    folder = tmp_path / COCO
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    noise = Image.fromarray(rng.integers(0, 11, (400, 600), dtype=np.uint8))
    noise.save(folder / "0.png", compress_level=1)
    for i in range(1, 150):
        (folder / f"{i}.png").write_bytes((folder / "0.png").read_bytes())
    command = [sys.executable, "-m", "tcl_jax.benchmarks", "prepare", "coco_object"]
    command += [f"--data={tmp_path}", "--threads=2"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    deadline = time.monotonic() + 60
    while not [*folder.glob("*TrainIds.png")] and time.monotonic() < deadline:
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    made = [*folder.glob("*TrainIds.png")]
    assert run.returncode == 130 and 0 < len(made) < 150, err
    assert "coco_object val: the same command goes on from here" in err and "Traceback" not in err
    assert len([*os.scandir(folder)]) == 150 + len(made)  # nothing half-written
    for path in made:
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(noise) + 1)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1  # 150 are not 5000
    assert f"150 of 5000 labels are there, {len(made)} of them before" in done.stdout
    assert re.search(r"label/s", done.stderr) and "150 sources are there" in done.stderr


# ------------------------------------------------------------------------------------------- check


def test_check_of_nothing_says_where_all_should_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RunError, match="8 of 8 are incomplete"):
        benchmarks.run(["check", f"--data={tmp_path}"])
    out = capsys.readouterr().out
    assert max(map(len, out.replace(str(tmp_path), "").splitlines())) <= 100
    blocks = re.sub(r"\n {13}", " ", out).split("\n\n")
    assert len(blocks) == 8
    for name, block in zip(BENCHMARKS, blocks, strict=True):
        assert block.startswith(f"{name:<13}incomplete: {load_benchmark(name).title}, val\n")
        assert block.count(f"none, the folder {tmp_path}/") == 2
        assert load_benchmark(name).hint in block
    assert f"missing {tmp_path}/VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt" in blocks[0]
    assert "trainval.tar.gz of https://cs.stanford.edu/~roozbeh/pascal-context/" in blocks[1]


def own(folder: Path, text: str = "") -> Path:
    path = folder / "my.toml"
    path.write_text(
        f"images = 'photos'\nlabels = 'masks/{{key}}_mask.png'\nclasses = ['a', 'b']\n{text}"
    )
    return path


def test_check_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = own(tmp_path, "hint = 'Ask Ann.'\nsplits = {val = 3}\n")
    images(tmp_path / "photos", "1", "2", "3")
    labels(tmp_path / "masks", "1_mask", "3_mask", "4_mask")
    with pytest.raises(RunError, match="1 of 1 are incomplete"):
        benchmarks.run(["check", str(path)])
    out = joined(capsys)
    assert out.startswith("my           incomplete: my, val\n  images     3 of 3\n")
    assert f"  labels     2 of 3, missing {tmp_path}/masks/2_mask.png\n" in out
    assert f"{tmp_path}/masks/4_mask.png" in out and "label without image: there is no 4" in out
    assert out.endswith("  to do      Ask Ann.\n")

    labels(tmp_path / "masks", "2_mask")
    benchmarks.run(["check", str(path)])
    assert joined(capsys).startswith("my           complete: my, val\n")
    labels(tmp_path / "masks", "2_mask", value=2)
    benchmarks.run(["check", str(path)])
    with pytest.raises(RunError):
        benchmarks.run(["check", str(path), "--deep"])
    out = capsys.readouterr().out
    assert "my           incomplete" in out and "wrong label values" in out
    assert f"{tmp_path}/masks/2_mask.png" in out


def test_check_without_known_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images(tmp_path / "photos", "1", "2")
    labels(tmp_path / "masks", "1_mask", "2_mask")
    benchmarks.run(["check", str(own(tmp_path))])
    assert joined(capsys) == "my           complete: my, val\n  images     2\n  labels     2\n"
    (tmp_path / "list.txt").write_text("2\n")
    benchmarks.run(["check", str(own(tmp_path, "list = 'list.txt'"))])
    assert joined(capsys).splitlines()[1:] == [
        "  images     1 of 1", "  labels     1 of 1", f"  list       {tmp_path}/list.txt",
    ]  # fmt: skip
    benchmarks.run(["prepare", str(own(tmp_path))])
    assert "my val: nothing to prepare" in joined(capsys)


def test_help_is_quick_and_needs_no_jax() -> None:
    code = (
        "import sys; from tcl_jax import benchmarks; benchmarks.parser(); "
        "print(sorted({'jax', 'numpy', 'PIL'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr
