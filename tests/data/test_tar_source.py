"""Shards read back by position: conventions, what is missing, what is damaged."""

from __future__ import annotations

import gzip
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tcl_jax.data.shard_names import expand_braces
from tcl_jax.data.tar_source import TarSource
from tcl_jax.errors import InputError
from tests.data.shards import pairs, wait_for_another_time, write_shard


@pytest.fixture
def shards(tmp_path: Path) -> str:
    for i in range(3):
        write_shard(tmp_path / f"part-{i:03d}.tar", pairs(f"{i}a", f"{i}b"))
    return str(tmp_path)


def keys(*patterns: str, **options) -> list[str]:
    return [pair["key"] for pair in TarSource(patterns, **options)]


def test_pairs_in_order(shards):
    source = TarSource([shards + "/part-{000..002}.tar"])
    assert [item["key"] for item in source] == ["0a", "0b", "1a", "1b", "2a", "2b"]
    assert source[np.int64(3)] == {
        "image": b"image of 1b",
        "text": ["é 1b"],
        "key": "1b",
        "shard": f"{shards}/part-001.tar",
    }
    assert source.ranges == [range(0, 2), range(2, 4), range(4, 6)]
    for outside in (6, -1):
        with pytest.raises(IndexError):
            source[outside]
    copy = pickle.loads(pickle.dumps(source))
    assert list(copy) == list(source) and copy.fingerprint == source.fingerprint


def test_patterns(shards, tmp_path):
    assert len(keys(shards + "/part-*.tar", shards + "/part-{000,002}.tar")) == 6  # each file once
    assert keys(shards + "/part-{002,000}.tar") == ["2a", "2b", "0a", "0b"]
    assert len(keys(shards + "/part-{000..001}.t[a]r")) == 4
    (tmp_path / "deep" / "below").mkdir(parents=True)
    with pytest.raises(InputError, match="deep"):
        TarSource([f"{tmp_path}/deep"])
    write_shard(tmp_path / "deep" / "x[1].tar", pairs("deep"))
    assert len(keys(shards + "/**/*.tar")) == 7
    assert keys(shards + "/deep/x[1].tar") == ["deep"]  # a name before it is a pattern
    for name in ("notes.txt", "._part-000.tar", "old.tar.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b""))
    source = TarSource([f"{shards}/"], allow_missing=True)  # its own files, not those below
    assert len(source) == 6 and "1 of 4 tar shards cannot be read" in source.left_out


def test_expand_braces():
    assert expand_braces("a{08..10}{x,y}") == ["a08x", "a08y", "a09x", "a09y", "a10x", "a10y"]
    assert expand_braces("plain") == ["plain"]
    for pattern in ("a{1..", "a{3..1}", "a}b", "a{b{1..2}}"):
        with pytest.raises(InputError, match="pattern"):
            TarSource([pattern])


# ------------------------------------------------------------------------------------ conventions


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_formats_and_folders(tmp_path, tar_format):
    folder = "/".join(["x" * 60] * 2)
    names = ["plain", f"{folder}/deep", "./from/here"]
    if tar_format != tarfile.USTAR_FORMAT:
        names += ["y" * 150, "schön", "長い" * 60]
    members = pairs(*names)
    apart = sorted(members, key=lambda name: name.endswith(".jpg"))  # all texts before all images
    for order in (members, apart):
        listed = [(name, members[name]) for name in order]
        source = TarSource([write_shard(tmp_path / f"{len(listed)}.tar", listed, tar_format)])
        assert {item["key"]: (item["image"], item["text"]) for item in source} == {
            name: (members[f"{name}.jpg"], [f"é {name}"]) for name in names
        }


def test_captions_of_all_kinds(tmp_path):
    """KEY.txt and KEY.json as img2dataset writes them, and what other writers make of them."""
    members = {
        "0.jpg": b"0", "0.txt": b"text", "0.json": b'{"caption": "json"}',
        "1.JPEG": b"1", "1.text": "Ünï ☕".encode(),
        "2.WebP": b"2", "2.JSON": json.dumps({"caption": "käse", "url": "x"}).encode(),
        "7.jpg": b"7", "7.TXT": b" ",
        "8.jpg": b"8", "8.txt": b"\n", "8.json": b'{"caption": null, "TEXT": "of the JSON"}',
        "9.jpg": b"9", "9.json": b'["one", 2, null, "", {"text": "two"}]',
        "10.jfif": b"10", "10.json": b'{"url": "x", "captions": ["a", "b"], "alt": "c"}',
        "11.gif": b"11", "11.txt": "\ufeffmarked".encode(),
        "12.avif": b"12", "12.caption": "sechzehn ☕".encode("utf-16"),
        "13.jpg": b"13", "13.txt": b"caf\xe9", "13.json": '{"text": "café"}'.encode("utf-16"),
    }  # fmt: skip
    path = write_shard(tmp_path / "a.tar", members)
    found = list(TarSource([path]))
    assert all(item["image"] == item["key"].encode() for item in found)
    assert {item["key"]: item["text"] for item in found} == {
        "0": ["text"], "1": ["Ünï ☕"], "2": ["käse"], "7": [" "], "8": ["of the JSON"],
        "9": ["one", "", "two"], "10": ["a", "b"], "11": ["marked"], "12": ["sechzehn ☕"],
        "13": ["café"],
    }  # fmt: skip
    named = TarSource([path], caption_field="alt")
    assert [(pair["key"], pair["text"]) for pair in named if pair["text"]] == [
        ("9", ["one", ""]), ("10", ["c"]),
    ]  # fmt: skip
    assert "alt" in str(named[0]["problem"])
    assert named.fingerprint != TarSource([path]).fingerprint


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("json", b'{"caption": null, "id": 3}', "no_caption"),
        ("json", b'{"caption": 5}', "no_caption"),
        ("json", b"{not json", "no_caption"),
        ("json", b"[" * 100_000, "no_caption"),
        ("json", b'{"caption": "\\u0000"}', "no_caption"),
        ("json", b'{"caption": "caf\xe9"}', "not_utf8"),
        ("txt", b"Caf\xe9", "not_utf8"),
        ("txt", "a cat".encode("utf-16-le"), "not_utf8"),
        ("txt", b"\xff\xfea", "not_utf8"),
    ],
)
def test_why_there_is_no_caption(tmp_path, name, data, kind):
    members = {**pairs("good"), "bad.jpg": b"B", f"bad.{name}": data}
    source = TarSource([write_shard(tmp_path / "a.tar", members)])
    assert source[1]["text"] == [] and source[1]["problem"].kind == kind
    assert source[1]["problem"].reason
    assert source.captions(0) == [["é good"], []]


