"""CLIP's byte-pair encoding of text, with the cleaning that CLIP was trained with."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import ftfy
import numpy as np
import regex
from jaxtyping import Int32

from tcl_jax.errors import InputError, RunError, machine_fault
from tcl_jax.files import user_path

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
# instant-clip-tokenizer takes <end_of_text> for the end token, which CLIP does not; cut where a
# word begins anyway, it is not seen.
_PACKAGED_MARKERS = re.compile(r"(?<=<)(?=(?:start|end)_of_text>)")
_PROBE = "it's 1 photo!<|endoftext|>"
_PROBE_IDS = [585, 568, 272, 1125, 0, 27, 347, 40786, 4160, 91, 285]


class ClipTokenizer:
    """Texts to the token ids of OpenAI's CLIP (vocabulary of 49408).

    The text is repaired by ftfy, HTML entities are resolved twice, white space is collapsed and
    letters are lowered. A row is start, tokens, end, then zeros; a text that is too long loses its
    tail, never the end token. Cheap to pickle: the vocabulary is built on the first call.

    Args:
      context_length: tokens per row, start and end included; 77 in all published CLIP models.
      tokenizer_file: path of a CLIP's tokenizer.json (Hugging Face's format), which the package
        tokenizers then reads; without it the package instant-clip-tokenizer brings the vocabulary.
        The ids are the same.

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
        self._encode_plain: Callable[[str], list[int]] | None = None

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "n length"]:
        """Encodes texts, one row of ids in [0, 49407] each.

        Raises:
          TypeError: `texts` is a single string instead of a sequence of them.
          InputError: the package that knows the vocabulary is not installed, or
            `tokenizer_file` is not a CLIP's.
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
        return {**self.__dict__, "_encode_plain": None}

    def __repr__(self) -> str:
        """The call that makes it."""
        file = f", tokenizer_file={self.tokenizer_file!r}" if self.tokenizer_file else ""
        return f"ClipTokenizer(context_length={self.context_length}{file})"

    def _encode(self, text: str) -> list[int]:
        if self._encode_plain is None:
            file = self.tokenizer_file
            self._encode_plain = _packaged_encoder() if file is None else _file_encoder(file)
        encode = self._encode_plain
        if not any(marker in text for marker in _MARKERS):
            return encode(text)
        ids: list[int] = []
        begin = 0
        for word in _WORDS.finditer(text):
            if word["marker"]:
                ids += encode(text[begin : word.start()])
                ids.append(_MARKERS[word["marker"]])
                begin = word.end()
        return ids + encode(text[begin:])


def clean(text: str) -> str:
    """CLIP's cleaning: ftfy, HTML entities twice, single spaces, lower case."""
    if not _PLAIN.fullmatch(text):  # Nothing to repair in plain ASCII, and ftfy is slow.
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _SPACES.sub(" ", text.strip()).strip().lower()


def _packaged_encoder() -> Callable[[str], list[int]]:
    """Byte-pair encoding, where markers are plain text, with the packaged vocabulary."""
    try:
        from instant_clip_tokenizer import Tokenizer
    except ImportError as error:
        raise InputError(
            "CLIP's vocabulary comes with the package instant-clip-tokenizer, which cannot be "
            f"imported ({error}). Install it (pip install instant-clip-tokenizer), or give the "
            "tokenizer.json of a CLIP as tokenizer_file, with the package tokenizers installed"
        ) from error
    encode = Tokenizer().encode

    def encode_plain(text: str) -> list[int]:
        return [i for piece in _PACKAGED_MARKERS.split(text) for i in encode(piece)]

    return encode_plain


def _file_encoder(path: str) -> Callable[[str], list[int]]:
    """The same with the vocabulary of a tokenizer.json."""
    try:
        from tokenizers import Tokenizer, normalizers
    except ImportError as error:
        raise InputError(
            f"tokenizer_file={path!r} is read by the package tokenizers, which cannot be imported "
            f"({error}). Install it (pip install tokenizers), or leave tokenizer_file out, with "
            "the package instant-clip-tokenizer installed"
        ) from error
    try:
        tokenizer = Tokenizer.from_str(user_path(path).read_text(encoding="utf-8"))
    except Exception as error:  # the library raises Exception itself
        if fault := machine_fault(error):
            raise RunError(f"tokenizer_file={path!r}: {fault}") from error
        raise InputError(
            f"tokenizer_file={path!r} cannot be read: {error}; give the tokenizer.json of a CLIP, "
            "such as the one of openai/clip-vit-base-patch16 on the Hugging Face hub"
        ) from error
    # The text is cleaned already, and Unicode normalisation would change what CLIP keeps.
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode_plain(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    markers = {marker: tokenizer.token_to_id(marker) for marker in _MARKERS}
    size = tokenizer.get_vocab_size()
    if markers != _MARKERS or size != END_ID + 1 or encode_plain(_PROBE) != _PROBE_IDS:
        raise InputError(
            f"tokenizer_file={path!r} is not a CLIP's: it has {size} tokens, the ids {markers} and "
            f"{encode_plain(_PROBE)} for {_PROBE!r}, where CLIP has {END_ID + 1}, {_MARKERS} and "
            f"{_PROBE_IDS}; give the tokenizer.json of a CLIP, such as the one of "
            "openai/clip-vit-base-patch16 on the Hugging Face hub"
        )
    return encode_plain
