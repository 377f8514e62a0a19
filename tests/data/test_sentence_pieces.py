"""TIPS's tokenizer, on a small model that SentencePiece trains here."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from tcl_jax.data.sentence_pieces import LENGTH, SentencePieceTokenizer
from tcl_jax.errors import InputError
from tests.tokenizer_files import train_pieces

PIECES = 60


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tips") / "tokenizer.model"
    train_pieces(file)
    return file


def size_of(file: Path) -> int:
    from sentencepiece import SentencePieceProcessor

    return int(SentencePieceProcessor(model_file=str(file)).get_piece_size())


def test_texts_become_ids(model_file: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    tokenizer = SentencePieceTokenizer(str(model_file), size_of(model_file))
    expected = SentencePieceProcessor(model_file=str(model_file)).encode("a photo of a cat")
    rows = pickle.loads(pickle.dumps(tokenizer))(["A photo of a CAT", "", "cat " * LENGTH])
    assert rows.shape == (3, LENGTH) and rows.dtype == np.int32
    np.testing.assert_array_equal(rows[0], np.pad(expected, (0, LENGTH - len(expected))))
    assert not rows[1].any() and rows[2].all()  # neither start nor end, and the tail is cut
    with pytest.raises(TypeError, match="single string"):
        tokenizer("a cat")


def test_where_the_file_is_looked_for(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"weights.*tokenizer\.model.*tokenizer_file"):
        SentencePieceTokenizer(None, PIECES)(["a cat"])
    size, folder = size_of(model_file), model_file.parent
    beside = SentencePieceTokenizer(None, size, folder=str(folder))(["a cat"])
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/tokenizer.model").write_bytes(model_file.read_bytes())
    np.testing.assert_array_equal(SentencePieceTokenizer(None, size)(["a cat"]), beside)


def test_what_cannot_be_used_is_named(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.model.*32000"):
        SentencePieceTokenizer(str(model_file), 32000)(["a cat"])
    broken = tmp_path / "broken.model"
    broken.write_bytes(b"no model")
    for file in (broken, tmp_path / "absent.model"):
        with pytest.raises(InputError, match=file.name):
            SentencePieceTokenizer(str(file), PIECES)(["a cat"])
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(InputError, match=r"tcl_jax\[tips\]"):
        SentencePieceTokenizer(str(model_file), PIECES)(["a cat"])
