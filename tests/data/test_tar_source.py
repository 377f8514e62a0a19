"""Shards written by the standard library, read back by position; damaged ones are refused."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import pytest

from tcl_jax.data.tar_source import TarSource, TarSourceError, expand_braces


def write_shard(path: Path, members: dict[str, bytes], tar_format: int = tarfile.GNU_FORMAT) -> str:
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def pairs(*keys: str) -> dict[str, bytes]:
    members = {}
    for key in keys:
        members |= {f"{key}.jpg": b"image of " + key.encode(), f"{key}.txt": f"é {key}".encode()}
    return members


@pytest.fixture
def shards(tmp_path: Path) -> str:
    for i in range(3):
        write_shard(tmp_path / f"part-{i:03d}.tar", pairs(f"{i}a", f"{i}b"))
    return str(tmp_path)


def test_pairs_in_order(shards):
    source = TarSource([shards + "/part-{000..002}.tar"])
    assert len(source) == 6
    assert [item["key"] for item in source] == ["0a", "0b", "1a", "1b", "2a", "2b"]
    assert source[3] == {"image": b"image of 1b", "text": "é 1b", "key": "1b"}
    with pytest.raises(IndexError):
        source[6]
    with pytest.raises(IndexError):
        source[-1]


def test_globs_lists_and_repeated_files(shards):
    assert len(TarSource([shards + "/part-*.tar", shards + "/part-{000,002}.tar"])) == 6
    listed = TarSource([shards + "/part-{002,000}.tar"])
    assert [item["key"] for item in listed] == ["2a", "2b", "0a", "0b"]


def test_expand_braces():
    assert expand_braces("a{08..10}{x,y}") == ["a08x", "a08y", "a09x", "a09y", "a10x", "a10y"]
    assert expand_braces("plain") == ["plain"]
    for pattern in ("a{1..", "a{3..1}"):
        with pytest.raises(ValueError, match="pattern"):
            expand_braces(pattern)
        with pytest.raises(TarSourceError, match="pattern"):
            TarSource([pattern])


def test_pickle_and_repr(shards):
    source = TarSource([shards + "/part-*.tar"])
    copy = pickle.loads(pickle.dumps(source))
    assert list(copy) == list(source)
    assert repr(copy) == repr(source) == f"TarSource(['{shards}/part-*.tar'])"


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_formats_and_folders(tmp_path, tar_format):
    folder = "/".join(["x" * 60] * 2)
    members = pairs("plain", f"{folder}/deep")
    if tar_format != tarfile.USTAR_FORMAT:
        members |= pairs("y" * 150, "schön")
    write_shard(tmp_path / "a.tar", members, tar_format)
    source = TarSource([str(tmp_path / "a.tar")])
    found = {item["key"]: (item["image"], item["text"]) for item in source}
    expected = {
        k[:-4]: (v, members[k[:-4] + ".txt"].decode()) for k, v in members.items() if ".jpg" in k
    }
    assert found == expected


def test_other_members_are_passed_over(tmp_path):
    members = {
        "a.png": b"A",
        "a.json": b"{}",
        "a.txt": b"\xff caption",
        "lonely.jpg": b"L",
        "README": b"",
        "b.mask.png": b"M",
        "b.txt": b"b",
        "b.WEBP": b"B",
        "c.d.txt": b"c",
    }
    source = TarSource([write_shard(tmp_path / "a.tar", members)])
    assert [(item["key"], item["image"]) for item in source] == [("a", b"A"), ("b", b"B")]
    assert source[0]["text"] == "\ufffd caption"


def test_missing_shards_are_named(shards):
    with pytest.raises(
        TarSourceError, match=r"2 tar shards are missing: .*part-003.tar, .*part-004"
    ):
        TarSource([shards + "/part-{000..004}.tar"])
    with pytest.raises(TarSourceError, match="nothing-"):
        TarSource([shards + "/nothing-*.tar"])
    with pytest.raises(TarSourceError, match="at least one"):
        TarSource([])


@pytest.mark.parametrize("keep", [0, 100, 700, 1024, 2000, 4096])
def test_truncated_shard_is_named(shards, keep):
    path = Path(shards) / "part-001.tar"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TarSourceError, match=r"1 of 3 .*part-001\.tar \((cut short|not a tar)"):
        TarSource([shards + "/part-*.tar"])


def test_other_files_are_refused(tmp_path):
    for name, data in {"zipped": b"\x1f\x8b" + bytes(600), "text": b"hello " * 200}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(TarSourceError, match=f"{name} .*not a plain tar file"):
            TarSource([str(tmp_path / name)])


def test_no_pairs_is_an_error(tmp_path):
    path = write_shard(tmp_path / "images-only.tar", {"a.jpg": b"A"})
    with pytest.raises(TarSourceError, match=r"no image-caption pairs in .*images-only\.tar"):
        TarSource([path])


def test_shard_that_shrinks_later_is_named(shards):
    source = TarSource([shards + "/part-*.tar"])
    path = Path(shards) / "part-002.tar"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(TarSourceError, match=r"part-002\.tar: pair '2b' .*changed"):
        source[5]
    path.unlink()
    with pytest.raises(TarSourceError, match=r"part-002\.tar"):
        source[4]
    assert source[0]["key"] == "0a"
