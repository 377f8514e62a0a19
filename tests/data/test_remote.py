"""Shards at fsspec addresses: the same pairs as from local files, and an end to every wait."""

from __future__ import annotations

import sys
from pathlib import Path

import fsspec
import huggingface_hub.constants
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry as registered

from tcl_jax.data import remote
from tcl_jax.data.remote import RemoteError, read_ranges
from tcl_jax.data.tar_source import TarSource
from tcl_jax.errors import InputError
from tests.data.shards import pairs, write_shard


class Unreliable(MemoryFileSystem):
    """A store that fails as often as `failures` says, and counts what it is asked for."""

    protocol = "unreliable"
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    failures = 0
    failure: Exception = OSError("503 Service Unavailable")
    reads: list[tuple[str, int]] = []  # noqa: RUF012
    ranges = True

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("unreliable://"))

    def cat_file(self, path, start=None, end=None, **kwargs):
        kind = type(self)
        if not kind.ranges:
            start = end = None
        data = super().cat_file(path, start=start, end=end, **kwargs)
        kind.reads.append((path, len(data)))
        if kind.failures:
            kind.failures -= 1
            raise kind.failure
        return data


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Unreliable]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_FIRST_WAIT_SECONDS", 0.0)
    fsspec.register_implementation("unreliable", Unreliable, clobber=True)
    Unreliable.store, Unreliable.pseudo_dirs, Unreliable.reads = {}, [""], []
    Unreliable.failures = 0
    MemoryFileSystem.store.clear()
    return Unreliable


def upload(tmp_path: Path, protocol: str, count: int = 3) -> str:
    """Shards 00000.tar, ... of three pairs each in a folder; its address."""
    folder = f"{protocol}://{tmp_path}/bucket" if protocol == "file" else f"{protocol}://bucket/a"
    system, path = fsspec.core.url_to_fs(folder)
    system.makedirs(path, exist_ok=True)
    for i in range(count):
        local = write_shard(tmp_path / "local.tar", pairs(*(f"{i}-{j}é" for j in range(3))))
        system.pipe_file(f"{path}/{i:05d}.tar", Path(local).read_bytes())
    return folder


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_patterns_and_pairs(tmp_path: Path, protocol: str, monkeypatch) -> None:
    folder = upload(tmp_path, protocol)
    expected = [f"{i}-{j}é" for i in range(3) for j in range(3)]
    for pattern in (f"{folder}/{{00000..00002}}.tar", f"{folder}/*.tar", f"{folder}/*", folder):
        source = TarSource([pattern])
        assert [pair["key"] for pair in source] == expected
    assert len(TarSource([f"{folder}/*.tar", f"{folder}/00001.tar"])) == 9
    assert source[4]["text"] == ["é 1-1é"] and source[4]["shard"].startswith(f"{protocol}://")
    with pytest.raises(InputError, match="2 of 5 are missing: .*/00003.tar, "):
        TarSource([f"{folder}/{{00000..00004}}.tar"])
    assert len(TarSource([f"{folder}/{{00000..00004}}.tar"], allow_missing=True)) == 9
    with pytest.raises(InputError, match="nothing/{0..1}.tar: 2 of 2"):
        TarSource([f"{folder}/nothing/{{0..1}}.tar"])
    # Small buffers: headers are found across their borders.
    monkeypatch.setattr(remote, "_BLOCK_BYTES", 700)
    index_dir = str(tmp_path / "indexes")
    assert [p["key"] for p in TarSource([f"{folder}/*.tar"], index_dir=index_dir)] == expected


def test_index_is_kept_beside_and_here(tmp_path: Path, store, monkeypatch) -> None:
    folder = upload(tmp_path, "unreliable")
    first = TarSource([f"{folder}/*.tar"])
    assert "/bucket/a/00001.tar.index" in store.store
    store.reads.clear()
    assert TarSource([f"{folder}/*.tar"]).fingerprint == first.fingerprint
    assert store.reads == []  # from this machine
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    assert TarSource([f"{folder}/*.tar"]).fingerprint == first.fingerprint
    assert {path.rpartition(".")[2] for path, _ in store.reads} == {"index"}
    # A new shard of another size: neither index fits any more.
    local = write_shard(tmp_path / "local.tar", pairs(*"abcdefghijklmnop"))
    store.store.pop("/bucket/a/00001.tar")
    store.current().pipe_file("/bucket/a/00001.tar", Path(local).read_bytes())
    assert len(TarSource([f"{folder}/*.tar"])) == 22


