"""CLIP's byte-pair encoding of text, with the cleaning that CLIP was trained with."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import ftfy
import numpy as np
import regex
from jaxtyping import Int32

START_ID = 49406
"""Id of the start-of-text token."""

END_ID = 49407
"""Id of the end-of-text token, the largest of the vocabulary: CLIP pools the text there."""

_SPACES = regex.compile(r"\s+")
_PLAIN = regex.compile(r"[\x20-\x25\x27-\x7e]*")
_MARKERS = {"<|startoftext|>": START_ID, "<|endoftext|>": END_ID}
# How CLIP cuts text into words. A marker counts only where a word can begin: "!<|endoftext|>"
# begins with the punctuation "!<|".
_WORDS = regex.compile(
    r"(?P<marker><\|(?:start|end)oftext\|>)|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
)


class ClipTokenizer:
    """Texts to the token ids of OpenAI's CLIP (vocabulary of 49408).

    The text is repaired by ftfy, HTML entities are resolved twice, white space is collapsed and
    letters are lowered. A row is start, tokens, end, then zeros; a text that is too long loses its
    tail, never the end token. Cheap to pickle: the vocabulary is built on the first call.

    Args:
      context_length: tokens per row, start and end included; 77 in all published CLIP models.

    Raises:
      ValueError: `context_length` is below 2, which leaves no room for start and end.
    """

    def __init__(self, context_length: int = 77) -> None:
        if context_length < 2:
            raise ValueError(
                f"context_length={context_length}: must be at least 2, for the start and the "
                "end token."
            )
        self.context_length = context_length
        self._encoder: Any = None

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "n length"]:
        """Encodes texts, one row of ids in [0, 49407] each.

        Raises:
          TypeError: `texts` is a single string instead of a sequence of them.
          ImportError: the package instant-clip-tokenizer is not installed.
        """
        if isinstance(texts, str):
            raise TypeError(f"texts: got the single string {texts[:40]!r}; give a list, [text].")
        rows = np.zeros((len(texts), self.context_length), np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = [START_ID, *self._encode(clean(text))[: self.context_length - 2], END_ID]
            row[: len(ids)] = ids
        return rows

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the vocabulary, which cannot be pickled."""
        return {"context_length": self.context_length, "_encoder": None}

    def __repr__(self) -> str:
        """The call that makes it."""
        return f"ClipTokenizer(context_length={self.context_length})"

    def _encode(self, text: str) -> list[int]:
        if self._encoder is None:
            self._encoder = _build_encoder()
        if not any(marker in text for marker in _MARKERS):
            return self._encoder.encode(text)
        ids: list[int] = []
        begin = 0
        for word in _WORDS.finditer(text):
            if word["marker"]:
                ids += self._encoder.encode(text[begin : word.start()])
                ids.append(_MARKERS[word["marker"]])
                begin = word.end()
        return ids + self._encoder.encode(text[begin:])


def clean(text: str) -> str:
    """CLIP's cleaning: ftfy, HTML entities twice, single spaces, lower case."""
    if not _PLAIN.fullmatch(text):  # Nothing to repair in plain ASCII, and ftfy is slow.
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _SPACES.sub(" ", text.strip()).strip().lower()


def _build_encoder() -> Any:
    try:
        from instant_clip_tokenizer import Tokenizer
    except ImportError as error:
        raise ImportError(
            "CLIP's vocabulary comes with the package instant-clip-tokenizer, which cannot be "
            f"imported ({error}). Install it: pip install instant-clip-tokenizer"
        ) from error
    return Tokenizer()
