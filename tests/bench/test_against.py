"""The official code's process, results beside its own, and times in alternation."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcl_jax.bench.against import COMPARED, Official
from tcl_jax.bench.original import LONGEST, describe
from tcl_jax.bench.process import ADAPTER, OriginalFailed, OriginalProcess
from tcl_jax.errors import InputError, RunError
from tests.bench.original_checkout import make_checkout, requests_of

LOSSES = {name: 1.0 + i for i, name in enumerate(COMPARED)}


@contextlib.contextmanager
def official(folder: Path, **answers: Any) -> Iterator[Official]:
    """The code of `make_checkout`."""
    with OriginalProcess(*make_checkout(folder, **answers), "cpu") as process:
        yield Official(process, folder, "float32")


# ---------------------------------------------------------------------------------------- process


def test_failures_say_what_happened(tmp_path: Path) -> None:
    path, python = make_checkout(
        tmp_path,
        load={"error": "KeyError: 'proj'"},
        compare_train={"text": "Loading ..."},
        release={"exit": 3},
    )
    with OriginalProcess(path, python, "cpu") as process:
        with pytest.raises(OriginalFailed, match="failed at load: KeyError: 'proj'"):
            process.ask("load")
        with pytest.raises(OriginalFailed, match=r"answered 'Loading \.\.\.'"):
            process.ask("compare_train")
        with pytest.raises(OriginalFailed, match=r"exit code 3 when(?s:.*)what it said last"):
            process.ask("release")
        with pytest.raises(OriginalFailed, match="exit code 3"):
            process.ask("hello")
    assert {request["device"] for request in requests_of(path)} == {"cpu"}


def test_what_cannot_be_started_is_refused(tmp_path: Path) -> None:
    path, _ = make_checkout(tmp_path)
    with pytest.raises(InputError, match=r"--against=.*models/tcl"):
        OriginalProcess(str(tmp_path / "none"), sys.executable, "cpu")
    with pytest.raises(InputError, match=r"--against_python=.*none"):
        OriginalProcess(path, str(tmp_path / "none"), "cpu")


def test_the_adapter_imports_from_the_checkout_and_names_what_is_missing(tmp_path: Path) -> None:
    # Both have a folder `models`, and the adapter lies beside this project's.
    path, _ = make_checkout(tmp_path)
    (tmp_path / "torch.py").write_text(
        "import models\nraise ModuleNotFoundError(models.__path__[0], name='torch')"
    )
    (Path(path) / "models/__init__.py").touch()
    done = subprocess.run(
        [sys.executable, str(ADAPTER), f"--path={path}", "--device=cpu"],
        input='{"do": "hello"}\n',
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    error = json.loads(done.stdout)["error"]
    assert f"{path}/models" in error and "package torch" in error and "pip install" in error


def test_errors_are_described() -> None:
    missing = describe(ModuleNotFoundError("No module named 'mmcv'", name="mmcv.utils"))
    assert "the package mmcv cannot" in missing["error"] and "mmcv<2" in missing["error"]
    assert "install it there" in describe(ImportError("libcudnn.so.9: not found"))["error"]
    assert describe(ValueError("x" * 9999)) == {"error": "ValueError: " + "x" * LONGEST}


# ---------------------------------------------------------------------------------------- results


@pytest.mark.parametrize("factor", [1 + 5e-5, 1 + 3e-4, float("nan")])
def test_losses_that_differ_are_named(factor: float, tmp_path: Path) -> None:
    theirs = {**LOSSES, "area": LOSSES["area"] * factor}
    with official(tmp_path, compare_train={"ok": theirs}) as there:
        if factor == 1 + 5e-5:
            differences = there.check_losses(LOSSES, "phase 1", phase=0)
            assert differences["area"] == pytest.approx(5e-5, rel=0.01)
            assert differences["tclf"] == 0
            return
        with pytest.raises(RunError, match=r"phase 1(?s:.*)area: 3 here") as caught:
            there.check_losses(LOSSES, "phase 1", phase=0)
    assert "tclf" not in str(caught.value)


def test_masks_are_compared_with_their_axes_moved(tmp_path: Path) -> None:
    ours = np.random.default_rng(0).random((1, 4, 5, 3), np.float32)
    with official(tmp_path) as there:
        file = tmp_path / "original/masks.npy"

        def check(theirs: np.ndarray) -> dict[str, float]:
            np.save(file, np.moveaxis(theirs, -1, 1))
            return there.check_masks(ours, "window 4", pamr=False)

        assert check(ours) == {"masks": 0}
        with pytest.raises(RunError, match=r"masks: by up to 0\.01"):
            check(ours + np.float32(0.01) * (np.arange(3) == 2))
        with pytest.raises(RunError, match="shape"):
            check(ours[:, :2])


# ------------------------------------------------------------------------------------------- time


def test_both_are_timed_in_turn(tmp_path: Path) -> None:
    answers = {"run": [{"ok": {"seconds": s}} for s in (6.0, 12.0, 9.0)]}
    order = []

    def run(calls: int) -> float:
        order.append([request["do"] for request in requests_of(str(tmp_path / "original"))])
        return 1.0 * calls

    with official(tmp_path, **answers, prepare_train={"ok": {"seconds": 7.0}}) as there:
        request = {"do": "prepare_train", "phase": 1}
        (row,) = there.times("batch 2", request, run, calls=3, rounds=3, warm_up=2)
    prepared, *asked = requests_of(str(tmp_path / "original"))
    assert order == [["prepare_train", *["run"] * count] for count in range(3)]
    assert [request["do"] for request in asked] == ["run", "run", "run", "release"]
    assert not prepared["compiled"] and prepared["precision"] == "float32"
    assert (prepared["warm_up"], prepared["phase"], asked[0]["calls"]) == (2, 1, 3)
    assert row == {
        "what": "batch 2", "variant": "eager", "seconds": 1, "official_seconds": 3, "ratio": 3,
        "lowest": 2, "highest": 4, "official_first_seconds": 7,
        "official_peak_bytes": 3 * 2**30,
    }  # fmt: skip


def test_a_variant_that_does_not_fit_is_told_and_the_others_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")  # which has two variants
    prepared = [{"error": "out of memory"}, {"ok": {"seconds": 7.0}}]
    how = {"calls": 1, "rounds": 1, "warm_up": 1}
    with official(tmp_path, prepare_masks=prepared) as there:
        full, timed = there.times("x", {"do": "prepare_masks"}, lambda _: 1.0, **how)
    assert "out of memory" in full["problem"] and "ratio" not in full
    assert (timed["variant"], timed["ratio"]) == ("compiled", 1e6)
    assert [r["do"] for r in requests_of(str(tmp_path / "original"))].count("release") == 2


def test_a_process_that_ended_is_not_asked_on(tmp_path: Path) -> None:
    how = {"calls": 1, "rounds": 1, "warm_up": 1}
    with (
        official(tmp_path, run={"exit": 1}) as there,
        pytest.raises(OriginalFailed, match="exit code 1"),
    ):
        next(there.times("x", {"do": "prepare_masks"}, lambda _: 1.0, **how))
