"""launch/colab_tpu.ipynb runs from top to bottom, and is kept in git without results."""

from __future__ import annotations

import base64
import importlib.util
import os
import re
import subprocess
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

ROOT = Path(__file__).parent.parent.parent
NOTEBOOK = ROOT / "launch/colab_tpu.ipynb"


def read() -> NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def cell(name: str) -> NotebookNode:
    return next(cell for cell in read().cells if cell.id == name)


IN_PROCESS = """
from tests.in_process import run_module
from tests.xla_flags import quick_process

quick_process()

def run(command, *arguments, unless=None):
    done = run_module(["python", "-m", f"tcl_jax.{command}", *map(str, arguments)], checkout)
    print(command, *arguments, done.said)
    if done.code and (unless is None or unless not in done.said):
        raise RuntimeError(command)
    return not done.code
"""
"""In place of the notebook's own `run`, which starts a process for each command."""


def prepared(values: dict[str, Any]) -> NotebookNode:
    """The notebook with other parameters, and a `run` that imports JAX but once."""
    notebook = read()
    known = cell("parameters").source
    assert all(re.search(rf"\b{name}\b.* = ", known) for name in values)
    lines = [f"{name} = {value!r}" for name, value in values.items()]
    for after, source in (("parameters", "\n".join(lines)), ("install", IN_PROCESS)):
        place = next(i for i, one in enumerate(notebook.cells) if one.id == after)
        notebook.cells.insert(place + 1, new_code_cell(source))
    return notebook


def outputs(notebook: NotebookNode, name: str, kind: str) -> list[Any]:
    """Data of a MIME type that a cell displayed."""
    shown = next(c for c in notebook.cells if c.id == name).outputs
    return [output.data[kind] for output in shown if kind in output.get("data", {})]


def text(notebook: NotebookNode, name: str) -> str:
    shown = next(c for c in notebook.cells if c.id == name).outputs
    return "".join(output.text for output in shown if output.output_type == "stream")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[NotebookNode, Path]:
    """The notebook after it ran without a network, and the folder of what it made."""
    folder = tmp_path_factory.mktemp("notebook")
    work = folder / "my work"
    notebook = prepared({"INSTALL": False, "QUICK": True, "WORK": str(work)})
    settings = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"),
        "IPYTHONDIR": str(folder / "ipython"),
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    client = NotebookClient(notebook, timeout=None, kernel_name="python3", resources=resources)
    client.execute(env={**os.environ, **settings})
    return notebook, work


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(run: tuple[NotebookNode, Path]) -> None:
    notebook, work = run
    assert "[CpuDevice(id=0)]" in text(notebook, "install")
    # The published weights cannot be had here.
    converted = text(notebook, "convert")
    assert "could not be downloaded" in converted and "builtin:shapes_clip" in converted
    assert (work / "models/tcl/config.json").is_file()
    for name in ("segment", "train", "segmenter"):
        (picture,) = outputs(notebook, name, "image/png")
        assert base64.b64decode(picture).startswith(b"\x89PNG"), name
    assert (work / "masks/photo_overlay.png").is_file()
    assert (work / "shapes/results.json").is_file()
    (table,) = outputs(notebook, "evaluate", "text/markdown")
    assert "TCL" in table
    assert {path.name for path in (work / "results").iterdir()} >= {"tcl", "maskclip"}
    assert (work / "shapes.stablehlo").is_file() and (work / "shapes.stablehlo.json").is_file()


@pytest.mark.slow
def test_the_exported_program_gives_the_segmenters_masks(run: tuple[NotebookNode, Path]) -> None:
    notebook, _ = run
    assert "masks (1, 64, 64, 3), float32" in text(notebook, "run-export")
    assert float(text(notebook, "segmenter").split()[-1]) < 1e-4


def test_it_is_kept_without_results() -> None:
    notebook = read()
    nbformat.validate(notebook)
    assert set(notebook.metadata) <= {"accelerator", "colab", "kernelspec"}
    for one in notebook.cells:
        assert set(one.metadata) <= {"tags"}, f"metadata of {one.id}"
        if one.cell_type == "code":
            assert not one.outputs and one.execution_count is None, (
                f"cell {one.id} has results: strip them with "
                f"`jupyter nbconvert --clear-output --inplace {NOTEBOOK.relative_to(ROOT)}`"
            )


