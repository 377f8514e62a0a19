"""Files of a vocabulary: as Hugging Face's CLIP has them, and as TIPS."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from tcl_jax.data.tokenizer import clip_merges, clip_tokens


def write_tokenizer_file(folder: Path, size: int = 600) -> Any:
    """Writes tokenizer.json with the first merges of CLIP; gives the tokenizer that wrote it."""
    transformers = pytest.importorskip("transformers")
    merges = clip_merges()[: size - 514]
    vocabulary = {token: i for i, token in enumerate(clip_tokens(merges))}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=merges)
    tokenizer.save_pretrained(folder)
    return tokenizer


def train_pieces(file: Path) -> int:
    """Writes a small SentencePiece model; gives its number of pieces."""
    sentencepiece = pytest.importorskip("sentencepiece")
    written = io.BytesIO()
    sentences = ["a photo of a cat", "the small dog and many cats"] * 20
    sentences.append("sphinx of black quartz, judge my vow")  # every letter
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=written,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    file.write_bytes(written.getvalue())
    return int(sentencepiece.SentencePieceProcessor(model_file=str(file)).get_piece_size())