def test_equal_keys_and_dots_in_names(tmp_path):
    """Of equal keys the first counts; the key ends at the last dot; folders tell keys apart."""
    members = [
        *pairs("v1.2", "v1.3", "./000/7", "7").items(), ("7.jpg", b"again"), ("7.png", b"again"),
        ("7.seg.png", b"S"), ("7.cls.txt", b"3"), ("7.cls", b"3"), ("8.img.jpg", b"I"),
    ]  # fmt: skip
    paths = [write_shard(tmp_path / f"{i}.tar", members) for i in range(2)]
    source = TarSource(paths)
    assert [pair["key"] for pair in source] == ["v1.2", "v1.3", "./000/7", "7"] * 2
    assert source[3]["image"] == b"image of 7" and source[0]["text"] == ["é v1.2"]
    for part in ("whose key had come before: 4 (the first: 7.jpg in", "of other kinds: 2 (the "
                 "first: 7.cls in", "images without caption: 4 (the first: 7.seg.png",
                 "captions without image: 2 (the first: 7.cls.txt"):  # fmt: skip
        assert part in source.left_out


def test_other_members_are_named(tmp_path, caplog):
    passed_over = (
        "._a.jpg", ".hidden.jpg", "./.x/b.jpg", "__MACOSX/a/b.jpg", "PaxHeaders.7/b.jpg",
        "@eaDir/b.jpg", "x/Thumbs.db", "desktop.ini",
    )  # fmt: skip
    members = {
        "a.png": b"A", "a.json": b'"a"', "lonely.jpg": b"L", "README": b"", "lonely too.txt": b"l",
        "00000_stats.json": b"{}", **dict.fromkeys(passed_over, b""),
    }  # fmt: skip
    path = tmp_path / "a.tar"
    write_shard(path, members)
    with tarfile.open(path, "a") as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo(f"special-{kind.decode()}.jpg")
            info.type, info.linkname = kind, "a.png"
            tar.addfile(info)
    with caplog.at_level("INFO"):
        source = TarSource([str(path)])
    assert [(item["key"], item["image"], item["text"]) for item in source] == [("a", b"A", ["a"])]
    assert sorted(source.indexes[0].left_out.items()) == [
        ("captions without image", (2, "00000_stats.json")),
        ("images without caption", (1, "lonely.jpg")),
        ("links and sparse files", (2, "special-2.jpg")),
        ("members of other kinds", (1, "README")),
    ]
    assert f"left out: {source.left_out}" in caplog.text


