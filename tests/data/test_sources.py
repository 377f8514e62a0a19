"""Sources as configs/tcl.py describes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs.tcl import get_config
from tcl_jax.data.mixture import Mixture
from tcl_jax.data.sources import check_shards, make_source
from tcl_jax.data.tar_source import TarSource
from tcl_jax.data.tfds_source import TfdsSource
from tcl_jax.data.tfds_writer import prepare
from tcl_jax.errors import InputError
from tests.data.shards import picture, write_shard


@pytest.fixture
def data(tmp_path: Path) -> ConfigDict:
    """`config.data` with shards 0 to 2 of four pairs each."""
    for shard in range(3):
        members = {}
        for i in range(4):
            members |= {f"{shard}{i}.jpg": picture(i), f"{shard}{i}.txt": b"a cat"}
        write_shard(tmp_path / f"{shard}.tar", members)
    config = get_config()
    config.data.shards = (f"{tmp_path}/{{0..2}}.tar",)
    return config.lock().data


def test_papers_config_trains_on_what_is_there(data, tmp_path, caplog):
    data.shards = (f"{tmp_path}/{{0..5}}.tar", f"{tmp_path}/cc12m/*.tar")
    with caplog.at_level("WARNING"):
        source = make_source(data, 32)
    assert isinstance(source, TarSource) and len(source) == 12
    assert "3 of 6 are missing: " in caplog.text
    assert "cc12m/*.tar" in caplog.text
    data.index_dir = str(tmp_path / "indexes")
    make_source(data, 32, process_index=1, process_count=2)
    assert len(list((tmp_path / "indexes").iterdir())) == 3
    data.allow_missing_shards = False
    with pytest.raises(InputError, match="data.source='tar': .*/3.tar, .*/5.tar"):
        make_source(data, 32)


def test_tfds_alone_and_in_a_mixture(data, tmp_path):
    prepare(data.shards, name="cc", data_dir=str(tmp_path / "tfds"))
    records = {"name": "image_text_pairs/cc", "data_dir": str(tmp_path / "tfds"), "text": "text"}
    alone = ConfigDict({**data.to_dict(), "source": "tfds"})
    alone.tfds.update(records, key="key")
    source = make_source(alone, 32)
    assert isinstance(source, TfdsSource) and len(source) == 12
    assert source[5]["key"] == "11" and source[5]["text"] == ["a cat"]
    alone.tfds.split = "nothing"
    with pytest.raises(InputError, match="data.source='tfds'.*split 'nothing'"):
        make_source(alone, 32)
    with data.unlocked():
        data.source = "mixture"
        data.mixture.small = ConfigDict({"source": "tar", "shards": f"{tmp_path}/0.tar"})
        data.mixture.records = ConfigDict({"source": "tfds", "tfds": records})
    source = make_source(data, 32)
    assert isinstance(source, Mixture)
    assert [part.draws for part in source.parts] == [12, 4]
    assert source[0]["key"] == "records/0" and source[12]["key"] == "small/00"
    with data.unlocked():
        data.mixture.small.weight = 1.0
    with pytest.raises(InputError, match="one for each of records, small"):
        make_source(data, 32)
    with data.unlocked():
        data.mixture.records.weight = 1
    assert [part.draws for part in make_source(data, 32).parts] == [8, 8]
    data.mixture.small.shards = f"{tmp_path}/none.tar"
    for refuse in (check_shards, lambda data: make_source(data, 32)):
        with pytest.raises(InputError, match="'mixture': data.mixture.small: .*none.tar"):
            refuse(data)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("tar", r"data.mixture.one='tar' is no source; give its fields"),
        ({"source": "tar", "shard": ("a.tar",)}, "data.mixture.one=.*shard"),
        ({"source": "tfds", "tfds": {"nmae": "cc"}}, "data.mixture.one=.*nmae"),
        ({"source": "tfds", "tfds": "cc"}, "data.mixture.one=.*cc"),
        ({"source": "tar", "weight": "1"}, "data.mixture.one.weight='1'"),
        ({"source": "tar", "features": "x"}, r"one.features='x': .* config.data.features"),
        ({"source": "tar", "flip": 0.1}, r"one.flip=0.1: .* no flip of its own"),
    ],
)
def test_mistakes_in_a_mixture(data, part, message):
    with data.unlocked():
        data.source = "mixture"
        data.mixture.one = part
    with pytest.raises(InputError, match=message):
        make_source(data, 32)


@pytest.mark.parametrize("inner", ["shapes", "mixture"])
def test_what_a_mixture_cannot_have(data, inner):
    data.source = "mixture"
    with pytest.raises(InputError, match="data.mixture is empty"):
        make_source(data, 32)
    with data.unlocked():
        data.mixture.inner = ConfigDict({"source": inner})
    with pytest.raises(InputError, match=f"data.mixture.inner.source='{inner}'"):
        make_source(data, 32)


def test_unknown_source(data):
    data.source = "csv"
    with pytest.raises(InputError, match="data.source='csv'.* mixture, shapes, tar, tfds"):
        make_source(data, 32)
