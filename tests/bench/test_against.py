"""The official code's process, results beside its own, and times in alternation."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcl_jax.bench.against import ADAPTER, COMPARED, Official, OfficialFailed, start_official
from tcl_jax.errors import InputError, RunError
from tests.bench.official_checkout import make_checkout, requests_of

LOSSES = {name: np.asarray(1.0 + i) for i, name in enumerate(COMPARED)}


def official(
    folder: Path, results: dict[str, Any] | None = None, **answers: Any
) -> AbstractContextManager[Official]:
    """The code of `make_checkout`."""
    return start_official(*make_checkout(folder, results, **answers), "cpu")


# ---------------------------------------------------------------------------------------- process


def test_failures_say_what_happened(tmp_path: Path) -> None:
    with official(tmp_path, load={"error": "KeyError: 'proj'"}, release={"exit": 3}) as process:
        with pytest.raises(OfficialFailed, match="failed at load: KeyError: 'proj'"):
            process.ask("load")
        with pytest.raises(OfficialFailed, match=r"exit code 3 when(?s:.*)what it said last"):
            process.ask("release")
        with pytest.raises(OfficialFailed, match="exit code 3"):
            process.ask("run")
    assert {request["device"] for request in requests_of(str(tmp_path / "official"))} == {"cpu"}


def test_a_python_that_cannot_be_started_is_refused(tmp_path: Path) -> None:
    absent = start_official(str(tmp_path), str(tmp_path / "none"), "cpu")
    with pytest.raises(InputError, match=r"--against_python=.*none"), absent:
        pass


def test_the_adapter_imports_from_the_checkout_and_names_what_is_missing(tmp_path: Path) -> None:
    # Both have a folder `models`, and the adapter lies beside this project's.
    path, _ = make_checkout(tmp_path)
    (tmp_path / "torch.py").write_text("import models\nraise ImportError(models.__path__[0])")
    (Path(path) / "models/__init__.py").touch()
    done = subprocess.run(
        [sys.executable, str(ADAPTER), f"--path={path}", "--device=cpu"],
        input='{"do": "release"}\n',
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout) == {"error": f"ImportError: {path}/models"}


# ---------------------------------------------------------------------------------------- results


@pytest.mark.parametrize("factor", [1 + 5e-5, 1 + 3e-4, float("nan")])
def test_losses_that_differ_are_named(factor: float, tmp_path: Path) -> None:
    theirs = {**LOSSES, "area": LOSSES["area"] * factor}
    with official(tmp_path, theirs) as there:
        if factor == 1 + 5e-5:
            differences = there.check(LOSSES, "phase 1", phase=0)
            assert differences["area"] == pytest.approx(5e-5, rel=0.01)
            assert differences["tclf"] == 0
            return
        with pytest.raises(RunError, match=r"phase 1(?s:.*)area by .*: 3 here") as caught:
            there.check(LOSSES, "phase 1", phase=0)
    assert "tclf" not in str(caught.value)


def test_masks_are_compared_pixel_by_pixel(tmp_path: Path) -> None:
    ours = np.random.default_rng(0).random((1, 4, 5, 3), np.float32)
    with official(tmp_path, {"masks": ours}) as there:
        assert there.check({"masks": ours}, "window 4", pamr=False) == {"masks": 0}
        other = ours + np.float32(0.01) * (np.arange(3) == 2)
        with pytest.raises(RunError, match=r"window 4(?s:.*)masks by 0\.01"):
            there.check({"masks": other}, "window 4", pamr=False)
        with pytest.raises(RunError, match="shape"):
            there.check({"masks": ours[:, :2]}, "window 4", pamr=False)


# ------------------------------------------------------------------------------------------- time


def test_both_are_timed_in_turn(tmp_path: Path) -> None:
    answers = {"run": [{"ok": {"seconds": s}} for s in (7.0, 6.0, 12.0, 9.0)]}
    order = []

    def run(calls: int) -> float:
        order.append([request["do"] for request in requests_of(str(tmp_path / "official"))])
        return 1.0 * calls

    with official(tmp_path, **answers) as there:
        request = {"kind": "train", "phase": 1}
        (row,) = there.times("batch 2", request, run, calls=3, rounds=3, warm_up=2)
    prepared, *asked = requests_of(str(tmp_path / "official"))
    assert order == [["prepare", *["run"] * count] for count in (1, 2, 3)]
    assert [request["do"] for request in asked] == [*["run"] * 4, "release"]
    assert not prepared["compiled"] and prepared["precision"] == "float32"
    assert (prepared["phase"], asked[0]["calls"], asked[1]["calls"]) == (1, 2, 3)
    assert row == {
        "what": "batch 2", "variant": "eager", "seconds": 1, "official_seconds": 3, "ratio": 3,
        "lowest": 2, "highest": 4, "official_first_seconds": 7,
        "official_peak_bytes": 3 * 2**30,
    }  # fmt: skip


def test_a_variant_that_does_not_fit_is_named_and_the_others_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")  # which has two variants
    prepared = [{"error": "out of memory"}, {"ok": {}}]
    how = {"calls": 1, "rounds": 1, "warm_up": 1}
    with official(tmp_path, prepare=prepared) as there:
        full, timed = there.times("x", {"kind": "masks"}, lambda _: 1.0, **how)
    assert "out of memory" in full["problem"] and "ratio" not in full
    assert (timed["variant"], timed["ratio"]) == ("compiled", 1e6)
    assert [r["do"] for r in requests_of(str(tmp_path / "official"))].count("release") == 2


def test_a_process_that_ended_is_not_asked_on(tmp_path: Path) -> None:
    how = {"calls": 1, "rounds": 1, "warm_up": 1}
    with (
        official(tmp_path, run={"exit": 1}) as there,
        pytest.raises(OfficialFailed, match="exit code 1"),
    ):
        next(there.times("x", {"kind": "masks"}, lambda _: 1.0, **how))
