"""CLIP's byte-pair encoding of text, with the cleaning that CLIP was trained with."""

from __future__ import annotations

import functools
import gzip
import html
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int32

from tcl_jax.errors import InputError, raise_machine_fault
from tcl_jax.files import user_path

Tokenizer: TypeAlias = Callable[[Sequence[str]], Int32[np.ndarray, "n length"]]
"""Texts to rows of ids, all of one length: zeros after a text's end, the tail of a long one cut."""

START_ID = 49406
"""Id of the start-of-text token in OpenAI's vocabulary."""

END_ID = 49407
"""Id of the end-of-text token, the largest of the vocabulary: CLIP pools the text there."""

_MERGES = Path(__file__).parent.parent / "assets" / "clip_merges.txt.gz"
_MARKERS = ("<|startoftext|>", "<|endoftext|>")
_PLAIN = re.compile(r"[\x20-\x25\x27-\x7e]*")
# How CLIP cuts text into words. A marker counts only where a word can begin: "!<|endoftext|>"
# begins with the punctuation "!<|".
_WORDS = r"<\|(?:start|end)oftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_KEPT = 1 << 16


class ClipTokenizer:
    """Texts to the token ids of OpenAI's CLIP (vocabulary of 49408), or of another vocabulary.

    The text is repaired by ftfy, HTML entities are resolved twice, white space is collapsed and
    letters are lowered. A row is start, tokens, end, then zeros; a text that is too long loses its
    tail, never the end token. Cheap to pickle: the vocabulary is built on the first call.

    Args:
      context_length: tokens per row, start and end included; 77 in all published CLIP models.
      tokenizer_file: path of the tokenizer.json (Hugging Face's format) of a CLIP with a vocabulary
        of its own, whose byte-pair encoding takes the place of OpenAI's.

    Raises:
      ValueError: `context_length` is below 2, which leaves no room for start and end.
    """

    def __init__(
        self, context_length: int = 77, tokenizer_file: str | os.PathLike[str] | None = None
    ) -> None:
        if context_length < 2:
            raise ValueError(
                f"context_length={context_length}: must be at least 2, for the start and the "
                "end token."
            )
        self.context_length = context_length
        self.tokenizer_file = None if tokenizer_file is None else os.fspath(tokenizer_file)

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "n length"]:
        """Encodes texts, one row of ids in [0, vocab_size) each.

        Raises:
          TypeError: `texts` is a single string instead of a sequence of them.
          InputError: `tokenizer_file` is not a CLIP's.
        """
        if isinstance(texts, str):
            raise TypeError(f"texts: got the single string {texts[:40]!r}; give a list, [text].")
        rows = np.zeros((len(texts), self.context_length), np.int32)
        start, end = self._vocabulary.markers.values()
        for row, text in zip(rows, texts, strict=True):
            ids = [start, *self._vocabulary(clean(text))[: self.context_length - 2], end]
            row[: len(ids)] = ids
        return rows

    def lengths(self, texts: Iterable[str]) -> Iterator[int]:
        """Tokens of each text, start and end included, whatever the context."""
        return (len(self._vocabulary(clean(text))) + 2 for text in texts)

    @property
    def vocab_size(self) -> int:
        """Number of ids, of which the end token's is the last.

        Raises:
          InputError: `tokenizer_file` is not a CLIP's.
        """
        known = self.tokenizer_file is None  # and need not be built
        return 1 + (END_ID if known else self._vocabulary.markers[_MARKERS[1]])

    @functools.cached_property
    def _vocabulary(self) -> _Vocabulary:
        return _packaged() if self.tokenizer_file is None else _read(self.tokenizer_file)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the vocabulary, which cannot be pickled."""
        return {name: value for name, value in self.__dict__.items() if name != "_vocabulary"}

    def __repr__(self) -> str:
        """The call that makes it."""
        file = f", tokenizer_file={self.tokenizer_file!r}" if self.tokenizer_file else ""
        return f"ClipTokenizer(context_length={self.context_length}{file})"


def clean(text: str) -> str:
    """CLIP's cleaning: ftfy, HTML entities twice, single spaces, lower case."""
    if not _PLAIN.fullmatch(text):  # there is nothing to repair in plain ASCII, and ftfy is slow
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


