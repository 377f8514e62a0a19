"""Token ids against the golden ones."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from tcl_jax.data.tokenizer import END_ID, START_ID, ClipTokenizer, clean
from tcl_jax.errors import InputError
from tests.tokenizer_files import write_tokenizer_file

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "tokenizer.json").read_text())


@pytest.fixture(scope="module")
def tokenizer() -> ClipTokenizer:
    return ClipTokenizer()


@pytest.mark.parametrize("index", range(len(GOLDEN["texts"])))
def test_awkward_strings(tokenizer, index):
    np.testing.assert_array_equal(tokenizer([GOLDEN["texts"][index]])[0], GOLDEN["tokens"][index])


def test_class_names(tokenizer):
    rows = tokenizer(GOLDEN["class_names"])
    assert rows.shape == (len(GOLDEN["class_names"]), 77)
    assert rows.dtype == np.int32
    for row, ids, name in zip(
        rows, GOLDEN["class_tokens_identity"], GOLDEN["class_names"], strict=True
    ):
        assert row.tolist() == ids + [0] * (77 - len(ids)), name


def test_truncation_keeps_the_end():
    row = ClipTokenizer(5)(["one two three four five six"])[0]
    assert row[0] == START_ID
    assert row[-1] == END_ID
    full = ClipTokenizer(77)(["one two three four five six"])[0]
    np.testing.assert_array_equal(row[:4], full[:4])


def test_marker_swallowed_by_punctuation_is_text(tokenizer):
    inside = tokenizer(["a!<|endoftext|>"])[0].tolist()
    assert inside.count(END_ID) == 1
    outside = tokenizer(["a <|endoftext|> b"])[0].tolist()
    assert outside.count(END_ID) == 2
    assert outside[outside.index(END_ID) + 1] == tokenizer(["b"])[0][1]


@pytest.mark.parametrize(
    "text",
    ["!<|startoftext|>", "<|endoftext", "< |endoftext| >", "<|endoftext |>", "|<|endoftext|>",
     "<start_of_text>", "<end_of_text>", "[SEP]", "</w>", "a</w>b"],
)  # fmt: skip
def test_control_tokens_are_not_forged(tokenizer, text):
    row = tokenizer([text])[0].tolist()
    end = row.index(END_ID)
    assert row[0] == START_ID and START_ID not in row[1:]
    assert end > 1 and not any(row[end + 1 :])


def test_fast_path_of_plain_text_changes_nothing():
    assert clean("  Salt & <b>Pepper</b> &amp;lt; ") == "salt & <b>pepper</b> <"
    assert clean("A  Dog's\tday") == "a dog's day"
    assert clean("“Schön”\x1b[31m") == '"schön"'


def test_pickle_before_and_after_use(tokenizer, tmp_path):
    write_tokenizer_file(tmp_path)
    of_file = ClipTokenizer(tokenizer_file=tmp_path / "tokenizer.json")
    for original in (ClipTokenizer(9), tokenizer, of_file):
        before = pickle.loads(pickle.dumps(original))
        expected = original(["a cat"])
        for copy in (before, pickle.loads(pickle.dumps(original))):
            np.testing.assert_array_equal(copy(["a cat"]), expected)
        assert len(pickle.dumps(original)) < 1000
        assert eval(repr(original)).__getstate__() == original.__getstate__()


def test_bad_input(tokenizer):
    assert tokenizer([]).shape == (0, 77)
    with pytest.raises(TypeError, match="give a list"):
        tokenizer("a cat")
    with pytest.raises(ValueError, match="context_length=1"):
        ClipTokenizer(1)


def test_a_vocabulary_of_ones_own(tmp_path):
    theirs = write_tokenizer_file(tmp_path)
    ours = ClipTokenizer(tokenizer_file=tmp_path / "tokenizer.json")
    texts = ["The cat, it's 1 photo!", "caf\u00e9 \U0001f600", "", "\u6570\u5b57 <|endoftext|> b"]
    for row, text in zip(ours(texts), texts, strict=True):
        ids = theirs(text)["input_ids"]
        assert row.tolist() == ids + [0] * (77 - len(ids))
    assert ours.vocab_size == 600
    # Hugging Face's takes a marker and composes letters where CLIP does neither.
    inside, decomposed = ours(["a!<|endoftext|>", "e\u0301"])
    assert inside.tolist().count(599) == 1
    assert decomposed.tolist() == ours(["\u00e9"])[0].tolist()  # by ftfy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.unlink(), "cannot be read"),
        (lambda file: file.write_bytes(b"{]"), "cannot be read"),
        (lambda file: file.write_text('{"version": "1.0", "model": {"type": "WordLevel", "vocab": '
                                      '{"<|endoftext|>": 0}, "unk_token": "a"}}'),
         "not a CLIP's: .*WordLevel"),
        (lambda file: file.write_text(file.read_text().replace("<|startoftext|>", "<s>")),
         "not a CLIP's.*startoftext.*the id None"),
    ],
)  # fmt: skip
def test_bad_tokenizer_file(tmp_path, change, message):
    write_tokenizer_file(tmp_path)
    path = tmp_path / "tokenizer.json"
    change(path)
    with pytest.raises(InputError, match=message):
        ClipTokenizer(tokenizer_file=path)(["a cat"])
