"""Token ids against the golden ones, and the template sets."""

from __future__ import annotations

import itertools
import json
import pickle
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from tcl_jax.data.templates import TEMPLATES, fill
from tcl_jax.data.tokenizer import END_ID, START_ID, ClipTokenizer, clean
from tcl_jax.errors import InputError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "tokenizer.json").read_text())


MARKERS = ("<|startoftext|>", "<|endoftext|>")


def clip_merges() -> list[tuple[str, str]]:
    """CLIP's 48,894 merges, first to last, in the letters that stand for bytes.

    Read from what each id decodes to: a token is the merge of the two pieces into which all merges
    before it cut it. Half a UTF-8 sequence is decoded between bytes that make it whole.
    """
    decode = pytest.importorskip("instant_clip_tokenizer").Tokenizer().decode
    letters = byte_letters()
    ids = {byte: i for i, byte in enumerate(letters)}
    befores = [bytes.fromhex(x) for x in ("", "c3", "e1", "e180", "f1", "f180", "f18080")]
    afters = [bytes.fromhex(x) for x in ("", "80", "8080", "808080", "a0", "a080", "a08080")]

    def spell(token: int) -> bytes:
        for before, after in itertools.product(befores, afters):
            text = decode([*(ids[b] for b in before), token, *(ids[b] for b in after)])
            if "\ufffd" not in text:
                return text.encode()[len(before) :].removesuffix(after)
        return decode([token]).encode()  # the replacement character itself

    ranks: dict[tuple[str, str], int] = {}
    for token in range(512, START_ID):
        raw = spell(token)
        pieces = [letters[byte] for byte in raw.removesuffix(b" ")]
        pieces[-1] += "</w>" if raw.endswith(b" ") else ""
        while len(pieces) > 2:
            pairs = list(itertools.pairwise(pieces))
            at = pairs.index(min(pairs, key=lambda pair: ranks.get(pair, END_ID)))
            pieces[at : at + 2] = ["".join(pieces[at : at + 2])]
        ranks[pieces[0], pieces[1]] = token
    return list(ranks)