def test_what_it_names_is_there() -> None:
    code = "\n".join(cell.source for cell in read().cells if cell.cell_type == "code")
    files = re.findall(r"\b(?:configs|launch|tests)/[\w./]+", code)
    assert files and all((ROOT / name).exists() for name in files)
    doors = re.findall(r'run\(\s*f?"(\w+)', code)
    assert {"convert", "segment", "main", "evaluate", "export"} <= set(doors)
    assert all(importlib.util.find_spec(f"tcl_jax.{door}") for door in doors)


def install(
    folder: Path, repository: str, monkeypatch: pytest.MonkeyPatch, work: str = "work"
) -> dict[str, Any]:
    """Runs the cell that finds or clones the code; returns the names that it defines."""
    monkeypatch.chdir(folder)
    values = {"REPOSITORY": repository, "INSTALL": False, "WORK": work}
    exec(compile(cell("install").source, "install", "exec"), values)
    return values


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("convert", {"MODEL": "tips", "WEIGHTS": {"backbone": "my drive/vision.npz"}}),
        ("evaluate", {"IMAGES": "my photos", "LABELS": "my labels", "CLASSES": "my names.txt"}),
    ],
)
def test_names_may_have_spaces(
    name: str, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = install(ROOT, "", monkeypatch, str(tmp_path / "work"))
    values |= {**given, "model": "my model"}
    popen = mock.Mock(side_effect=InterruptedError)
    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(InterruptedError):
        exec(compile(cell(name).source, name, "exec"), values)
    passed = [argument.split("=")[-1] for argument in popen.call_args.args[0]]
    files = given.get("WEIGHTS", {})
    assert {*files.values(), *(x for x in given.values() if x is not files)} <= {*passed}


@pytest.mark.parametrize(
    ("given", "fails", "sources"),
    [
        ({}, {"tcl", "maskclip:ViT-B/16"}, ["tcl", "maskclip:ViT-B/16", "builtin:shapes_clip"]),
        ({}, {"tcl"}, ["tcl", "maskclip:ViT-B/16"]),
        ({"MODEL": "tips:B/14"}, set(), ["tips:B/14"]),
        ({"MODEL": "tips:B/14"}, {"tips:B/14"}, ["tips:B/14", "refused"]),
        ({"WEIGHTS": {"clip": "my.pt"}}, {"tcl"}, ["tcl", "refused"]),
    ],
)
def test_another_model_takes_the_place_of_the_defaults_alone(
    given: dict[str, Any], fails: set[str], sources: list[str], tmp_path: Path
) -> None:
    tried = list[str]()

    def run(_: str, kind: str, source: str, *rest: object, unless: str | None = None) -> bool:
        tried.append(source)
        if source in fails and unless is None:
            raise RuntimeError
        return source not in fails

    values = {"work": tmp_path, "run": run, "MODEL": "tcl", "WEIGHTS": {}, **given}
    try:
        exec(compile(cell("convert").source, "convert", "exec"), values)
    except RuntimeError:
        tried.append("refused")
    assert tried == sources


def test_commands_run_and_their_failures_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = install(ROOT, "", monkeypatch, str(tmp_path / "work"))["run"]
    assert run("convert", "--help") and "export-torch" in capfd.readouterr().out
    assert run("convert", "inspect", "none.pt", unless="none.pt") is False
    with pytest.raises(RuntimeError, match="exit code 2"):
        run("convert", "inspect", "none.pt", unless="something else")


def test_without_code_and_address_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="REPOSITORY is empty: set it to the address"):
        install(tmp_path, "", monkeypatch)


def test_code_is_cloned_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin, here = tmp_path / "origin", tmp_path / "here"
    here.mkdir()
    origin.mkdir()
    (origin / "setup.py").write_text('setup(name="tcl_jax")')
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init"], ["add", "setup.py"], [*identity, "commit", "-m", "First"]):
        subprocess.run(["git", *arguments], cwd=origin, check=True, capture_output=True)
    install(here, origin.as_uri(), monkeypatch)
    assert Path.cwd() == here / "tcl_jax" and Path("work").is_dir()
    # Again, from within: nothing is cloned into the clone.
    (here / "tcl_jax/deep").mkdir()
    install(here / "tcl_jax/deep", "", monkeypatch)
    assert Path.cwd() == here / "tcl_jax"