def test_ranges_near_and_far(store) -> None:
    data = bytes(range(256)) * 2000
    store.current().pipe_file("/f", data)
    store.reads.clear()
    for ranges in ([(10, 20), (40, 5)], [(40, 5), (10, 20)], [(0, 9), (400_000, 9)], [(5, 0)]):
        parts = read_ranges("unreliable://f", ranges)
        assert parts == [data[offset : offset + size] for offset, size in ranges]
    assert [size for _, size in store.reads] == [35, 35, 9, 9]  # one request where they are near
    with pytest.raises(InputError, match="5 bytes came where 100"):
        read_ranges("unreliable://f", [(len(data) - 5, 100)])


def test_failures_are_tried_again(tmp_path: Path, store, monkeypatch) -> None:
    source = TarSource([upload(tmp_path, "unreliable") + "/*.tar"])
    store.failures = remote.TRIES - 1
    assert source[0]["key"] == "0-0é"
    store.failures = 100
    with pytest.raises(RemoteError, match="00000.tar: .*503 Service Unavailable"):
        source[0]
    with pytest.raises(RemoteError, match=r"\.tar.*503 Service Unavailable"):
        TarSource(
            ["unreliable://bucket/a/*.tar"], index_dir=str(tmp_path / "new"), allow_missing=True
        )  # it may be there tomorrow
    monkeypatch.setattr(store, "failure", PermissionError("who are you"))
    with pytest.raises(InputError, match="00000.tar.*who are you"):
        source[0]
    store.failures = 0
    store.store.clear()
    with pytest.raises(InputError, match="00002.tar: pair 2 cannot be read"):
        source[8]


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (403, InputError, "0.tar.*access is refused"),
        (404, InputError, "0.tar: 1 of 1 are missing"),
        (503, RemoteError, "0.tar: no answer, tried 6 times"),
    ],
)
def test_what_web_servers_answer(store, monkeypatch, status: int, kind, message: str) -> None:
    """fsspec says "not found" of any answer to a look-up, and raises it from that answer."""

    class AnswerError(Exception):
        pass

    def info(*args, **kwargs):
        answer = AnswerError()
        answer.status = status
        raise FileNotFoundError("0.tar") from answer

    monkeypatch.setattr(store, "info", info)
    with pytest.raises(kind, match=message):
        TarSource(["unreliable://0.tar"], allow_missing=True)


def test_a_store_that_cannot_be_written(tmp_path: Path, store, monkeypatch, caplog) -> None:
    folder = upload(tmp_path, "unreliable")

    def refuse(*args, **kwargs):
        raise PermissionError("403")

    monkeypatch.setattr(store, "pipe_file", refuse)
    with caplog.at_level("INFO"):
        assert len(TarSource([f"{folder}/*.tar"])) == 9
    assert "00001.tar.index is kept on this machine only" in caplog.text
    store.reads.clear()
    assert len(TarSource([f"{folder}/*.tar"])) == 9 and store.reads == []


def test_web_servers(tmp_path: Path, store, monkeypatch) -> None:
    """A ? in an address begins a query there, and some send no ranges."""
    monkeypatch.setattr(remote, "_WEB", ("unreliable",))
    local = write_shard(tmp_path / "local.tar", pairs("a", "b"))
    store.current().pipe_file("/a.tar?token=1", Path(local).read_bytes())
    source = TarSource(["unreliable://a.tar?token=1"])
    assert len(source) == 2
    monkeypatch.setattr(store, "ranges", False)
    with pytest.raises(InputError, match="a.tar.* server sends"):
        source[0]


def test_the_hub_out_of_reach(monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    for pattern in ("{0..9}.tar", "*.tar"):
        address = f"hf://datasets/some/data/{pattern}"
        with pytest.raises(
            RemoteError, match="hf://datasets/some/data.*: no answer, tried 6 times"
        ):
            TarSource([address], allow_missing=True)


@pytest.mark.parametrize(
    ("protocol", "package"),
    [("s3", "s3fs"), ("http", "aiohttp"), ("nosuch", "nosuch")],
)
def test_the_package_that_lacks_is_named(protocol: str, package: str, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    monkeypatch.delitem(registered, protocol, raising=False)
    address = f"{protocol}://bucket/0.tar"
    with pytest.raises(InputError, match=f"{address}.*not installed .*{package}.*with pip"):
        TarSource([address])
