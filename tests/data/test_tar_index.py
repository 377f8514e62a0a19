"""Index files: kept, refused when stale or damaged, made by several processes, quickly opened."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tcl_jax.data import shard_names, tar_index
from tcl_jax.data.shard_names import find_shards
from tcl_jax.data.tar_index import open_indexes
from tcl_jax.data.tar_source import TarSource
from tcl_jax.errors import InputError
from tests.data.shards import pairs, wait_for_another_time, write_shard

ROOT = Path(__file__).parent.parent.parent
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


def test_headers_are_read_once(folder: Path, made: list[str]) -> None:
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


def test_index_of_another_rule_is_made_again(
    folder: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_all(folder)
    monkeypatch.setattr(tar_index, "RULE", tar_index.RULE ^ 1)  # as with another list of suffixes
    open_all(folder)
    assert len(made) == 12


def test_damaged_index_is_made_again(folder: Path, made: list[str]) -> None:
    expected = keys(open_all(folder))
    path = folder / "03.tar.index"
    whole = path.read_bytes()
    damaged = [whole[:cut] for cut in (0, 7, 60, len(whole) - 1)] + [whole + b"x", b"x" * 500]
    for place in range(0, len(whole), 9):
        damaged.append(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    shards = find_shards([str(folder / "03.tar")]).shards
    for content in damaged:
        path.write_bytes(content)
        made.clear()
        open_indexes(shards)
        assert made == ["03.tar"]
        assert path.read_bytes() == whole
    assert keys(open_all(folder)) == expected


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


def test_interrupted_work_is_kept(
    folder: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = tar_index._make

    def interrupted(shard):
        if len(made) == 3:
            raise KeyboardInterrupt
        return recording(shard)

    monkeypatch.setattr(tar_index, "_make", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_all(folder)
    assert len(list(folder.iterdir())) == 6 + 3
    monkeypatch.setattr(tar_index, "_make", recording)
    open_all(folder)
    assert made == NAMES


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


def test_two_processes_may_race(folder: Path) -> None:
    code = (
        "import sys; from tcl_jax.data.tar_source import TarSource\n"
        "s = TarSource([sys.argv[1] + '/*.tar'])\n"
        "print(s.fingerprint, [p['key'] for p in s])"
    )
    command = [sys.executable, "-c", code, str(folder)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)
    ]
    outputs = [process.communicate()[0] for process in running]
    assert outputs[0] and outputs[0] == outputs[1]
    assert {p.name for p in folder.iterdir()} == {*NAMES, *(f"{name}.index" for name in NAMES)}


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
    """20 shards of 10,000 pairs: no more to hold and to pickle than 20 of one."""
    sizes = {}
    for count in (1, 10_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        for i in range(20):
            (folder / f"{i:05d}.tar").write_bytes(b"")
            (found,) = find_shards([f"{folder}/{i:05d}.tar"]).shards
            pair = tar_index.Pair(b"000000000", (512, 30_000), (31_744, 60), (0, 0))
            content = tar_index._encode(found, [pair] * count, {})
            (folder / f"{i:05d}.tar.index").write_bytes(content)
        begin = time.process_time()
        source = open_all(folder)
        assert time.process_time() - begin < 2
        assert len(source) == 20 * count
        sizes[count] = len(pickle.dumps(source))
    assert sizes[10_000] - sizes[1] < 20 * 30
    assert len(content) < 50 * 10_000
