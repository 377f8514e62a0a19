"""The process of the official code: answers, and whatever can go wrong with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tcl_jax.bench.original import LONGEST, describe
from tcl_jax.bench.process import (
    ADAPTER,
    OriginalFailed,
    OriginalProcess,
)
from tcl_jax.errors import InputError
from tests.bench.original_checkout import make_checkout, requests_of


def test_requests_are_answered_in_order(tmp_path: Path) -> None:
    answers = [{"ok": {"seconds": float(i)}} for i in range(3)]
    path, python = make_checkout(tmp_path, run=answers)
    with OriginalProcess(path, python, "cpu") as original:
        assert original.ask("hello")["torch"] == "0"
        assert [original.ask("run", calls=i)["seconds"] for i in range(3)] == [0, 1, 2]
    asked = requests_of(path)
    assert [request["do"] for request in asked] == ["hello", "run", "run", "run"]
    assert [request.get("calls") for request in asked] == [None, 0, 1, 2]
    assert {request["device"] for request in asked} == {"cpu"}


def test_failures_say_what_happened(tmp_path: Path) -> None:
    path, python = make_checkout(
        tmp_path,
        load={"error": "KeyError: 'proj'"},
        run={"error": "CUDA out of memory"},
        compare_train={"text": "Loading ..."},
        release={"exit": 3},
    )
    with OriginalProcess(path, python, "cpu") as original:
        with pytest.raises(OriginalFailed, match="failed at load: KeyError: 'proj'"):
            original.ask("load")
        with pytest.raises(OriginalFailed, match="failed at run: CUDA out of memory"):
            original.ask("run", calls=1)
        with pytest.raises(OriginalFailed, match=r"answered 'Loading \.\.\.'"):
            original.ask("compare_train")
        with pytest.raises(OriginalFailed, match=r"exit code 3 when(?s:.*)what it said last"):
            original.ask("release")
        with pytest.raises(OriginalFailed, match="exit code 3"):
            original.ask("hello")


def test_what_cannot_be_started_is_refused(tmp_path: Path) -> None:
    path, _ = make_checkout(tmp_path)
    with pytest.raises(InputError, match=r"no checkout of the official code: it has no models/tcl"):
        OriginalProcess(str(tmp_path / "none"), sys.executable, "cpu")
    with pytest.raises(InputError, match=r"against_python='.*none' cannot be started \(No such"):
        OriginalProcess(path, str(tmp_path / "none"), "cpu")


def test_a_python_without_pytorch_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = make_checkout(tmp_path)
    hidden = tmp_path / "hidden"  # this Python may have it
    hidden.mkdir()
    (hidden / "torch.py").write_text("raise ModuleNotFoundError('No torch', name='torch')")
    monkeypatch.setenv("PYTHONPATH", str(hidden))
    with (
        OriginalProcess(path, sys.executable, "cpu") as original,
        pytest.raises(OriginalFailed, match="package torch cannot be imported by .*pip install"),
    ):
        original.ask("hello")


def test_packages_of_the_checkout_come_before_this_project_s(tmp_path: Path) -> None:
    # Both have a folder `models`, and the adapter lies beside this project's.
    path, _ = make_checkout(tmp_path)
    site = tmp_path / "site"
    (site / "torch").mkdir(parents=True)
    (site / "torch/__init__.py").write_text("import models\nraise KeyError(models.__path__[0])")
    (Path(path) / "models/__init__.py").touch()
    done = subprocess.run(
        [sys.executable, str(ADAPTER), f"--path={path}", "--device=cpu"],
        input='{"do": "hello"}\n',
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert f"{path}/models" in done.stdout and "error" in json.loads(done.stdout)


def test_errors_are_described() -> None:
    missing = describe(ModuleNotFoundError("No module named 'mmcv'", name="mmcv.utils"))
    assert "the package mmcv cannot" in missing["error"] and "mmcv<2" in missing["error"]
    assert "install it there" in describe(ImportError("libcudnn.so.9: not found"))["error"]
    assert describe(ValueError("x" * 9999)) == {"error": "ValueError: " + "x" * LONGEST}
