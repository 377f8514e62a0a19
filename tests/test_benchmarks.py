"""`python -m tcl_jax.benchmarks` as a user meets it."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
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


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command and gives what it printed, with wrapped lines joined again."""

    def run(*arguments: object, error: str | None = None) -> str:
        if error is None:
            benchmarks.run([str(argument) for argument in arguments])
        else:
            with pytest.raises(RunError, match=error):
                benchmarks.run([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return run


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


# ----------------------------------------------------------------------------------------- prepare


@pytest.mark.usefixtures("few")
def test_prepare_and_check(tmp_path: Path, said: Callable[..., str]) -> None:
    folder = labels(tmp_path / COCO, "1", "2", "3")
    images(tmp_path / "coco_stuff164k/images/val2017", "1", "2", "3")
    data, both = f"--data={tmp_path}", ("coco_object", "coco_stuff")
    out = said("check", data, *both, error="2 of 2 are incomplete")
    for name in both:
        command = f"`python -m tcl_jax.benchmarks prepare {name}`"
        assert re.search(rf"^{name} +incomplete: ", out, re.MULTILINE)
        assert re.search(rf"^  to do .*{re.escape(command)}", out, re.MULTILINE)
    assert "  images     3 of 3\n  labels     0 of 3\n  missing label, 3 times" in out

    assert said("prepare", data, "coco_object", "voc", "coco_stuff").splitlines() == [
        "coco_object val: 3 labels are there, of which 3 were made now",
        "voc val: nothing to prepare, its labels are published",
        "coco_stuff val: 3 labels are there, of which 3 were made now",
    ]
    (folder / "2_labelTrainIds.png").unlink()
    out = said("prepare", data, "coco_stuff")
    assert "3 labels are there, of which 1 were made now" in out

    counts = ["  images     3 of 3", "  labels     3 of 3"]
    assert said("check", data, *both, "--deep").splitlines() == [
        "coco_object complete: COCO-Object, val", *counts, "",
        "coco_stuff complete: COCO-Stuff 164k, val", *counts,
    ]  # fmt: skip


def test_what_prepare_cannot_make(tmp_path: Path, said: Callable[..., str]) -> None:
    labels(tmp_path / COCO, "1", "2", value=90)
    city = tmp_path / "cityscapes/gtFine/val/ulm"
    labels(city, "ulm_000000_000019_gtFine_labelIds", value=7)
    names = ("coco_stuff", "cityscapes")
    out = said("prepare", f"--data={tmp_path}", *names, error=r"coco_stuff val: 2 of 2 .*1\.png")
    assert "cityscapes val: 1 labels are there" in out


@pytest.mark.usefixtures("few")
def test_another_split(tmp_path: Path, said: Callable[..., str]) -> None:
    city = tmp_path / "cityscapes/gtFine/train/ulm"
    labels(city, *(f"ulm_00000{i}_000019_gtFine_labelIds" for i in range(3)), value=7)
    out = said("prepare", f"--data={tmp_path}", "cityscapes", "--split=train")
    assert "cityscapes train: 3 labels" in out
    flags = ("cityscapes", "--split=train")
    out = said("check", f"--data={tmp_path}", *flags, error="incomplete")
    assert out.startswith("cityscapes incomplete: Cityscapes, train\n")
    assert f"missing folder (cannot be scored)\n    {tmp_path}/cityscapes/leftImg8bit/train" in out
    assert "  labels     3 of 3\n" in out and "leftImg8bit_trainvaltest.zip" in out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["prepare", "vox"], "'vox' is not known; choose one of voc, context"),
        (["check", "my.toml"], r"my\.toml' is not a TOML file that can"),
        (["prepare", "voc", "--split=test"], "no split 'test'"),
        (["prepare", "coco_stuff", "--data=nowhere"], "nowhere/coco_stuff164k/annotations/val2017"),
        (["prepare", "coco_stuff", "cityscapes"], "labels of cityscapes"),
        (["prepare", "context"], r"\.mat files, but there are none in .*VOC2010/trainval"),
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
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 11, (400, 600), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "0.png", compress_level=1)
    for i in range(1, 100):
        (folder / f"{i}.png").write_bytes((folder / "0.png").read_bytes())
    command = [sys.executable, "-m", "tcl_jax.benchmarks", "prepare", "coco_object"]
    command += [f"--data={tmp_path}"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    deadline = time.monotonic() + 60
    while not [*folder.glob("*TrainIds.png")] and time.monotonic() < deadline:
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    made = [*folder.glob("*TrainIds.png")]
    assert run.returncode == 130 and 0 < len(made) < 100, err
    assert "interrupted" in err and "Traceback" not in err
    assert len([*os.scandir(folder)]) == 100 + len(made)  # nothing half-written
    for path in made:
        np.testing.assert_array_equal(np.asarray(Image.open(path)), noise + 1)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "label/s" in done.stderr
    assert f"100 labels are there, of which {100 - len(made)} were made now" in done.stdout


# ------------------------------------------------------------------------------------------- check


def test_check_of_nothing_says_where_all_should_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RunError, match=f"{len(BENCHMARKS)} of {len(BENCHMARKS)} are incomplete"):
        benchmarks.run(["check", f"--data={tmp_path}"])
    out = capsys.readouterr().out
    blocks = out.split("\n\n")
    for name, block in zip(BENCHMARKS, blocks, strict=True):
        assert block.startswith(f"{name} incomplete: {load_benchmark(name).title}, val\n")
        assert "missing folder, 2 times (cannot be scored)" in block
        assert block.count(f"    {tmp_path}/") >= 2 and block.count(load_benchmark(name).hint) == 1
    assert f"    {tmp_path}/VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt" in blocks[0]
    assert "trainval.tar.gz of https://cs.stanford.edu/~roozbeh/pascal-context/" in blocks[1]


