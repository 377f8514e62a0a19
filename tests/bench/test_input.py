"""`bench input`: the report is whole and adds up, whatever the speed; mistakes are explained."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcl_jax.bench import __main__ as bench
from tcl_jax.bench import input as bench_input
from tcl_jax.bench import input_speed
from tcl_jax.bench.input_speed import REST, default_worker_counts, measure
from tcl_jax.bench.timed_input import PARTS, Cycled, TimedTransform
from tcl_jax.data.images import decode
from tcl_jax.data.made_photos import HEIGHT, WIDTH, make_photo, write_photos
from tcl_jax.data.rand_augment import RandAugment
from tcl_jax.data.random_erasing import RandomErasing
from tcl_jax.data.tar_source import TarSource
from tcl_jax.data.transforms import Compose, HorizontalFlip, RandomResizedCrop
from tcl_jax.errors import InputError
from tests.data.shards import picture, write_shard

ROOT = Path(__file__).parent.parent.parent
TCL = f"--config={ROOT / 'configs/tcl.py'}"
STAGES = ["bare loop", "decode", "crop and flip", "augment", "full pipeline"]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_speed, "BATCH_SIZE", 4)
    monkeypatch.setattr(bench_input, "DRAWN_PICTURES", 6)


def check(report: dict[str, Any], images: int) -> None:
    """Whether a report has all fields and adds up."""
    assert report["images"] == images and report["image_size"] == 224
    assert [stage["name"] for stage in report["stages"]] == STAGES
    for stage in report["stages"]:
        for name in ("images_per_cpu_second", "images_per_second", "of_bare_loop"):
            spread = stage[name]
            assert 0 < spread["low"] <= spread["median"] <= spread["high"]
    assert set(report["stages"][0]["of_bare_loop"].values()) == {1.0}
    assert list(report["shares"]) == [*PARTS, REST]
    assert sum(report["shares"].values()) == pytest.approx(1)
    assert min(report["shares"][part] for part in PARTS) > 0 <= report["shares"][REST]


def test_drawn_pictures_are_measured_without_a_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out/input.json"
    bench.run(["input", "--seconds=0.01", "--workers=0", f"--json={file}"])
    report = json.loads(file.read_text())
    check(report, 6)
    assert report["data"] == f"6 drawn pictures, {WIDTH} x {HEIGHT}, JPEG quality 90"
    assert report["mean_megapixels"] == WIDTH * HEIGHT / 1e6
    assert report["scaling"] == []
    told = capsys.readouterr().out
    assert report["data"] in told and "worker processes" not in told
    for stage in report["stages"]:
        assert f"{stage['of_bare_loop']['median']:.0%}" in told
    for part, share in report["shares"].items():
        assert part in told and f"{share:.1%}" in told


def test_a_config_s_shards_are_measured_and_missing_ones_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = tmp_path / "s.tar"
    write_photos(shard, 3)
    with tarfile.open(shard, "a") as tar:
        tar.addfile(tarfile.TarInfo("notes.md"))
    file = tmp_path / "input.json"
    flags = ["input", "--seconds=0.01", "--workers=0", f"--json={file}", TCL]
    bench.run([*flags, f"--config.data.shards=('{shard}',)"])
    report = json.loads(file.read_text())
    check(report, 3)
    assert str(shard) in report["data"] and "drawn" not in report["data"]
    assert "left out: members of other kinds: 1 (the first: notes.md" in report["data"]
    bench.run([*flags, f"--config.data.shards=('{tmp_path}/none-*.tar',)"])
    report = json.loads(file.read_text())
    check(report, 6)
    assert f"no shards are at {tmp_path}/none-*.tar" in report["data"]
    assert report["data"] in capsys.readouterr().out


@pytest.mark.slow
def test_workers_are_measured(tmp_path: Path) -> None:
    file = tmp_path / "input.json"
    command = [sys.executable, "-m", "tcl_jax.bench", "input", "--seconds=0.01", "--workers=1"]
    done = subprocess.run(
        [*command, f"--json={file}"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (scaling,) = json.loads(file.read_text())["scaling"]
    assert scaling["workers"] == 1 and scaling["images_per_second"]["median"] > 0
    assert set(scaling["of_linear"].values()) == {1.0}
    assert "Traceback" not in done.stderr and "1.00 x linear" in done.stdout


def test_scaling_is_told_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker makes a batch in 1 s; two workers together one in 0.625 s."""
    now = 0.0
    started: list[int] = []

    class Batches:
        def __init__(self, workers: int) -> None:
            self.seconds = {1: 1.0, 2: 0.625}[workers]
            started.append(workers)

        def __next__(self) -> None:
            nonlocal now
            now += self.seconds

        def close(self) -> None:
            started.append(0)

    monkeypatch.setattr(input_speed.time, "perf_counter", lambda: now)
    measured = input_speed._measure_workers(Batches, (1, 2), 30.0, lambda _: None)
    assert started == [1, 0, 2, 0] * 3
    alone, both = measured
    assert alone.images_per_second.median == 4 and both.images_per_second.median == 6.4
    assert alone.of_linear.median == 1 and both.of_linear.median == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("cores", "counts"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))]
)
def test_numbers_of_workers_reach_the_cores(cores: int, counts: tuple[int, ...]) -> None:
    assert default_worker_counts(cores) == counts


