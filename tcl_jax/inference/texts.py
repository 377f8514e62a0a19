"""Embeddings of class names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int32
from tqdm import tqdm

from tcl_jax.data.tokenizer import Tokenizer
from tcl_jax.data.words import check_words
from tcl_jax.errors import InputError
from tcl_jax.inference.templates import format_prompts
from tcl_jax.models.text_encoder import TextEncoder
from tcl_jax.parallel.mesh import data_mesh, put_locally

_TOGETHER, _TOKENS = 8, 16


def tokenize_names(
    tokenizer: Tokenizer,
    names: Iterable[Any],
    templates: str | Sequence[str],
    *,
    background: bool = False,
) -> dict[str, Int32[np.ndarray, "templates l"]]:
    """Token ids of class names, in order, in each of a set of templates.

    Args:
        tokenizer: texts to ids.
        names, templates: see `inference.templates.format_prompts`.
        background: as in `check_words`.

    Raises:
        InputError: as `check_words`, of names with the same ids.
    """
    tokens: dict[str, np.ndarray] = {}

    def ids(name: str) -> bytes:
        tokens[name] = tokenizer(format_prompts(templates, name))
        return tokens[name].tobytes()

    names = check_words(names, background=background, seen=ids)
    return {name: tokens[name] for name in names}


# One for all, so that the same tower is not compiled again for other texts.
@partial(jax.jit, static_argnums=0)
def _embed(encoder: TextEncoder, params: Any, tokens: jax.Array) -> jax.Array:
    return encoder.embed_classes(params, tokens)


def embed_tokens(
    encoder: TextEncoder,
    params: Any,
    tokens: Int32[np.ndarray, "n templates l"],
    *,
    progress: bool = False,
) -> Float32[np.ndarray, "n d"]:
    """`embed_classes` of names, some at a time, so that any number of them fits in memory.

    No more tokens are computed than the longest text has. Compiled once per number of templates,
    padded number of names, and length in steps of 16 tokens.

    Args:
        encoder, params: the text tower and its parameters.
        tokens: as `tokenize_names` gives them.
        progress: whether to show a bar.
    """
    count, size = len(tokens), min(padded_count(len(tokens)), _TOGETHER)
    longest = 1 + int(np.flatnonzero(tokens.any(axis=(0, 1)))[-1])
    tokens = tokens[..., : -(-longest // _TOKENS) * _TOKENS]
    tokens = np.pad(tokens, ((0, -count % size), (0, 0), (0, 0)))
    params = put_locally(params, data_mesh(jax.local_devices()[:1]))
    embedded = [
        np.asarray(_embed(encoder, params, tokens[start : start + size]))
        for start in tqdm(range(0, count, size), "class names", leave=False, disable=not progress)
    ]
    return np.concatenate(embedded)[:count]


def embed_class_names(
    encoder: TextEncoder,
    params: Any,
    names: Sequence[str],
    templates: str | Sequence[str],
    *,
    tokenizer_file: str | None = None,
    progress: bool = False,
) -> Float32[np.ndarray, "classes d"]:
    """Embeddings of names in a set of templates, see `TextEncoder.embed_classes`.

    Raises:
        InputError: as `TextEncoder.tokenizer` and `tokenize_names`.
    """
    tokens = tokenize_names(encoder.tokenizer(tokenizer_file), names, templates)
    return embed_tokens(encoder, params, np.stack([*tokens.values()]), progress=progress)


def check_embeddings(texts: Any, width: int) -> Float32[np.ndarray, "n d"]:
    """Text embeddings that are given, on the host.

    Raises:
        InputError: if they are not finite or not [n, `width`].
    """
    texts = np.asarray(texts, np.float32)
    if texts.ndim != 2 or texts.shape[1] != width or not len(texts):
        raise InputError(
            f"text_embeddings have shape {texts.shape}; this model needs [n, {width}] with at "
            "least one text, as embed_texts gives them"
        )
    if not np.isfinite(texts).all():
        raise InputError("text_embeddings hold values that are not finite")
    return texts


def padded_count(count: int) -> int:
    """Number of texts that a program is compiled for: 1, 2, 4, 8, then multiples of 8."""
    return -(-count // 8) * 8 if count > 4 else 1 << (count - 1).bit_length()