def own(folder: Path, text: str = "") -> Path:
    path = folder / "my.toml"
    path.write_text(
        f"images = 'photos'\nlabels = 'masks/{{key}}_mask.png'\nclasses = ['a', 'b']\n{text}"
    )
    return path


def test_check_of_ones_own(tmp_path: Path, said: Callable[..., str]) -> None:
    path = own(tmp_path, "hint = 'Ask Ann.'\nsplits = {val = 3}\n")
    images(tmp_path / "photos", "1", "2", "3")
    labels(tmp_path / "masks", "1_mask", "3_mask", "4_mask")
    out = said("check", path, error="1 of 1 are incomplete")
    assert out.startswith("my incomplete: my, val\n  images     3 of 3\n")
    assert "  labels     2 of 3\n  missing label" in out and f"{tmp_path}/masks/2_mask.png" in out
    assert f"{tmp_path}/masks/4_mask.png" in out and "label without image" in out
    assert out.endswith("  to do      Ask Ann.\n")
    labels(tmp_path / "masks", "2_mask", value=2)
    assert said("check", path).startswith("my complete: my, val\n")
    out = said("check", path, "--deep", error="incomplete")
    assert "my incomplete" in out and "wrong label values" in out
    assert f"{tmp_path}/masks/2_mask.png" in out

    (tmp_path / "masks/4_mask.png").unlink()
    out = said("check", own(tmp_path))  # of which no numbers are known
    assert out == "my complete: my, val\n  images     3\n  labels     3\n"
    (tmp_path / "list.txt").write_text("2\n")
    assert said("check", own(tmp_path, "list = 'list.txt'")).splitlines()[1:] == [
        "  images     1 of 1", "  labels     1 of 1",
    ]  # fmt: skip
    assert "my val: nothing to prepare" in said("prepare", path)


def test_help_is_quick_and_needs_no_jax() -> None:
    code = (
        "import sys; from tcl_jax import benchmarks; benchmarks.parser(); "
        "print(sorted({'jax', 'numpy', 'PIL'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr
