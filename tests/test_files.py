"""Paths as people write them, and files that are whole or absent."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tcl_jax.files import sha256_of, user_path, whole_file, why_unwritable, write_json


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_home_directories(home: Path) -> None:
    assert user_path("~/a") == home / "a"
    assert user_path(Path("~")) == home
    assert user_path("a/~/b") == Path("a/~/b")
    assert user_path("~nobody-of-this-name/a") == Path("~nobody-of-this-name/a")


def test_a_file_takes_its_place_when_it_is_whole(home: Path) -> None:
    write_json("~/new/a.json", {"b": 1})
    assert json.loads((home / "new/a.json").read_text()) == {"b": 1}
    before = sha256_of(home / "new/a.json")
    with pytest.raises(ZeroDivisionError), whole_file("~/new/a.json") as part:
        part.write_text("half")
        raise ZeroDivisionError
    assert [path.name for path in (home / "new").iterdir()] == ["a.json"]
    assert sha256_of(home / "new/a.json") == before


def test_names_that_are_not_utf8_are_told_where_they_must_be(tmp_path: Path) -> None:
    latin = tmp_path / os.fsdecode(b"caf\xe9")
    assert why_unwritable(latin) is None
    assert "not UTF-8" in str(why_unwritable(latin, utf8=True))
    assert why_unwritable(tmp_path / "café", utf8=True) is None