class _Vocabulary:
    """Ids of cleaned text. What stands between two spaces is encoded once and kept.

    Args:
      model: the byte-pair encoding, a `tokenizers.models.BPE`.
      markers: ids of the start and the end token.
    """

    def __init__(self, model: Any, markers: dict[str, int]) -> None:
        from tokenizers import Regex, Tokenizer, pre_tokenizers

        split = pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True)
        in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        # Unicode normalisation, which Hugging Face's files ask for, would change what CLIP keeps.
        encoder = Tokenizer(model)
        encoder.pre_tokenizer = pre_tokenizers.Sequence([split, in_bytes])
        self.markers = markers

        @functools.lru_cache(_KEPT)
        def encode(piece: str) -> list[int]:
            if not any(marker in piece for marker in markers):
                return encoder.encode(piece).ids
            ids: list[int] = []
            for word, _ in split.pre_tokenize_str(piece):
                ids += [markers[word]] if word in markers else encoder.encode(word).ids
            return ids

        self._encode: Callable[[str], list[int]] = encode

    def __call__(self, text: str) -> list[int]:
        return [i for piece in text.split() for i in self._encode(piece)]


def clip_merges() -> list[tuple[str, str]]:
    """OpenAI's merges of byte-pair encoding, first to last, in the letters that stand for bytes."""
    lines = gzip.decompress(_MERGES.read_bytes()).decode().splitlines()
    return [(first, second) for first, second in map(str.split, lines)]


def clip_tokens(merges: Sequence[tuple[str, str]]) -> list[str]:
    """The tokens of a CLIP in the order of their ids, in the letters that stand for bytes.

    Those of single bytes, the same at the end of a word, those of the merges, start and end.
    """
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [*map(chr, printed), *map(chr, range(256, 512 - len(printed)))]
    return [*letters, *(x + "</w>" for x in letters), *map("".join, merges), *_MARKERS]


@functools.cache
def _packaged() -> _Vocabulary:
    """OpenAI's, one for all tokenizers of a process."""
    from tokenizers.models import BPE

    merges = clip_merges()
    ids = {token: i for i, token in enumerate(clip_tokens(merges))}
    model = BPE(ids, merges, end_of_word_suffix="</w>")
    return _Vocabulary(model, {marker: ids[marker] for marker in _MARKERS})


def _read(path: str) -> _Vocabulary:
    """That of a tokenizer.json."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    advice = (
        "give the tokenizer.json of a CLIP, such as the one of openai/clip-vit-base-patch16 on the "
        "Hugging Face hub"
    )
    try:
        tokenizer = Tokenizer.from_str(user_path(path).read_text(encoding="utf-8"))
    except Exception as error:  # the library raises Exception itself
        raise_machine_fault(f"tokenizer_file={path!r}", error)
        raise InputError(f"tokenizer_file={path!r} cannot be read: {error}; {advice}") from error
    model, size = tokenizer.model, tokenizer.get_vocab_size()
    start, end = (tokenizer.token_to_id(marker) for marker in _MARKERS)
    suffix = getattr(model, "end_of_word_suffix", None)
    if not isinstance(model, BPE) or suffix != "</w>" or start is None or end != size - 1:
        raise InputError(
            f"tokenizer_file={path!r} is not a CLIP's: of its {size} tokens by "
            f"{type(model).__name__} (words end in {suffix!r}) {_MARKERS[0]} has the id {start} "
            f"and {_MARKERS[1]} {end}, where CLIP has byte-pair encoding (BPE), words that end in "
            f"'</w>', both tokens, and the largest id for the second; {advice}"
        )
    return _Vocabulary(model, dict(zip(_MARKERS, (start, end), strict=True)))