# --------------------------------------------------------------------------------- what is missing


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("/part-{000..004}.tar", r"2 of 5 are missing: .*/part-003\.tar, .*/part-004\.tar"),
        ("/nothing-*.tar", r"nothing-\*\.tar"),
        ("/part-9.tar", r"part-9\.tar"),
        ("/..", r"/\.\.: a folder without tar files directly in it; it has \S+"),
    ],
)
def test_missing_shards_are_named(shards, pattern, message):
    with pytest.raises(InputError, match=message):
        TarSource([shards + pattern])


def test_missing_shards_may_be_allowed(shards, caplog):
    patterns = [f"{shards}/part-{{001..022}}.tar", shards + "/none/*.tar"]
    with caplog.at_level("WARNING"):
        assert keys(*patterns, allow_missing=True) == ["1a", "1b", "2a", "2b"]
    assert "20 of 22 are missing: " in caplog.text and "part-010.tar and 12 more" in caplog.text
    assert "/none/*.tar" in caplog.text
    for nothing in (["/none/{0..2}.tar"], []):
        with pytest.raises(InputError, match="none/0.tar|at least one"):
            TarSource([shards + pattern for pattern in nothing], allow_missing=True)


# --------------------------------------------------------------------------------- what is damaged


@pytest.mark.parametrize(
    "damage",
    [
        *(lambda data, keep=keep: data[:keep] for keep in (0, 100, 700, 1024, 1500, 2000, 4096)),
        gzip.compress,
        lambda data: b"<html>" + data,
        lambda data: data[:2048] + b"x" * 512 + data[2560:],
    ],
)
def test_damaged_shard_is_named(shards, damage, caplog):
    path = Path(shards) / "part-001.tar"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"1 of 3 .*part-001\.tar \(dam.*allow_missing_shards"):
        TarSource([shards + "/part-*.tar"])
    with pytest.raises(InputError, match=r"part-001\.tar"):  # nothing would be left
        TarSource([str(path)], allow_missing=True)
    with caplog.at_level("WARNING"):
        assert keys(shards + "/part-*.tar", allow_missing=True) == ["0a", "0b", "2a", "2b"]
    assert "part-001.tar (" in caplog.text


def test_no_pairs_is_an_error(tmp_path, caplog):
    for name, members in (("images-only", {"a.jpg": b"A"}), ("empty", {})):
        path = write_shard(tmp_path / f"{name}.tar", members)
        with pytest.raises(InputError, match=rf"no image-caption pairs in .*{name}\.tar.*KEY"):
            TarSource([path])
    with caplog.at_level("WARNING"):
        assert keys(path, write_shard(tmp_path / "full.tar", pairs("a"))) == ["a"]
    assert "no image-caption pairs in" in caplog.text


def test_shard_that_changes_later_is_named(shards):
    source = TarSource([shards + "/part-*.tar"])
    path = Path(shards) / "part-002.tar"
    for _ in range(2):
        with pytest.raises(InputError, match=r"part-002\.tar: pair 1"):
            path.write_bytes(path.read_bytes()[:600])
            source[5]
        with pytest.raises(InputError, match=r"part-002\.tar: its captions"):
            source.captions(2)
        # Of the same size, and other bytes.
        write_shard(path, pairs("3a", "3b"))
        wait_for_another_time(path)
    path.unlink()
    with pytest.raises(InputError, match=r"part-002\.tar: pair 0"):
        source[4]
    assert source[0]["key"] == "0a"


def test_large_sizes_are_read_from_headers(tmp_path):
    """A member beyond 8 GiB has its size in binary; the file has a hole there."""
    path = tmp_path / "a.tar"
    big = tarfile.TarInfo("big.jpg")
    big.size = 9 << 30
    write_shard(path, {"big.txt": b"too big", **pairs("after")})
    content = path.read_bytes()
    first = 1024  # header and content of big.txt
    with path.open("wb") as file:
        file.write(content[:first] + big.tobuf(tarfile.GNU_FORMAT))
        file.seek(first + 512 + big.size)
        file.write(content[first:])
    source = TarSource([str(path)])
    assert [pair["key"] for pair in source] == ["after"]
    assert source[0]["image"] == b"image of after"
