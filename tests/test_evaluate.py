"""`python -m tcl_jax.evaluate` as its users meet it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tcl_jax.errors import InputError
from tcl_jax.evaluate import find_benchmarks, parser, run
from tcl_jax.shapes.source import ShapesSource, class_names
from tests.devices import free_port
from tests.reference import GOLDEN

CLIP = "--clip=builtin:shapes_clip"
DATA = GOLDEN / "eval" / "data"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark of one's own: drawn scenes, their labels and the names of the classes."""
    folder = tmp_path_factory.mktemp("scenes")
    for name in ("images", "labels"):
        (folder / name).mkdir()
    source = ShapesSource("test", num_examples=12, image_size=64)
    for i in range(len(source)):
        Image.fromarray(source[i]["image"]).save(folder / f"images/{i:02}.png")
        Image.fromarray(source[i]["label"]).save(folder / f"labels/{i:02}.png")
    (folder / "names.txt").write_text("\n".join(class_names()))
    names = ", ".join(f'"{name}"' for name in class_names())
    (folder / "scenes.toml").write_text(
        'title = "Drawn scenes"\nimages = "images"\nlabels = "labels"\n'
        f"classes = [{names}]\nbackground = true\n"
    )
    return folder


def own(scenes: Path) -> list[str]:
    return [
        f"--images={scenes}/images", f"--labels={scenes}/labels", f"--classes={scenes}/names.txt",
        "--background",
    ]  # fmt: skip


def test_a_benchmark_of_ones_own(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = [CLIP, "--no-pamr", "--templates=shapes"]
    run([*base, f"--output={tmp_path}/flags", *own(scenes), "--method=maskclip,sclip"])
    out = capsys.readouterr().out
    assert "MaskCLIP, measured" in out and "SCLIP, measured" in out
    assert f"{tmp_path}/flags/report.html" in out
    results = json.loads((tmp_path / "flags/maskclip/results.json").read_text())
    scores = results["benchmarks"]["custom"]
    assert scores["images"] == 12 and 15 < scores["miou"] < 60
    assert list(scores["per_class"]) == ["background", *class_names()]
    assert results["fingerprint"]["templates"] == "shapes"
    run(["--compare", f"{tmp_path}/flags/maskclip", f"{tmp_path}/flags/sclip"])
    out = capsys.readouterr().out
    assert "maskclip" in out and "sclip" in out and "custom" in out

    run([*base, f"--output={tmp_path}/toml", f"--benchmark={scenes}/scenes.toml"])
    again = json.loads((tmp_path / "toml/results.json").read_text())
    assert again["benchmarks"]["scenes"]["miou"] == scores["miou"]


def test_another_split_of_folders(scenes: Path, tmp_path: Path) -> None:
    for name in ("images", "labels"):
        for split, kept in (("val", 3), ("train", 5)):
            (tmp_path / name / split).mkdir(parents=True)
            for path in sorted((scenes / name).iterdir())[:kept]:
                shutil.copy(path, tmp_path / name / split)
    flags = [
        CLIP, "--output=o", f"--images={tmp_path}/images/{{split}}",
        f"--labels={tmp_path}/labels/{{split}}", f"--classes={scenes}/names.txt", "--background",
    ]  # fmt: skip
    for more, split, count in (([], "val", 3), (["--split=train"], "train", 5)):
        (listing,) = find_benchmarks(parser().parse_args([*flags, *more]))
        assert listing.benchmark.split == split and len(listing.examples) == count


def test_values_that_are_ignored_and_those_of_another_coding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    label = np.zeros((48, 64), np.uint8)
    label[5:20, 5:20], label[30:40, 30:60] = 1, 11
    key = os.fsdecode(b"caf\xe9")  # a name that is not UTF-8
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / f"images/{key}.jpg")
    Image.fromarray(label).save(tmp_path / f"labels/{key}.png")
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n")
    base = [
        CLIP, "--no-pamr", f"--images={tmp_path}/images", f"--labels={tmp_path}/labels",
        f"--classes={names}", f"--output={tmp_path}/out",
    ]  # fmt: skip
    with pytest.raises(InputError, match="--ignore=11,255"):
        run(base)
    assert not (tmp_path / "out").exists()
    run([*base, "--ignore=11"])
    assert "custom: labels 0 = cat, 1 = dog; ignored: 11\n" in capsys.readouterr().out
    names.write_text("11: thing\n1: other\n")
    run([*base[:-1], f"--output={tmp_path}/more", "--background"])
    scores = json.loads((tmp_path / "more/results.json").read_text())["benchmarks"]["custom"]
    assert list(scores["per_class"]) == ["background", "other", "thing"]


