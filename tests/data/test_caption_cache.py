"""Embeddings of captions: written whole, read for their own example only, refused when stale."""

from __future__ import annotations

import json
import pickle
import resource
import sys
from pathlib import Path

import numpy as np
import pytest

from tcl_jax.data.bad_samples import BadSampleLog
from tcl_jax.data.caption_cache import (
    caption_path,
    embed_command,
    read_embeddings,
    write_caption_file,
)
from tcl_jax.data.mixture import Mixture
from tcl_jax.data.tar_index import ShardIndex
from tcl_jax.data.tar_source import TarSource
from tcl_jax.data.transforms import Compose, RandomResizedCrop
from tcl_jax.errors import InputError
from tests.data.shards import pairs, picture, wait_for_another_time, write_shard
from tests.data.streams import iterate, numbers, take

TOWER, OTHER = "0123456789abcdef", "fedcba9876543210"
DIMENSION = 5


def embedding(caption: str) -> np.ndarray:
    """One that no other caption has; zeros for what is no caption."""
    if not caption.strip():
        return np.zeros(DIMENSION, np.float32)
    rng = np.random.default_rng(list(caption.encode("utf-8", "surrogatepass")))
    return rng.normal(size=DIMENSION).astype(np.float32)


def embed(source: TarSource, tower: str = TOWER) -> None:
    for number, index in enumerate(source.indexes):
        captions = source.captions(number)
        rows = [embedding(c) for several in captions for c in several]
        write_caption_file(index, tower, captions, np.stack(rows))


def members(*numbers: int, bad: bool = False) -> dict[str, bytes]:
    """Pictures whose captions are their numbers; of bad ones every fifth cannot be used. Every
    fourth has its number several times."""
    found = {}
    for i in numbers:
        kind = i // 5 % 4 if bad and i % 5 == 3 else -1
        found[f"{i:03d}.jpg"] = b"<html>" if kind in (0, 1) else picture(i)
        if kind == 2:
            found[f"{i:03d}.json"] = b'{"url": "x"}'
        elif kind < 0 and i % 4 == 1:
            found[f"{i:03d}.json"] = json.dumps([f"{i}", "", f"{i}00", f"{i}0000"]).encode()
        else:
            found[f"{i:03d}.txt"] = b" \n" if kind == 3 else str(i).encode()
    return found


@pytest.fixture
def shard(tmp_path: Path) -> tuple[TarSource, ShardIndex]:
    """Five pairs, one without caption and one with two, of which one is no whole text."""
    content = {**pairs("a", "b", "c"), "d.jpg": b"D", "d.json": b"{}", "e.jpg": b"E"}
    content["e.json"] = b'{"caption": ["half \\ud83d", "e"]}'
    source = TarSource([write_shard(tmp_path / "a.tar", content)])
    return source, source.indexes[0]


# -------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("width", [4, 2])
def test_rows_come_back_bit_by_bit(shard: tuple[TarSource, ShardIndex], width: int) -> None:
    source, index = shard
    captions = source.captions(0)
    assert captions == [["é a"], ["é b"], ["é c"], [], ["half \ud83d", "e"]]
    assert captions == [source[i]["text"] for i in range(5)]
    rows = np.stack([embedding(caption) for several in captions for caption in several])
    if width == 2:  # as bfloat16 has them
        rows = (rows.view(np.uint32) & 0xFFFF0000).view(np.float32)
    size = write_caption_file(index, TOWER, captions, rows)
    path = caption_path(index, TOWER)
    assert size == 2 * 5 * (DIMENSION * width + 4) < path.stat().st_size < size + 200
    assert path.name.startswith(f"a.tar.{TOWER}-") and path.parent == Path(index.path).parent
    read = [read_embeddings(path, i, several) for i, several in enumerate(captions)]
    assert all(one.dtype == np.float32 and one.flags.writeable for one in read)
    assert [len(one) for one in read] == [1, 1, 1, 0, 2]
    np.testing.assert_array_equal(np.concatenate(read), rows)
    for other in (["é b"], ["é a", "é b"], ["é a", "", ""]):
        with pytest.raises(InputError, match=f"{path.name}: row 0 .*embed_captions"):
            read_embeddings(path, 0, other)
    whole = path.read_bytes()
    for content in (b"", whole[:20], whole[:-1], whole[:-3] + b"xxx"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"{path.name}: row 4 .*embed_captions"):
            read_embeddings(path, 4, captions[4])
    path.unlink()
    with pytest.raises(InputError, match=f"{path.name}: row 0 .*embed_captions"):
        read_embeddings(path, 0, ["é a"])
    path.mkdir()
    with pytest.raises(InputError, match=f"{path.name}.*data.index_dir"):
        embed(source)


