"""Embeddings of class names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Int
from tqdm import tqdm

from tcl_jax.data.templates import format_prompts
from tcl_jax.data.tokenizer import END_ID, clean
from tcl_jax.data.words import check_words
from tcl_jax.errors import InputError
from tcl_jax.models.clip import CLIP, CLIPConfig
from tcl_jax.models.method import Method
from tcl_jax.ops.masking import l2_normalize
from tcl_jax.parallel.mesh import data_mesh, put_locally

Tokenizer = Callable[[Sequence[str]], np.ndarray]

_TOGETHER, _TOKENS = 8, 16


def class_embeddings(
    model: CLIP | Method, params: Any, tokens: Int[Array, "classes templates l"]
) -> Float[Array, "classes d"]:
    """Text embedding of every class: mean over templates of unnormalised features, normalised.

    A float32 model computes its products in full precision on every platform.

    Args:
        model, params: what embeds texts, and its parameters.
        tokens: [classes, templates, l] ids of each name in each template.
    """
    classes, templates, length = tokens.shape
    flat = tokens.reshape(classes * templates, length)
    features = model.embed_texts(params, flat).reshape(classes, templates, -1)
    return l2_normalize(features.mean(axis=1))


def check_vocabulary(config: CLIPConfig, vocab_size: int = END_ID + 1) -> None:
    """Refuses a CLIP whose texts are not those of the tokenizer.

    Args:
        config: of the CLIP.
        vocab_size: of the tokenizer; OpenAI's by default.

    Raises:
        InputError: if the CLIP has another vocabulary.
    """
    if config.vocab_size != vocab_size:
        raise InputError(
            f"this CLIP has a vocabulary of {config.vocab_size} and not the {vocab_size} of the "
            "tokenizer; give its own tokenizer.json as tokenizer_file, or text embeddings "
            "(training needs a CLIP with OpenAI's vocabulary)"
        )


def check_names(
    config: CLIPConfig,
    tokenizer: Tokenizer,
    names: Iterable[Any],
    templates: str | Sequence[str],
    *,
    background: bool = False,
) -> list[str]:
    """`check_words` of class names, also of those that the context length cuts to the same.

    Args:
        config: of the CLIP.
        tokenizer: texts to ids.
        names, templates: see `data.templates.format_prompts`.
        background: as in `check_words`.

    Raises:
        InputError: as `check_words`.
    """
    # A token takes a byte at least.
    uncut = (
        config.context_length
        - 2
        - max(len(text.encode()) for text in format_prompts(templates, ""))
    )

    def seen(name: str) -> str | bytes:
        cleaned = clean(name)
        long = len(cleaned.encode()) > uncut
        return tokenizer(format_prompts(templates, name)).tobytes() if long else cleaned

    return check_words(names, background=background, seen=seen)


# One for all, so that the same CLIP is not compiled again for other texts.
_compiled = jax.jit(class_embeddings, static_argnums=0)


def embed_sentences(
    model: CLIP,
    params: Any,
    tokenizer: Tokenizer,
    sentences: Sequence[Sequence[str]],
    *,
    progress: bool = False,
) -> Float32[np.ndarray, "n d"]:
    """`class_embeddings` of texts, some at a time, so that any number of them fits in memory.

    Texts see nothing that comes after them, so no more tokens are computed than the longest has.
    Compiled once per number of sentences, padded number of texts, and length in steps of 16 tokens.

    Args:
        model, params: CLIP and its parameters.
        tokenizer: texts to ids.
        sentences: of each text, as many for one as for the other.
        progress: whether to show a bar.
    """
    size = min(padded_count(len(sentences)), _TOGETHER)
    tokens = np.stack([tokenizer(list(texts)) for texts in sentences])
    longest = int(tokens.argmax(axis=-1).max()) + 1  # the end of a text has the largest id
    tokens = tokens[..., : -(-longest // _TOKENS) * _TOKENS]
    tokens = np.pad(tokens, ((0, -len(tokens) % size), (0, 0), (0, 0)))
    params = put_locally({"text": params["text"]}, data_mesh(jax.local_devices()[:1]))
    starts = range(0, len(tokens), size)
    embedded = [
        np.asarray(_compiled(model, params, tokens[start : start + size]))
        for start in tqdm(starts, "class names", leave=False, disable=not progress)
    ]
    return np.concatenate(embedded)[: len(sentences)]


def embed_class_names(
    model: CLIP,
    params: Any,
    tokenizer: Tokenizer,
    names: Sequence[str],
    templates: str | Sequence[str],
    *,
    progress: bool = False,
) -> Float32[np.ndarray, "classes d"]:
    """`class_embeddings` of names in a set of templates, see `data.templates.format_prompts`.

    Raises:
        InputError: as `check_names`.
    """
    names = check_names(model.config, tokenizer, names, templates)
    sentences = [format_prompts(templates, name) for name in names]
    return embed_sentences(model, params, tokenizer, sentences, progress=progress)


def padded_count(count: int) -> int:
    """Number of texts that a program is compiled for: 1, 2, 4, 8, then multiples of 8."""
    return -(-count // 8) * 8 if count > 4 else 1 << (count - 1).bit_length()