def test_all_benchmarks_that_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(DATA / "ade", tmp_path / "data/ade")
    shutil.copytree(DATA / "cityscapes/gtFine", tmp_path / "elsewhere")
    base = [CLIP, f"--data={tmp_path}/data", "--no-pamr", "--batch_size=4"]
    run([*base, f"--output={tmp_path}/out"])
    out = capsys.readouterr().out
    assert "left out: voc, context, coco_object, voc20, context59, coco_stuff, cityscapes" in out
    table = json.loads((tmp_path / "out/results.json").read_text())
    assert list(table["benchmarks"]) == ["ade20k"] and table["mean_miou"] is None
    run([
        *base, f"--output={tmp_path}/city", "--benchmarks=cityscapes",
        f"--path=cityscapes.images={DATA}/cityscapes/leftImg8bit/val",
        f"--path=cityscapes.labels={tmp_path}/elsewhere/val",
    ])  # fmt: skip
    assert "city" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--output is needed"),
        (["--output=o", "--data=nowhere"], "'nowhere' holds none of the benchmarks"),
        (["--output=o", f"--data={DATA}"], "give either --checkpoint"),
        (["--output=o", "--benchmarks=vok"], "benchmark 'vok' is not known"),
        (["--output=o", "--benchmarks=voc,voc", CLIP], "voc, voc: one is given more than once"),
        (["--output=o", "--benchmark=no.toml"], "no.toml"),
        (["--output=o", "--images=x", CLIP], "--images without --labels, --classes"),
        (["--output=o", "--background", CLIP], "--background without --images"),
        (["--output=o", "--path=vok.list=x"], "--path=vok.list"),
        (["--output=o", "--batch_size=0"], "--batch_size=0"),
        (["--output=o", f"--data={DATA}", CLIP, "--method=tcl"], "needs TCL's weights"),
        (["--output=o", f"--data={DATA}", CLIP, "--split=test"], "'test'"),
        (
            ["--output=o", "--benchmarks=ade20k", "--data=nowhere", CLIP],
            "nowhere/ade/ADEChallengeData2016/images",
        ),
        (["--compare", "nowhere", "nothere"], "nowhere"),
    ],
)
def test_mistakes(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        run(flags)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("flag", ["--ignore=x", "--path=voc=x", "--path=voc.masks=x"])
def test_malformed_flags(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(["--output=o", flag])
    assert f"argument {flag.partition('=')[0]}: " in capsys.readouterr().err


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a benchmark of sixty pictures with nineteen windows each."""
    folder = tmp_path_factory.mktemp("stripes")
    rng = np.random.default_rng(0)
    for name, shape, top in (("images", (64, 640, 3), 256), ("labels", (64, 640), 2)):
        (folder / name).mkdir()
        for i in range(60):
            pixels = rng.integers(0, top, shape, np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}/{i:03}.png")
    (folder / "names.txt").write_text("plain red\ndotted blue, blue\n")
    return [
        CLIP, f"--images={folder}/images", f"--labels={folder}/labels",
        f"--classes={folder}/names.txt", "--no-pamr",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(stripes: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of a run that was not stopped."""
    folder = tmp_path_factory.mktemp("whole")
    run([*stripes, f"--output={folder}"])
    return read(folder)


def read(folder: Path) -> dict[str, Any]:
    results = json.loads((folder / "results.json").read_text())
    del results["benchmarks"]["custom"]["seconds"]
    return results


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_and_continued(
    kind: signal.Signals, stripes: list[str], whole: dict[str, Any], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tcl_jax.evaluate", *stripes, f"--output={tmp_path}"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    log = tmp_path / "progress/custom.0of1.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() or len(log.read_text().splitlines()) < 8:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(kind)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == (-9 if kind is signal.SIGKILL else 130)
    assert kind is signal.SIGKILL or ("interrupted" in error and "Traceback" not in error)
    assert 8 <= len(log.read_text().splitlines()) < 61
    assert not (tmp_path / "results.json").exists()
    run([*stripes, f"--output={tmp_path}"])
    assert read(tmp_path) == whole


@pytest.mark.slow
def test_what_one_process_lacks_ends_all(scenes: Path, tmp_path: Path) -> None:
    """The weights, and one of the images."""
    for name in ("images", "labels"):
        shutil.copytree(scenes / name, tmp_path / name)
        (tmp_path / name / "11.png").unlink()
    fewer = [flag.replace(f"{scenes}/", f"{tmp_path}/") for flag in own(scenes)[:2]]
    cases = [
        ([CLIP], [f"--checkpoint={tmp_path}/none"], "checkpoint '.*none' is not there"),
        ([CLIP, *own(scenes)[:2]], [CLIP, *fewer], "process 1 sees other .* 11 im.* 12 im"),
    ]
    for first, second, message in cases:
        address = f"--coordinator=localhost:{free_port()}"
        command = [
            *(sys.executable, "-m", "tcl_jax.evaluate", *own(scenes), "--no-pamr"),
            *(f"--output={tmp_path}/out", address, "--num_processes=2"),
        ]
        started = [
            subprocess.Popen(
                [*command, *flags, f"--process_id={i}"],
                env={**os.environ, "JAX_PLATFORMS": "cpu"}, stderr=subprocess.PIPE, text=True,
            )
            for i, flags in enumerate((first, second))
        ]  # fmt: skip
        errors = [process.communicate(timeout=120)[1] for process in started]
        assert [process.returncode for process in started] == [2, 2], errors
        for error in errors:
            assert re.search(message, error) and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_files_in_the_home_directory_and_outputs_that_are_files(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(scenes))
    for flags, message in (
        (["--output=~/names.txt/out"], "names.txt is a file; choose another folder"),
        ([f"--output={tmp_path}/out", "--tokenizer_file=~/names.txt"], "'~/names.txt' cannot be"),
    ):
        with pytest.raises(InputError, match=message):
            run([CLIP, *own(scenes), *flags])
