"""`python -m tcl_jax.evaluate` as its users meet it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tcl_jax import segment
from tcl_jax.errors import InputError
from tcl_jax.evaluate import run
from tcl_jax.inference.templates import TEMPLATES
from tcl_jax.shapes.source import ShapesSource, class_names
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
    several = ["--method=maskclip,sclip", "--threshold=sclip=0.125"]
    run([*base, f"--output={tmp_path}/flags", *own(scenes), *several])
    out = capsys.readouterr().out
    assert "MaskCLIP, measured" in out and "SCLIP, measured" in out
    assert f"{tmp_path}/flags/report.html" in out
    results = json.loads((tmp_path / "flags/maskclip/results.json").read_text())
    scores = results["benchmarks"]["custom"]
    assert scores["images"] == 12 and 15 < scores["miou"] < 60
    assert list(scores["per_class"]) == ["background", *class_names()]
    assert results["fingerprint"]["templates"] == "shapes"
    assert results["fingerprint"]["threshold"] != 0.125
    other = json.loads((tmp_path / "flags/sclip/results.json").read_text())
    assert other["fingerprint"]["threshold"] == 0.125
    run(["--compare", f"{tmp_path}/flags/maskclip", f"{tmp_path}/flags/sclip"])
    assert "custom" in capsys.readouterr().out
    toml = [CLIP, "--no-pamr", f"--output={tmp_path}/toml", f"--benchmark={scenes}/scenes.toml"]
    sentences = TEMPLATES["shapes"]
    run([*toml, *(f"--templates={sentence}" for sentence in sentences)])
    again = json.loads((tmp_path / "toml/results.json").read_text())
    assert again["benchmarks"]["scenes"]["miou"] == scores["miou"]
    assert again["fingerprint"]["templates"] == [*sentences]
    (tmp_path / "scenes.toml").write_text(
        f'images = "{scenes}/images"\nlabels = "{scenes}/labels"\nclasses = "{scenes}/names.txt"'
    )
    with pytest.raises(InputError, match=f"{scenes}/.* and .*{tmp_path}/.* are both 'scenes'"):
        run([*toml, f"--benchmark={tmp_path}/scenes.toml"])
    with pytest.raises(InputError, match=r"(?s)values 24; .*24 classes, give --background"):
        run([*toml[:-1], *own(scenes)[:-1]])
    with pytest.raises(InputError, match="threshold is given for tcl; evaluated are maskclip"):
        run([*toml, "--threshold=tcl=0.5"])


def test_the_best_threshold_is_found_and_taken(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, masks = tmp_path / "found", tmp_path / "masks"
    named = tmp_path / "named.toml"  # without a background, of which nothing is chosen
    named.write_text(
        f'images = "{scenes}/images"\nlabels = "{scenes}/labels"\nclasses = ["background", '
        + ", ".join(f'"{name}"' for name in class_names())
        + "]\n"
    )
    base = [CLIP, "--no-pamr", f"--benchmark={named}", *own(scenes), "--threshold=best"]
    run([*base, f"--output={found}"])
    lines = capsys.readouterr().out.splitlines()
    flags = shlex.split(lines[-1])[3:-1]
    assert flags[:2] == [CLIP, "--refine=none"]
    (row,) = (line.split() for line in lines if line.startswith("MaskCLIP  "))
    best = json.loads((found / "results.json").read_text())["best_threshold"]
    assert best != 0.5 and row[1] == f"{best:g}"
    segment.run([*flags, f"--output={masks}"])
    assert json.loads((masks / "00.json").read_text())["options"]["threshold"] == best
    with pytest.raises(InputError, match="found with refine='none'"):
        segment.run([*flags, f"--output={masks}", "--pamr"])
    run([*base, f"--output={tmp_path}/other", "--stride=16"])  # which `segment` has not
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(f"with --threshold=best:{tmp_path}/other on other images")


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
    with pytest.raises(InputError, match=r"(?s)label values 11;.*--ignore"):
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
    base = [CLIP, f"--data={tmp_path}/data", "--no-pamr", "--batch_size=4"]
    run([*base, f"--output={tmp_path}/out"])
    out = capsys.readouterr().out
    assert "left out: voc, context, coco_object, voc20, context59, coco_stuff, cityscapes" in out
    table = json.loads((tmp_path / "out/results.json").read_text())
    assert list(table["benchmarks"]) == ["ade20k"] and table["mean_miou"] is None


@pytest.mark.parametrize("text", ["bst", "best:", "tcl=x", "tcl=0.5,0.4"])
def test_thresholds_of_no_kind(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["--output=o", f"--threshold={text}"])
    assert f"{text} is none of a number, METHOD=N,..., best and best:DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--output is needed"),
        (["--output=o", "--data=nowhere"], "'nowhere' holds none of the benchmarks"),
        (["--output=o", f"--data={DATA}"], "give either --checkpoint"),
        (["--output=o", "--benchmarks=vok"], "benchmark 'vok' is not known"),
        (["--output=o", "--benchmarks=voc,voc", CLIP], "--benchmarks=voc are both 'voc'"),
        (["--output=o", "--images=x", CLIP], "--images without --labels, --classes"),
        (["--output=o", "--background", CLIP], "--background without --images"),
        (["--output=o", "--batch_size=0"], "--batch_size=0"),
        # Before a model is read or data is looked for, which are not there.
        (["--output=o", "--data=x", "--clip=x", "--protocol=mine"], "protocol 'mine' is unknown"),
        (["--output=o", "--data=x", "--clip=x", "--method=tcl,tcp"], "--method 'tcp' is unknown"),
        (["--output=o", "--data=x", "--threshold=tcp=0.5"], "--threshold 'tcp' is unknown"),
        (["--output=o", "--data=x", "--templates=a cat"], "'a cat': no such set"),
        ([f"--output={__file__}/o", f"--data={DATA}", CLIP], "test_evaluate.py is a file"),
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


def read(folder: Path) -> dict[str, Any]:
    results = json.loads((folder / "results.json").read_text())
    del results["benchmarks"]["custom"]["seconds"]
    return results


def scored(folder: Path) -> int:
    """Images in the log."""
    return sum(path.read_text().count("{") for path in folder.glob("progress/custom.*.jsonl"))


@pytest.mark.slow
def test_killed_and_continued(tmp_path: Path) -> None:
    """Forty pictures of nineteen windows each."""
    rng = np.random.default_rng(0)
    for name, shape, top in (("images", (64, 640, 3), 256), ("labels", (64, 640), 2)):
        (tmp_path / name).mkdir()
        for i in range(40):
            pixels = rng.integers(0, top, shape, np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{name}/{i:03}.png")
    (tmp_path / "names.txt").write_text("plain red\ndotted blue, blue\n")
    flags = [*own(tmp_path)[:3], CLIP, "--no-pamr"]
    stopped = tmp_path / "stopped"
    command = [sys.executable, "-m", "tcl_jax.evaluate", *flags, f"--output={stopped}"]
    process = subprocess.Popen(command, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    deadline = time.monotonic() + 120
    while scored(stopped) < 8:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert 8 <= scored(stopped) < 40 and not (stopped / "results.json").exists()
    for folder in (stopped, tmp_path / "whole"):
        run([*flags, f"--output={folder}"])
    assert read(stopped) == read(tmp_path / "whole")
