"""Samples that cannot be used: replaced alike everywhere, counted, written down, limited."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from tcl_jax.data.bad_samples import (
    MIN_SEEN,
    BadSample,
    BadSampleError,
    BadSampleLog,
    choose_caption,
)
from tcl_jax.data.mixture import Mixture
from tcl_jax.data.tar_source import TarSource
from tcl_jax.data.transforms import Compose, RandomResizedCrop
from tcl_jax.errors import InputError, RunError
from tests.data.shards import picture, write_shard
from tests.data.streams import Numbers, assert_same, iterate, numbers, take

SIDE = 8
CROP = Compose((RandomResizedCrop(SIDE),))


def bomb() -> bytes:
    """A BMP that promises more pixels than are allowed."""
    data = bytearray(picture(0, "BMP"))
    data[18:26] = struct.pack("<ii", 20_000, 20_000)
    return bytes(data)


BAD_IMAGES = {"empty": b"", "page": b"<html>404 Not Found</html>",
              "cut short": picture(9, "PNG", 64)[:-40], "too large": bomb()}  # fmt: skip
BAD_CAPTIONS = {"empty_caption": " \n", "no_caption": None}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """240 pairs in 4 shards; every 20th is bad, each kind in turn. Captions are the numbers."""
    folder = tmp_path_factory.mktemp("shards")
    kinds = [*BAD_IMAGES, *BAD_CAPTIONS]
    for shard in range(4):
        members = {}
        for i in range(60 * shard, 60 * (shard + 1)):
            kind = kinds[i // 20 % 6] if i % 20 == 7 else ""
            image = BAD_IMAGES.get(kind, picture(i, ("JPEG", "PNG", "WEBP")[i % 3]))
            caption = BAD_CAPTIONS.get(kind, str(i))
            members[f"{i:05d}.jpg"] = image
            if caption is None:
                members[f"{i:05d}.json"] = b'{"url": "x"}'
            else:
                members[f"{i:05d}.txt"] = caption.encode()
        write_shard(folder / f"{shard:02d}.tar", members)
    return f"{folder}/{{00..03}}.tar"


def batches_of(source, log=None, **options):
    return iterate(source, 16, 1, bad_samples=log, **{"transform": CROP, **options})


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def reference(shards, tmp_path_factory):
    """Two epochs in one process without workers, and the bad samples met."""
    path = tmp_path_factory.mktemp("log") / "bad_samples.jsonl"
    batches = take(batches_of(TarSource([shards]), BadSampleLog(path)), 30)
    return batches, lines(path)


# ------------------------------------------------------------------------------ kinds and captions


def test_captions():
    rng = np.random.default_rng(0)
    assert choose_caption("a cat", rng) == "a cat"
    drawn = [choose_caption(["a", "", "b", " ", "c"], rng) for _ in range(300)]
    assert {c: drawn.count(c) > 70 for c in set(drawn)} == {"a": True, "b": True, "c": True}
    for text, kind in ((None, "no_caption"), ([], "no_caption"), ("\t ", "empty_caption"),
                       (["", " "], "empty_caption")):  # fmt: skip
        with pytest.raises(BadSampleError) as caught:
            choose_caption(text, rng)
        assert caught.value.kind == kind


# ------------------------------------------------------------------------------------- replacement


def test_bad_samples_are_replaced_and_written_down(reference):
    batches, written = reference
    found = numbers(batches)
    assert all(n % 20 != 7 for n in found)
    # Each of the 12 comes once in each of the two epochs, and may be drawn as a replacement too.
    assert len(written) >= 24
    assert {(row["key"], row["kind"]) for row in written} == {
        (f"{20 * i + 7:05d}", [*["unreadable_image"] * 4, *BAD_CAPTIONS][i % 6]) for i in range(12)
    }
    assert all(row["shard"].endswith(f"{int(row['key']) // 60:02d}.tar") for row in written)
    assert all(row["reason"] for row in written)
    assert [row["batch"] for row in written] == sorted(row["batch"] for row in written)
    # What is not bad comes once an epoch, plus where it replaces.
    counts = np.bincount(found, minlength=240)
    good = [n for n in range(240) if n % 20 != 7]
    assert counts[good].min() == 2 and counts.sum() == 480
    assert (counts > 2).sum() >= 20  # 24 replacements, hardly one like another


def test_resume_with_two_workers_among_bad_samples(reference, shards, tmp_path):
    expected, written = reference
    first = batches_of(TarSource([shards]))
    take(first, 21)
    again = batches_of(TarSource([shards]), BadSampleLog(tmp_path / "bad.jsonl"), num_workers=2)
    again.set_state(first.get_state())
    assert_same(take(again, 9), expected[21:])
    told = [row for row in written if row["batch"] >= 21]
    assert lines(tmp_path / "bad.jsonl") == told
    again.set_state(first.get_state())  # what comes again is not told again
    take(again, 9)
    again.close()
    assert lines(tmp_path / "bad.jsonl") == told


def test_replacement_is_of_the_same_source(shards):
    good = Numbers(1000, 1000, side=SIDE)
    mixed = Mixture({"bad": TarSource([shards]), "good": good}, {"bad": 1, "good": 9})
    log = BadSampleLog()
    batches = take(batches_of(mixed, log, transform=crop_or_keep), 155)  # two epochs
    found = np.array(numbers(batches))
    assert log.totals()[1:].sum() >= 10
    assert (found[:2480] < 1000).sum() == 2 * 124


def crop_or_keep(image, rng):
    return RandomResizedCrop(SIDE)(image, rng) if isinstance(image, bytes) else image


def test_nothing_but_bad_samples_is_an_error(tmp_path):
    members = {}
    for i in range(40):
        members |= {f"{i}.jpg": b"", f"{i}.txt": b"1"}
    source = TarSource([write_shard(tmp_path / "a.tar", members)])
    iterator = batches_of(source)
    with pytest.raises(RunError, match=r"20 samples .*a\.tar.* all bad: \d+ \(unreadable_image\)"):
        next(iterator)
    iterator.close()


# ------------------------------------------------------------------------------------------- limit


def test_too_many_stop_a_run(tmp_path, caplog):
    log = BadSampleLog(tmp_path / "deep" / "bad.jsonl", max_share=0.05)
    bad = [BadSample("k", "s", "unreadable_image", "r"), BadSample("ö", "s", "not_utf8", "r")]
    log.add(bad * 10, good=100, batch=0)
    with caplog.at_level("WARNING"):
        assert log.check(log.totals()) == pytest.approx(20 / 120)  # too few seen to tell
        log.add([], good=MIN_SEEN, batch=1)
        assert log.check(log.totals()) == pytest.approx(20 / 620)
    assert ["20 of 120" in r.getMessage() for r in caplog.records] == [True]  # warned of once
    log.add(bad * 7, good=0, batch=2)
    with pytest.raises(
        RunError,
        match=r"34 of 634 .*17 unreadable_image, 17 not_utf8.*bad\.jsonl.*max_bad_share",
    ):
        log.check(log.totals())
    assert lines(log.path)[1] == {
        "batch": 0, "key": "ö", "shard": "s", "kind": "not_utf8", "reason": "r",
    }  # fmt: skip

    for share in (-0.1, 5, float("nan")):
        with pytest.raises(InputError, match="max_bad_share"):
            BadSampleLog(max_share=share)
