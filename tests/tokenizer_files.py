"""Files of a vocabulary, as Hugging Face's CLIP has them."""

from __future__ import annotations

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
