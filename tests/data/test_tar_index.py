"""Index files: kept, refused when stale or damaged, made by several processes, quickly opened."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from tcl_jax.data import shard_names, tar_index
from tcl_jax.data.shard_names import find_shards
from tcl_jax.data.tar_index import open_indexes
from tcl_jax.data.tar_source import TarSource
from tcl_jax.errors import InputError
from tests.data.shards import pairs, wait_for_another_time, write_shard

NAMES = [f"{i:02d}.tar" for i in range(6)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tcl_jax" / "index"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shards").mkdir()
    for i, name in enumerate(NAMES):
        write_shard(tmp_path / "shards" / name, pairs(*(f"{i}-{j}" for j in range(3))))
    return tmp_path / "shards"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards whose headers are read, in their order: by one thread."""
    names: list[str] = []
    real = tar_index._make

    def recording(shard):
        names.append(os.path.basename(shard.address))
        return real(shard)

    monkeypatch.setattr(tar_index, "_make", recording)
    monkeypatch.setattr(shard_names, "_THREADS", 1)
    return names


def open_all(folder: Path, **options) -> TarSource:
    return TarSource([f"{folder}/*.tar"], **options)


def keys(source: TarSource) -> list[str]:
    return [pair["key"] for pair in source]


def test_headers_are_read_once(
    folder: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = keys(open_all(folder))
    assert first == [f"{i}-{j}" for i in range(6) for j in range(3)]
    assert made == NAMES
    assert {p.name for p in folder.iterdir()} == {*NAMES, *(f"{name}.index" for name in NAMES)}
    # Index files lie where a pattern looks, and are no shards.
    assert keys(TarSource([f"{folder}/*"])) == first and made == NAMES
    write_shard(folder / "02.tar", pairs("new", "er"))
    wait_for_another_time(folder / "02.tar")
    wait_for_another_time(folder / "04.tar")  # only its time differs
    assert keys(open_all(folder))[6:8] == ["new", "er"]
    assert made[6:] == ["02.tar", "04.tar"]
    monkeypatch.setattr(tar_index, "RULE", tar_index.RULE ^ 1)  # as with another list of suffixes
    open_all(folder)
    assert made[8:] == NAMES


def test_damaged_index_is_made_again(folder: Path, made: list[str]) -> None:
    expected = keys(open_all(folder))
    path = folder / "03.tar.index"
    whole = path.read_bytes()
    of_another_version = whole.replace(b'"pairs"', b'"paris"')
    for content in (b"", whole[:60], whole[:-1], whole + b"x", b"\xff" * 500, of_another_version):
        path.write_bytes(content)
        made.clear()
        assert keys(open_all(folder)) == expected
        assert made == ["03.tar"]
        assert path.read_bytes() == whole


def test_where_an_index_goes(folder: Path, cache: Path, tmp_path: Path, made: list[str]) -> None:
    for name in NAMES:
        (folder / f"{name}.index").mkdir()  # nothing can be written there
    expected = keys(open_all(folder))
    assert keys(open_all(folder)) == expected
    assert len(list(cache.iterdir())) == 6 and len(made) == 6
    # A folder of its own holds the indexes of shards of one name.
    (tmp_path / "other").mkdir()
    write_shard(tmp_path / "other" / "00.tar", pairs("elsewhere"))
    patterns = [f"{folder}/00.tar", f"{tmp_path}/other/00.tar"]
    for _ in range(2):
        source = TarSource(patterns, index_dir=str(tmp_path / "indexes"))
        assert keys(source) == ["0-0", "0-1", "0-2", "elsewhere"]
    assert len(made) == 8 and len(list((tmp_path / "indexes").iterdir())) == 2
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"0\d\.tar .*data.index_dir"):
        open_all(folder, index_dir=str(tmp_path / "file" / "below"))
    with pytest.raises(InputError, match="index_dir=.*gs://bucket"):
        open_all(folder, index_dir="gs://bucket")


def test_processes_begin_with_their_own_share(
    folder: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And take over from the others what they have made by then."""
    open_all(folder, process_index=1, process_count=2)
    assert made == ["01.tar", "03.tar", "05.tar", "00.tar", "02.tar", "04.tar"]
    for path in folder.glob("*.index"):
        path.unlink()
    made.clear()
    recording = tar_index._make

    def while_another_works(shard):
        if not made:  # the other is fast: it makes its whole share in the meantime
            monkeypatch.setattr(tar_index, "_make", recording)
            open_indexes(find_shards([f"{folder}/{{01,03,05}}.tar"]).shards)
        return recording(shard)

    monkeypatch.setattr(tar_index, "_make", while_another_works)
    assert len(open_all(folder, process_index=0, process_count=2)) == 18
    assert made == ["01.tar", "03.tar", "05.tar", "00.tar", "02.tar", "04.tar"]


def test_fingerprint_follows_the_pairs_and_not_the_place(folder: Path, tmp_path: Path) -> None:
    before = open_all(folder).fingerprint
    assert before == "34cb86e4c1254192"  # as checkpoints have it
    for path in folder.glob("*.tar"):
        wait_for_another_time(path)
    folder.rename(tmp_path / "moved")
    assert open_all(tmp_path / "moved").fingerprint == before
    (tmp_path / "moved" / "05.tar").unlink()
    assert open_all(tmp_path / "moved").fingerprint != before


def test_many_pairs_cost_little(tmp_path: Path) -> None:
    """No more to hold and to pickle than one."""
    path = tmp_path / "0.tar"
    path.write_bytes(b"")
    sizes = []
    for count in (1, 10_000):
        (found,) = find_shards([str(path)]).shards
        pair = tar_index.Pair(b"000000000", (512, 30_000), (31_744, 60), (0, 0))
        content = tar_index._encode(found, [pair] * count, {})
        (tmp_path / "0.tar.index").write_bytes(content)
        source = TarSource([str(path)])
        assert len(source) == count
        sizes.append(len(pickle.dumps(source)))
    assert sizes[1] - sizes[0] < 30
    assert len(content) < 50 * 10_000