def test_timing_changes_no_picture() -> None:
    chain = Compose((RandomResizedCrop(32), HorizontalFlip(), RandAugment(4, 1.0)))
    image = picture(9, side=80)
    times: dict[str, float] = {}
    timed = TimedTransform(chain, times)
    for seed in range(5):
        plain = chain(image, np.random.default_rng(seed))
        np.testing.assert_array_equal(timed(image, np.random.default_rng(seed)), plain)
    assert set(times) == {"decode", "crop and resize", "augment"}


def test_cycled_examples_come_again() -> None:
    cycled = Cycled([{"text": str(i)} for i in range(5)], [4, 1])
    assert [cycled[i]["text"] for i in (0, 1, 2, 1_000_001)] == ["4", "1", "4", "1"]


def test_drawn_pictures_are_like_photographs_to_a_decoder(tmp_path: Path) -> None:
    write_photos(tmp_path / "a.tar", 4)
    write_photos(tmp_path / "b.tar", 4)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    source = TarSource([str(tmp_path / "a.tar")])
    assert len({example["text"][0] for example in source}) > 1
    for i in range(4):
        drawn, caption = make_photo(i)
        assert drawn.shape == (HEIGHT, WIDTH, 3) and source[i]["text"] == [caption]
        assert 30_000 < len(source[i]["image"]) < 90_000
        decoded = decode(source[i]["image"])
        assert np.abs(decoded.astype(int) - drawn).mean() < 6


# ------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what is to be measured: one of input, train, masks, evaluate"),
        (["inptu"], "there is no benchmark 'inptu': one of input, train"),
        (["input", "--seconds=0"], "--seconds=0.0: must be a positive number"),
        (["input", "--seconds=nan"], "--seconds=nan"),
        (["input", "--workers=-1"], "--workers=-1: must be at least 0"),
        (["input", "--secnds=1"], "secnds"),
        (["input", "--config.data.flip=1"], "give one with --config=FILE"),
        (["input", f"--config={ROOT / 'configs/shapes.py'}"], "images are not cropped"),
        (["input", TCL, "--config.data.source=none"], "data.source='none' is unknown"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bench.run(arguments)


def test_help_shows_what_can_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    bench.run(["--help"])
    assert "python -m tcl_jax.bench input" in capsys.readouterr().out


class Pixels:
    """Images that need no decoding."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": np.zeros((8, 8, 3), np.uint8), "text": "x"}


def no_tokens(texts: Any) -> np.ndarray:
    return np.zeros((len(texts), 2), np.int32)


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    how: dict[str, Any] = {
        "transform": Compose((RandomResizedCrop(8),)),
        "erasing": RandomErasing(),
        "tokenizer": no_tokens,
        "worker_counts": (),
    }
    with pytest.raises(InputError, match="nothing to decode"):
        measure(Pixels(), **how)
    damaged = write_shard(tmp_path / "d.tar", {"a.jpg": picture(1)[:200], "a.txt": b"x"})
    with pytest.raises(InputError, match="none of the images that were looked at"):
        measure(TarSource([damaged]), **how)
    # Some that are damaged are passed over.
    good = {f"{i}.{suffix}": data for i in range(3) for suffix, data in
            (("jpg", picture(i)), ("txt", b"x"))}  # fmt: skip
    mixed = write_shard(tmp_path / "m.tar", {**good, "a.jpg": picture(1)[:200], "a.txt": b"x"})
    speed = measure(TarSource([mixed]), **how, seconds=0.01)
    assert speed.images == 3