# ------------------------------------------------------------------------------- what is refused


def test_shards_without_embeddings_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(12):
        write_shard(tmp_path / f"{i:02d}.tar", pairs(f"{i}a", f"{i}b"))
    pattern = f"{tmp_path}/*"
    source = TarSource([pattern])
    monkeypatch.setattr(sys, "argv", ["main", "--config=c.py", "--config.data.shards=('a b',)",
                                      "--workdir=w"])  # fmt: skip
    command = "python -m tcl_jax.embed_captions --config=c.py '--config.data.shards=("
    assert embed_command().startswith(command) and "workdir" not in embed_command()
    with pytest.raises(InputError) as error:
        TarSource([pattern], text_tower=TOWER)
    assert "12 of 12 tar shards have no embeddings" in str(error.value)
    assert "00.tar" in str(error.value) and embed_command() in str(error.value)
    embed(source, OTHER)  # another text tower's do not count
    embed(source)
    # Files of embeddings lie where a pattern looks, and are no shards.
    whole = TarSource([pattern], text_tower=TOWER)
    assert len(whole) == 24 and whole.fingerprint == source.fingerprint
    caption_path(source.indexes[3], TOWER).unlink()
    write_shard(tmp_path / "07.tar", pairs("7a", "7bb"))
    wait_for_another_time(tmp_path / "07.tar")
    with pytest.raises(InputError, match=r"2 of 12 .*03\.tar, .*07\.tar\."):
        TarSource([pattern], text_tower=TOWER)


# ----------------------------------------------------------------------------------- in batches


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> list[Mixture]:
    """The same mixture without and with embeddings: 45 and 20 pairs, every fifth of 45 is bad."""
    folder = tmp_path_factory.mktemp("mixture")
    for name, shard, captions in (("x", 0, range(20)), ("x", 1, range(20, 45)),
                                 ("y", 0, range(100, 120))):  # fmt: skip
        content = members(*captions, bad=name == "x")
        write_shard(folder / f"{name}{shard}.tar", content)
    patterns = {"x": f"{folder}/x*.tar", "y": f"{folder}/y*.tar"}
    for pattern in patterns.values():
        embed(TarSource([pattern]))
    return [
        Mixture({n: TarSource([p], text_tower=t) for n, p in patterns.items()}, {"x": 1, "y": 2})
        for t in (None, TOWER)
    ]


def test_each_row_has_the_embedding_of_its_own_caption(mixture: list[Mixture]) -> None:
    """Of the one that is drawn in the end, also when resumed."""
    (plain, cached), crop = mixture, Compose((RandomResizedCrop(8),))
    log = BadSampleLog()
    with_tokens = iterate(plain, 8, 2, crop, bad_samples=log)
    expected = take(with_tokens, 16)
    assert log.totals()[1:].sum() >= 4  # and others took their places
    seen = set(numbers(expected))
    assert {n for n in seen if 1000 < n < 10_000} and {n for n in seen if n >= 10_000}
    assert min(seen) < 20 and seen & set(range(20, 45)) and max(seen) >= 100
    for begin in (0, 7):
        iterator = iterate(cached, 8, 2, crop)
        iterator.set_state({**with_tokens.get_state(), "next_batch": begin})
        for ours, theirs in zip(take(iterator, 16 - begin), expected[begin:], strict=True):
            assert set(ours) == {"image", "text_embedding"}
            np.testing.assert_array_equal(ours["image"], theirs["image"])
            assert ours["text_embedding"].dtype == np.float32
            texts = [embedding(str(number)) for number in theirs["tokens"][:, 0]]
            np.testing.assert_array_equal(ours["text_embedding"], np.stack(texts))
        iterator.close()
    with_tokens.close()


def test_more_shards_than_files_may_be_open(tmp_path: Path) -> None:
    for i in range(40):
        write_shard(tmp_path / f"{i:03}.tar", pairs(str(i)))
    embed(TarSource([f"{tmp_path}/*.tar"]))
    source = pickle.loads(pickle.dumps(TarSource([f"{tmp_path}/*.tar"], text_tower=TOWER)))
    source[0]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 8,
                                                limits[1]))  # fmt: skip
    try:
        for i in range(40):
            np.testing.assert_array_equal(source[i]["text_embedding"], [embedding(f"é {i}")])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