def byte_letters() -> dict[int, str]:
    """The letter that stands for each byte in CLIP's vocabulary, in the order of the ids."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}


def tokenizer_json() -> dict:
    """What CLIP repositories on the Hugging Face hub have as tokenizer.json."""
    merges, letters = clip_merges(), list(byte_letters().values())
    tokens = [*letters, *(x + "</w>" for x in letters), *("".join(m) for m in merges), *MARKERS]
    special = [
        {"id": START_ID + i, "content": marker, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": i == 0, "special": True}
        for i, marker in enumerate(MARKERS)
    ]  # fmt: skip
    words = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
    return {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 9, "strategy": "LongestFirst",
                       "stride": 0},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None,
                    "pad_id": END_ID, "pad_type_id": 0, "pad_token": MARKERS[1]},
        "added_tokens": special,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": words}, "behavior": "Removed", "invert": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}]},
        "post_processor": {"type": "RobertaProcessing", "sep": [MARKERS[1], END_ID],
                           "cls": [MARKERS[0], START_ID], "trim_offsets": False,
                           "add_prefix_space": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": MARKERS[1],
                  "continuing_subword_prefix": "", "end_of_word_suffix": "</w>",
                  "fuse_unk": False, "vocab": {token: i for i, token in enumerate(tokens)},
                  "merges": [" ".join(pair) for pair in merges]},
    }  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tokenizers")
    path = tmp_path_factory.mktemp("clip") / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer() -> ClipTokenizer:
    return ClipTokenizer()


@pytest.fixture(scope="module")
def from_file(tokenizer_file: Path) -> ClipTokenizer:
    return ClipTokenizer(tokenizer_file=tokenizer_file)


@pytest.fixture(params=["packaged", "file"])
def either(request: pytest.FixtureRequest) -> ClipTokenizer:
    """Both ways to the vocabulary."""
    return request.getfixturevalue({"packaged": "tokenizer", "file": "from_file"}[request.param])


@pytest.mark.parametrize("index", range(len(GOLDEN["texts"])))
def test_awkward_strings(either, index):
    np.testing.assert_array_equal(either([GOLDEN["texts"][index]])[0], GOLDEN["tokens"][index])


def test_class_names(either):
    rows = either(GOLDEN["class_names"])
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


def test_marker_swallowed_by_punctuation_is_text(either):
    inside = either(["a!<|endoftext|>"])[0].tolist()
    assert inside.count(END_ID) == 1
    outside = either(["a <|endoftext|> b"])[0].tolist()
    assert outside.count(END_ID) == 2
    assert outside[outside.index(END_ID) + 1] == either(["b"])[0][1]


@pytest.mark.parametrize(
    "text",
    ["!<|startoftext|>", "<|endoftext", "< |endoftext| >", "<|endoftext |>", "|<|endoftext|>",
     "<start_of_text>", "<end_of_text>", "[SEP]", "</w>", "a</w>b"],
)  # fmt: skip
def test_control_tokens_are_not_forged(either, text):
    row = either([text])[0].tolist()
    end = row.index(END_ID)
    assert row[0] == START_ID and START_ID not in row[1:]
    assert end > 1 and not any(row[end + 1 :])


def test_a_tokenizer_file_changes_no_id(tokenizer, from_file):
    rng = random.Random(0)
    ranges = [(32, 127), (32, 127), (128, 0x250), (0x370, 0x700), (0x900, 0xE00), (0x2000, 0x3100),
              (0x4E00, 0x9FFF), (0x1F300, 0x1F700), (0, 32), (0x300, 0x370)]  # fmt: skip
    pieces = [*MARKERS, "&lt;|endoftext|>", "e&#769;", "'re", "don't", " ", "\u3000", "&amp;amp;"]
    texts = []
    for _ in range(1500):
        low, high = rng.choice(ranges)
        letters = [chr(rng.randrange(low, high)) for _ in range(rng.randrange(12))]
        letters.insert(rng.randrange(len(letters) + 1), rng.choice([*pieces, "", "", "", ""]))
        texts.append("".join(letters))
    for text, ours, theirs in zip(texts, tokenizer(texts), from_file(texts), strict=True):
        assert ours.tolist() == theirs.tolist(), repr(text)


def test_fast_path_of_plain_text_changes_nothing():
    assert clean("  Salt & <b>Pepper</b> &amp;lt; ") == "salt & <b>pepper</b> <"
    assert clean("A  Dog's\tday") == "a dog's day"
    assert clean("“Schön”\x1b[31m") == '"schön"'


def test_pickle_before_and_after_use(tokenizer, from_file):
    for original in (ClipTokenizer(9), tokenizer, from_file):
        before = pickle.loads(pickle.dumps(original))
        expected = original(["a cat"])
        for copy in (before, pickle.loads(pickle.dumps(original))):
            np.testing.assert_array_equal(copy(["a cat"]), expected)
        assert len(pickle.dumps(original)) < 1000
        assert eval(repr(original)).__dict__.keys() == original.__dict__.keys()


def test_no_texts(tokenizer):
    assert tokenizer([]).shape == (0, 77)


def test_bad_input(tokenizer):
    with pytest.raises(TypeError, match="give a list"):
        tokenizer("a cat")
    with pytest.raises(ValueError, match="context_length=1"):
        ClipTokenizer(1)


def test_missing_packages_name_both_ways_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "instant_clip_tokenizer", None)
    with pytest.raises(InputError, match="pip install instant-clip-tokenizer.*tokenizer_file"):
        ClipTokenizer()(["a cat"])
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match="pip install tokenizers.*instant-clip-tokenizer"):
        ClipTokenizer(tokenizer_file="t.json")(["a cat"])


def test_tokenizer_file_needs_no_other_package(tokenizer_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "instant_clip_tokenizer", None)
    row = ClipTokenizer(tokenizer_file=str(tokenizer_file))([GOLDEN["texts"][0]])[0]
    np.testing.assert_array_equal(row, GOLDEN["tokens"][0])


def test_tokenizer_file_of_another_model(tokenizer_file, tmp_path):
    content = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    content["model"]["merges"].remove("pho to</w>")  # the ids stay, and a word is cut otherwise
    (tmp_path / "t.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match="not a CLIP's: it has 49408 tokens.*1125"):
        ClipTokenizer(tokenizer_file=tmp_path / "t.json")(["a cat"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "t.json' cannot be read.*No such file"),
        (b"", "cannot be read"),
        (b"{]", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}',
         "not a CLIP's: it has 1 tokens.*49408"),
    ],
)  # fmt: skip
def test_bad_tokenizer_file(tmp_path, content, message):
    pytest.importorskip("tokenizers")
    path = tmp_path / "t.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        ClipTokenizer(tokenizer_file=path)(["a cat"])


def test_template_sets_are_the_golden_ones():
    assert {name: list(TEMPLATES[name]) for name in GOLDEN["templates"]} == GOLDEN["templates"]


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
