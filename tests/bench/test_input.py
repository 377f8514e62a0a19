"""`bench input`: the report is whole and adds up, whatever the speed; mistakes are explained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcl_jax.bench import __main__ as bench
from tcl_jax.bench import input as bench_input
from tcl_jax.bench.photos import HEIGHT, WIDTH, make_photo, write_photos
from tcl_jax.data.images import decode
from tcl_jax.data.tar_source import TarSource
from tcl_jax.errors import InputError
from tests.data.shards import picture, write_shard

ROOT = Path(__file__).parent.parent.parent
TCL = f"--config={ROOT / 'configs/tcl.py'}"
STAGES = ["bare loop", "read", "decode, crop, flip", "augment", "full pipeline"]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_input, "BATCH_SIZE", 4)
    monkeypatch.setattr(bench_input, "DRAWN_PICTURES", 6)


def measure(folder: Path, shards: Path | str, workers: int = 0) -> dict[str, Any]:
    """The report of a run on the shards."""
    file = folder / "out/input.json"
    flags = ["--seconds=0.01", f"--workers={workers}", f"--json={file}", TCL]
    bench.run(["input", *flags, f"--config.data.shards=('{shards}',)"])
    report: dict[str, Any] = json.loads(file.read_text())
    return report


def test_a_config_s_shards_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # One that is damaged is passed over; what is no pair is told.
    good = {f"{i}.{suffix}": data for i in range(4) for suffix, data in
            (("jpg", picture(i)), ("txt", b"x"))}  # fmt: skip
    members = {**good, "a.jpg": picture(1)[:200], "a.txt": b"x", "notes.md": b""}
    shard = write_shard(tmp_path / "s.tar", members)
    report, shown = measure(tmp_path, shard), capsys.readouterr().out
    assert report["image_size"] == 224
    assert str(shard) in report["data"] and "drawn" not in report["data"]
    assert "members of other kinds: 1 (the first: notes.md" in report["data"]
    assert [row["stage"] for row in report["stages"]] == STAGES
    for row in report["stages"]:
        rate = row["images_per_cpu_second"]
        bare = report["stages"][0]["images_per_cpu_second"]
        assert row["of_bare_loop"] == pytest.approx(rate / bare)
        assert row["stage"] in shown and f"{rate:.4g}" in shown
    shares = [row["time_share"] for row in report["stages"][1:]]
    assert sum(shares) == pytest.approx(1) and "workers" not in report


@pytest.mark.slow
def test_pictures_are_drawn_where_there_are_no_shards_and_workers_are_measured(
    tmp_path: Path,
) -> None:
    report = measure(tmp_path, tmp_path / "none-*.tar", workers=1)
    assert f"6 drawn pictures, {WIDTH} x {HEIGHT}" in report["data"]
    assert f"{tmp_path}/none-*.tar" in report["data"]
    (row,) = report["workers"]
    assert row["workers"] == 1 and row["images_per_second"] > 0


def test_drawn_pictures_are_like_photographs_to_a_decoder(tmp_path: Path) -> None:
    for name in "ab":
        write_photos(tmp_path / f"{name}.tar", 4)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    source = TarSource([str(tmp_path / "a.tar")])
    assert len({example["text"][0] for example in source}) > 1
    for i in range(4):
        drawn, caption = make_photo(i)
        assert drawn.shape == (HEIGHT, WIDTH, 3) and source[i]["text"] == [caption]
        assert 30_000 < len(source[i]["image"]) < 90_000
        assert np.abs(decode(source[i]["image"]).astype(int) - drawn).mean() < 6


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
        (["input"], "--config"),
        (["input", TCL, "--seconds=0"], "--seconds=0.0"),
        (["input", TCL, "--seconds=nan"], "--seconds=nan"),
        (["input", TCL, "--workers=-1"], "--workers=-1"),
        (["input", TCL, "--secnds=1"], "secnds"),
        (["input", "--config.data.flip=1"], "--config=FILE"),
        (["input", f"--config={ROOT / 'configs/shapes.py'}"], "not cropped"),
        (["input", TCL, "--config.data.source=none"], "data.source='none'"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bench.run(arguments)
