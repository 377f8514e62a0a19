"""TIPS's tokenizer: SentencePiece on lowered text, without marks of start and end."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from tcl_jax.errors import InputError, raise_machine_fault
from tcl_jax.files import user_path

LENGTH = 64
"""Tokens of a text: the tail of a longer one is cut."""
FILENAME = "tokenizer.model"
FOLDER = "weights"
"""Where the file is looked for, in the working directory, if it is not beside the weights."""
URL = "https://storage.googleapis.com/tips_data/v1_0/checkpoints/tokenizer.model"


class SentencePieceTokenizer:
    """Texts to rows of `LENGTH` ids, zeros after a text's end.

    Cheap to pickle: the file is read on the first call.

    Args:
        file: path of a SentencePiece model; None: `FILENAME` beside the weights or in `FOLDER`.
        vocab_size: number of tokens that the text tower knows.
        folder: where the weights are.
    """

    def __init__(self, file: str | None, vocab_size: int, folder: str = "") -> None:
        self.vocab_size, self._file, self._folder = vocab_size, file, folder

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "n length"]:
        """Encodes texts.

        Raises:
            TypeError: `texts` is a single string instead of a sequence of them.
            InputError: the package sentencepiece or the file is missing, or the file is not that of
                the tower.
        """
        if isinstance(texts, str):
            raise TypeError(f"texts: got the single string {texts[:40]!r}; give a list, [text].")
        rows = np.zeros((len(texts), LENGTH), np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = self._processor.encode(text.lower())[:LENGTH]
            row[: len(ids)] = ids
        return rows

    @functools.cached_property
    def _processor(self) -> Any:
        path = self._find()
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise InputError(
                "TIPS needs the package sentencepiece for its texts, of this package's extra "
                "`tips`: pip install 'tcl_jax[tips]' (or pip install sentencepiece)"
            ) from error
        try:
            processor = SentencePieceProcessor(model_proto=path.read_bytes())
        except (OSError, RuntimeError) as error:
            raise_machine_fault(f"tokenizer_file={str(path)!r}", error)
            raise InputError(
                f"tokenizer_file={str(path)!r} cannot be read as a SentencePiece model: {error}; "
                f"give TIPS's, {URL}"
            ) from error
        if (size := processor.get_piece_size()) != self.vocab_size:
            raise InputError(
                f"tokenizer_file={str(path)!r} has {size} pieces, and the text tower knows "
                f"{self.vocab_size}; give TIPS's, {URL}"
            )
        return processor

    def find(self) -> Path | None:
        """The file that is given, or else the first that is there."""
        if self._file is not None:
            return user_path(self._file)
        places = [Path(folder, FILENAME) for folder in (self._folder, FOLDER) if folder]
        return next((place for place in places if place.is_file()), None)

    def _find(self) -> Path:
        if path := self.find():
            return path
        raise InputError(
            f"TIPS's tokenizer is not there: put {URL} into "
            f"{os.fspath(Path(FOLDER).absolute())!r} (or beside the authors' files of weights) as "
            f"{FILENAME}, or give its path as tokenizer_file (--tokenizer_file)"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what is read from the file."""
        return {name: value for name, value in self.__dict__.items() if name != "_processor"}
