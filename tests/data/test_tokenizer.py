"""Token ids against the golden ones, and the template sets."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from tcl_jax.data.templates import TEMPLATES, fill
from tcl_jax.data.tokenizer import END_ID, START_ID, ClipTokenizer, clean

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


def test_fast_path_of_plain_text_changes_nothing():
    assert clean("  Salt & <b>Pepper</b> &amp;lt; ") == "salt & <b>pepper</b> <"
    assert clean("A  Dog's\tday") == "a dog's day"
    assert clean("“Schön”\x1b[31m") == '"schön"'


def test_pickle_before_and_after_use(tokenizer):
    tokenizer(["warm"])
    for original in (ClipTokenizer(9), tokenizer):
        copy = pickle.loads(pickle.dumps(original))
        np.testing.assert_array_equal(copy(["a cat"]), original(["a cat"]))
    assert len(pickle.dumps(tokenizer)) < 1000


def test_no_texts(tokenizer):
    assert tokenizer([]).shape == (0, 77)


def test_bad_input(tokenizer, monkeypatch):
    with pytest.raises(TypeError, match="give a list"):
        tokenizer("a cat")
    with pytest.raises(ValueError, match="context_length=1"):
        ClipTokenizer(1)
    monkeypatch.setitem(sys.modules, "instant_clip_tokenizer", None)
    with pytest.raises(ImportError, match="pip install instant-clip-tokenizer"):
        ClipTokenizer()(["a cat"])


def test_template_sets_are_the_golden_ones():
    assert {name: list(t) for name, t in TEMPLATES.items()} == GOLDEN["templates"]


def test_fill():
    assert fill("plural", "cat") == ["a photo of cats."]
    assert fill(["{} and {0}", "{}"], "{x}") == ["{x} and {0}", "{x}"]
    assert len(fill("custom", "cat")) == 9


@pytest.mark.parametrize(
    ("templates", "message"),
    [("customs", "identity, simple"), ([], "empty"), (["a photo"], "'a photo'")],
)
def test_fill_bad_input(templates, message):
    with pytest.raises(ValueError, match=message):
        fill(templates, "cat")
