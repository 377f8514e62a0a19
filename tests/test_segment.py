"""`python -m tcl_jax.segment` as a user meets it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from tcl_jax import segment
from tcl_jax.data.tokenizer import clip_merges
from tcl_jax.errors import InputError, RunError, run_command
from tcl_jax.shapes.source import ShapesSource
from tcl_jax.weights.hub import BUILT_IN
from tests.in_process import as_before, run_module
from tests.tokenizer_files import write_tokenizer_file

ROOT = Path(__file__).parent.parent
CLIP = "--clip=builtin:shapes_clip"
WORDS = ["--text=striped red", "--text=plain blue"]


def scenes(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    source = ShapesSource("test", num_examples=count, image_size=64)
    for i in range(count):
        Image.fromarray(source[i]["image"]).save(folder / f"scene{i}.png")
    return folder


def files_of(name: str) -> set[str]:
    return {f"{name}_overlay.png", f"{name}_labels.png", f"{name}_masks.npz", f"{name}.json"}


def test_one_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = scenes(tmp_path / "in", 1) / "scene0.png"
    segment.run([CLIP, f"--image={image}", *WORDS, f"--output={tmp_path / 'out'}"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == files_of("scene0")
    record = json.loads((tmp_path / "out/scene0.json").read_text())
    assert record["texts"] == ["striped red", "plain blue"]
    assert np.asarray(Image.open(tmp_path / "out/scene0_labels.png")).max() <= 2
    output = capsys.readouterr().out
    assert "%  background" in output and "scene0_overlay.png" in output
    assert "1 of 1 image(s) segmented" in output


def test_a_tokenizer_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_tokenizer_file(tmp_path, size=514 + len(clip_merges()))
    image = scenes(tmp_path / "in", 1) / "scene0.png"
    flags = ["--tokenizer_file=~/tokenizer.json", "--masks=none", f"--output={tmp_path / 'out'}"]
    segment.run([CLIP, f"--image={image}", *WORDS, *flags])
    assert json.loads((tmp_path / "out/scene0.json").read_text())["options"]["tokenizer"]


def test_folder_with_a_broken_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = scenes(tmp_path / "in", 3)
    whole = (folder / "scene1.png").read_bytes()
    (folder / "scene1.png").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("no image")
    arguments = [CLIP, f"--image={folder}", *WORDS, f"--output={tmp_path / 'out'}", "--no-pamr"]
    with pytest.raises(RunError, match=r"1 image\(s\) could not be read"):
        segment.run(arguments)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == files_of("scene0") | files_of("scene2")
    heard = capsys.readouterr()
    assert "scene1.png" in heard.err and "2 of 3 image(s)" in heard.out

    (folder / "scene1.png").write_bytes(whole)
    before = (tmp_path / "out/scene0.json").stat().st_mtime_ns
    segment.run([*arguments, "--resume"])
    assert "1 of 3 image(s) segmented, 2 were there already" in capsys.readouterr().out
    assert (tmp_path / "out/scene0.json").stat().st_mtime_ns == before
    # Other words, other files and another model are other results.
    bare = tmp_path / "bare.safetensors"  # says no activation of its own
    save_file(load_file(BUILT_IN["builtin:shapes_clip"]), bare)
    model = [f"--clip={bare}", "--activation=gelu"]
    for change in (["--text=dotted green"], ["--masks=none"], model):
        segment.run([*arguments, "--resume", *change])
        assert "3 of 3" in capsys.readouterr().out


def test_flags_reach_the_result(tmp_path: Path) -> None:
    image = scenes(tmp_path / "in", 1) / "scene0.png"
    (tmp_path / "words").write_text("# mine\nplain red\n\n  plain blue, blue \n", encoding="utf-16")
    segment.run(
        [CLIP, f"--image={image}", f"--texts_file={tmp_path / 'words'}", "--no-background",
         "--templates=simple", "--mode=whole", "--short_side=128", "--masks=none", "--text=a, b",
         f"--output={tmp_path / 'out'}"]
    )  # fmt: skip
    record = json.loads((tmp_path / "out/scene0.json").read_text())
    assert record["texts"] == ["a, b", "plain red", "plain blue"]  # a flag's text is one name
    assert record["threshold"] is None
    options = {"background": False, "mode": "whole", "short_side": 128, "templates": "simple"}
    assert record["options"] == {**options, "synonyms": [["plain blue", "blue"]]}
    assert not (tmp_path / "out/scene0_masks.npz").exists()


def test_names_of_results_are_distinct(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a/x.png", "b/x.png", "b/x.jpg", "y.png")]
    assert segment.name_results(paths) == ["a_x_png", "b_x_png", "b_x_jpg", "y"]
    awkward = [tmp_path / name for name in ("a.b.png", "a_b.png", "a_b_1.png", "x/a_b.png")]
    names = segment.name_results(awkward)
    assert len(set(names)) == 4 and names[0] == "a.b" and names[2] == "a_b_1"
    clash = [tmp_path / name for name in ("a/x.png", "b/x.png", "a_x_png.gif")]
    assert len(set(segment.name_results(clash))) == 3
    long = [tmp_path / ("ä" * 120 + f"{i % 2}.png") for i in range(4)]
    names = segment.name_results(long)
    assert len(set(names)) == 4 and max(len(name.encode()) for name in names) <= 200


def test_find_images(tmp_path: Path) -> None:
    folder, output = scenes(tmp_path / "in", 1), tmp_path / "in/out"
    for name in ("a.jfif", "b.MPO", "e.HEIC", "notes.txt", "deep/README"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    for name in ("._a.jfif", "__MACOSX/a.jpg", ".thumbnails/a.jpg", "@eaDir/a.jpg", "Thumbs.db"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    linked = scenes(tmp_path / "elsewhere", 1)
    (folder / "link").symlink_to(linked, target_is_directory=True)
    (linked / "back").symlink_to(folder, target_is_directory=True)
    scenes(output, 1)
    found, left_out = segment.find_images([str(folder)], output)
    names = ["a.jfif", "b.MPO", "e.HEIC", "scene0.png", "link/scene0.png"]
    assert [str(path.relative_to(folder)) for path in found] == names
    assert [path.name for path in left_out] == ["notes.txt", "README"]
    # By whatever way a file is reached, and however often.
    ways = [str(folder), f"{linked}/*.png", f"{linked}/back/*.jfif", str(folder / "notes.txt")]
    again = segment.find_images(ways, output)[0]
    assert {path.name for path in again} == {*(path.name for path in found), "notes.txt"}
    assert segment.find_images([str(output / "scene0.png")], output)[0] == [output / "scene0.png"]
    for nothing, message in {
        "none.png": "no image;", "in/*.gif": "no image;", "in/deep": "no image; 1 other.*README",
        "in/out": "no image outside of --output=.*another --output",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=f"--image=.* {message}"):
            segment.find_images([str(tmp_path / nothing)], output)


def test_names_that_the_terminal_cannot_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scenes(tmp_path / "in", 1) / "scene0.png"
    latin = os.fsdecode(os.fsencode(tmp_path) + b"/in/caf\xe9.png")
    broken = os.fsdecode(os.fsencode(tmp_path) + b"/in/\xff.png")
    scene.rename(latin)
    Path(broken).write_bytes(b"nothing")
    said, heard = (io.TextIOWrapper(io.BytesIO(), "latin-1") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", said)
    monkeypatch.setattr(sys, "stderr", heard)
    flags = ["--image", latin, broken, "--text", "plain blue", "猫", f"--output={tmp_path / '猫'}"]
    with as_before(), pytest.raises(SystemExit) as ended:
        run_command(lambda: segment.run([CLIP, *flags, "--no-pamr"]))
    assert ended.value.code == 1  # of the broken one
    for stream in (said, heard):
        stream.flush()
    assert b"1 of 2 image(s) segmented; results in" in said.buffer.getvalue()
    assert b"\\u732b" in said.buffer.getvalue() and b"\\udcff.png" in heard.buffer.getvalue()
    record = json.loads((tmp_path / "猫" / os.fsdecode(b"caf\xe9.json")).read_text())
    assert record["texts"] == ["plain blue", "猫"] and record["source"]["path"] == latin


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--image and --output are needed"),
        (["--image=IN", "--output=OUT", CLIP], "no words to look for"),
        (["--image=IN", "--output=OUT", *WORDS], "give either --checkpoint=DIR"),
        (["--image=IN", "--output=OUT", *WORDS, CLIP, "--checkpoint=x"], "give either"),
        (["--image=IN", "--output=OUT", *WORDS, "--checkpoint=x"], "'x' is not there"),
        (["--image=IN", "--output=OUT", *WORDS, "--checkpoint=x", "--tcl=y"], "belongs to --clip"),
        (["--image=IN", "--output=OUT", *WORDS, CLIP, "--tcl=none.pth"], "none.pth"),
        (["--image=IN", "--output=IN/scene0.png", *WORDS, CLIP], "is a file"),
        (["--image=IN", "--output=OUT", "--texts_file=none", CLIP], "--texts_file='none'"),
        (["--image=IN", "--output=OUT", *WORDS, CLIP, "--templates=odd"], "'odd': no such set"),
        (["--image=IN", "--output=OUT", *WORDS, CLIP, "--method=tcl"], "needs TCL's weights"),
        (["--image=IN", "--output=OUT", *WORDS, CLIP, "--method=odd"], "--method 'odd' is unknown"),
        (["--image=IN", "--output=OUT", "--text", "cat", "Cat", CLIP], "are the same to"),
        (["--image=IN", "--output=OUT", "--text=Background", CLIP], "'Background' is the name"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], message: str, tmp_path: Path) -> None:
    folder = scenes(tmp_path / "in", 1)
    filled = [a.replace("IN", str(folder)).replace("OUT", str(tmp_path / "out")) for a in arguments]
    with pytest.raises(InputError) as caught:
        segment.run(filled)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_unknown_flag_and_value_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for flag, code in (("--txt=a", 2), ("--threshold=7", 2), ("--mode=sideways", 2), ("--help", 0)):
        with pytest.raises(SystemExit) as ended:
            segment.run([flag])
        assert ended.value.code == code
        output = capsys.readouterr()
        assert "usage:" in (output.err if code else output.out)


@pytest.mark.slow
def test_interrupted_and_resumed(tmp_path: Path) -> None:
    command = ["python", "-m", "tcl_jax.segment"]
    folder = scenes(tmp_path / "in", 60)
    arguments = [CLIP, f"--image={folder}", *WORDS, f"--output={tmp_path / 'out'}"]
    process = subprocess.Popen(
        [sys.executable, *command[1:], *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while not list((tmp_path / "out").glob("*.json")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err
    done = {path.stem for path in (tmp_path / "out").glob("*.json")}
    assert 0 < len(done) < 60
    assert not list((tmp_path / "out").glob("*.part"))
    done_again = run_module([*command, *arguments, "--resume"], ROOT)
    assert done_again.code == 0 and f"{len(done)} were there already" in done_again.said
