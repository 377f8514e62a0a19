"""Embeddings of class names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from tcl_jax.data.templates import fill
from tcl_jax.models.clip import CLIP, encode_text
from tcl_jax.ops.masking import l2_normalize

Tokenizer = Callable[[Sequence[str]], np.ndarray]


def class_embeddings(
    model: CLIP, params: Any, tokens: Int[Array, "classes templates l"]
) -> Float[Array, "classes d"]:
    """Text embedding of every class: mean over templates of unnormalised features, normalised.

    Args:
        model, params: CLIP and its parameters.
        tokens: [classes, templates, l] ids of each name in each template.
    """
    classes, templates, length = tokens.shape
    flat = tokens.reshape(classes * templates, length)
    features = encode_text(model, params, flat).reshape(classes, templates, -1)
    return l2_normalize(features.mean(axis=1))


def embed_class_names(
    model: CLIP,
    params: Any,
    tokenizer: Tokenizer,
    names: Sequence[str],
    templates: str | Sequence[str],
) -> Float[Array, "classes d"]:
    """`class_embeddings` of names in a set of templates, see `data.templates.fill`."""
    texts = [text for name in names for text in fill(templates, name)]
    tokens = tokenizer(texts).reshape(len(names), len(texts) // len(names), -1)
    return jax.jit(class_embeddings, static_argnums=0)(model, params, tokens)
