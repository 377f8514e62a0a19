"""`bench input`: the report is whole and adds up, whatever the speed; mistakes are explained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tcl_jax.bench import __main__ as bench
from tcl_jax.errors import InputError
from tests.data.shards import picture, write_shard

ROOT = Path(__file__).parent.parent.parent
TCL = f"--config={ROOT / 'configs/tcl.py'}"
STEPS = ["read", "RandomResizedCrop", "HorizontalFlip", "RandAugment", "RandomErasing"]


def measure(folder: Path, shards: str, workers: int = 0) -> dict[str, Any]:
    """The report of a run on the shards."""
    file = folder / "out/input.json"
    flags = ["--seconds=0.01", f"--workers={workers}", f"--json={file}", TCL]
    bench.run(["input", *flags, f"--config.data.shards=('{shards}',)"])
    report: dict[str, Any] = json.loads(file.read_text())
    return report


@pytest.mark.slow
def test_steps_and_workers_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # One that is damaged is passed over; what is no pair is named.
    good = {f"{i}.{suffix}": data for i in range(4) for suffix, data in
            (("jpg", picture(i)), ("txt", b"x"))}  # fmt: skip
    members = {**good, "a.jpg": picture(1)[:200], "a.txt": b"x", "notes.md": b""}
    shard = write_shard(tmp_path / "s.tar", members)
    report, shown = measure(tmp_path, shard, workers=1), capsys.readouterr().out
    assert report["image_size"] == 224 and str(shard) in report["data"]
    assert "members of other kinds: 1 (the first: notes.md" in report["data"]
    assert [row["step"] for row in report["steps"]] == STEPS
    assert sum(row["time_share"] for row in report["steps"]) == pytest.approx(1)
    for row in report["steps"]:
        assert row["seconds"] > 0 and f"{1000 * row['seconds']:.4g}" in shown
    assert [row["workers"] for row in report["workers"]] == [0, 1]
    assert all(row["images_per_second"] > 0 for row in report["workers"])


def test_images_that_cannot_be_decoded_are_refused(tmp_path: Path) -> None:
    pairs = {f"{i}.{end}": b"x" if end == "txt" else picture(1)[:200]
             for i in range(4) for end in ("jpg", "txt")}  # fmt: skip
    with pytest.raises(InputError, match="can be decoded"):
        measure(tmp_path, write_shard(tmp_path / "d.tar", pairs))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of input, train, masks, evaluate"),
        (["inptu"], "'inptu'"),
        (["input", TCL, "--seconds=0"], "--seconds=0.0"),
        (["input", TCL, "--seconds=nan"], "--seconds=nan"),
        (["input", TCL, "--workers=-1"], "--workers=-1"),
        (["input", TCL, "--secnds=1"], "secnds"),
        (["input", TCL, "--config.data.source=none"], "data.source='none'"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bench.run(arguments)
