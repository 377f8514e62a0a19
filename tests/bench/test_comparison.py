"""Results beside the official code's, alternation, ratios and their table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcl_jax.bench.comparison import (
    COMPARED,
    Comparison,
    alternate,
    check_losses,
    check_masks,
    compare_times,
)
from tcl_jax.bench.process import OriginalFailed, OriginalProcess
from tcl_jax.bench.report import against_table
from tcl_jax.errors import RunError
from tests.bench.original_checkout import make_checkout, requests_of

LOSSES = {name: 1.0 + i for i, name in enumerate(COMPARED)}


def test_equal_losses_pass_and_others_are_named() -> None:
    assert max(check_losses(LOSSES, LOSSES, "x").values()) == 0
    close = {**LOSSES, "tv_img": LOSSES["tv_img"] * (1 + 5e-5)}
    assert check_losses(LOSSES, close, "x")["tv_img"] == pytest.approx(5e-5, rel=0.01)
    for value in (LOSSES["area"] * (1 + 3e-4), float("nan")):
        with pytest.raises(RunError, match="phase 1: float32 results differ") as caught:
            check_losses(LOSSES, {**LOSSES, "area": value}, "phase 1")
        assert "area: 3 here" in str(caught.value) and "tclf" not in str(caught.value)


def test_masks_are_compared_with_their_axes_moved() -> None:
    ours = np.random.default_rng(0).random((1, 4, 5, 3), np.float32)
    theirs = np.moveaxis(ours, -1, 1).copy()
    assert check_masks(ours, theirs, "x") == 0
    theirs[0, 2, 1, 1] += 0.01
    with pytest.raises(RunError, match=r"masks: by up to 0\.01"):
        check_masks(ours, theirs, "x")
    with pytest.raises(RunError, match="shape"):
        check_masks(ours, theirs[:, :2], "x")


def test_both_are_timed_in_turn() -> None:
    order: list[tuple[str, int]] = []

    def timed(name: str, seconds: Iterator[float]) -> Any:
        def run(calls: int) -> float:
            order.append((name, calls))
            return next(seconds)

        return run

    ours, theirs = alternate(timed("a", iter((2.0, 4.0))), timed("b", iter((8.0, 6.0))), 2, 2)
    assert order == [("a", 2), ("b", 2)] * 2
    assert ours.seconds == (1, 2) and theirs.seconds == (4, 3)
    assert (ours.median, ours.low) == (1.5, 1)


def test_a_variant_that_does_not_fit_is_told_and_the_others_are_timed(tmp_path: Path) -> None:
    path, python = make_checkout(
        tmp_path,
        prepare_train=[{"error": "out of memory"}, {"ok": {"seconds": 7.0}}],
        run=[{"ok": {"seconds": s}} for s in (6.0, 12.0, 9.0)],
    )
    with OriginalProcess(path, python, "cpu") as original:
        found = list(
            compare_times(
                original,
                "batch 2",
                {"do": "prepare_train", "phase": 1},
                lambda calls: 1.0 * calls,
                cases=[("eager", "float32"), ("compiled", "bfloat16")],
                calls=3,
                rounds=3,
                warm_up=2,
            )
        )
    full, timed = found
    assert "out of memory" in full.problem and full.ratio is None
    assert (timed.ratio, timed.lowest, timed.highest) == (3, 2, 4)
    assert timed.theirs is not None and timed.theirs.median == 3 and timed.first_seconds == 7
    asked = [request for request in requests_of(path) if request["do"] == "prepare_train"]
    assert [(r["compiled"], r["precision"], r["warm_up"]) for r in asked] == [
        (False, "float32", 2), (True, "bfloat16", 2),
    ]  # fmt: skip
    assert [r["do"] for r in requests_of(path)].count("release") == 2
    told = against_table(found).splitlines()
    assert told[1].split()[2:5] == ["eager", "float32", "-"]
    assert told[2].split()[2:] == [
        "compiled", "bfloat16", "1000", "3000", "3.00", "2.00", "4.00", "3.00",
    ]  # fmt: skip
    assert told[3].startswith("batch 2, eager, float32: the official code failed")


def test_a_process_that_ended_is_not_asked_on(tmp_path: Path) -> None:
    path, python = make_checkout(tmp_path, run={"exit": 1})
    with OriginalProcess(path, python, "cpu") as original:
        times = compare_times(
            original,
            "x",
            {"do": "prepare_masks"},
            lambda calls: 1.0,
            cases=[("eager", "float32")],
            calls=1,
            rounds=1,
            warm_up=1,
        )
        with pytest.raises(OriginalFailed, match="exit code 1"):
            next(times)


def test_nothing_is_told_of_what_was_not_measured() -> None:
    table = against_table([Comparison("x", "eager", "float32", problem="no memory")])
    assert table.splitlines()[1].split() == ["x", "eager", "float32", *["-"] * 6]
