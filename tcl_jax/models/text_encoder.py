"""What embeds texts, whatever it is made of."""

from __future__ import annotations

import abc
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tcl_jax.data.tokenizer import Tokenizer
from tcl_jax.ops.masking import l2_normalize


class TextEncoder(abc.ABC):
    """A text tower and its tokenizer. Subclasses are frozen dataclasses, without parameters.

    Attributes:
        normalizes_sentences: whether those of a class are normalised before the mean of them is
            taken, so that all count alike.
        dtype: compute dtype; parameters are float32.
    """

    normalizes_sentences: bool = False
    dtype: Any = jnp.float32

    @property
    def tokenizer_file(self) -> Path | None:
        """What `tokenizer` reads beside the weights; None: nothing, or it is not there."""
        return None

    @property
    def settings(self) -> tuple[Any, ...]:
        """What embeddings depend on besides class, dtype, parameters and tokenizer."""
        return ()

    @property
    @abc.abstractmethod
    def embed_dim(self) -> int:
        """Size of an embedding."""

    @abc.abstractmethod
    def tokenizer(self, file: str | None = None) -> Tokenizer:
        """The tokenizer, or that of a file.

        Raises:
            InputError: if the file cannot be read, or the vocabulary is not the tower's.
        """

    @abc.abstractmethod
    def embed_texts(self, params: Any, tokens: Int[Array, "n l"]) -> Float[Array, "n d"]:
        """Text embeddings, float32 and not normalised.

        Products of a float32 tower are in full precision on every platform.

        Args:
            params: a tree with the tower's under `text`, see `Method.text_params`.
            tokens: as of `tokenizer`; last columns that are all zeros may be left out.
        """

    def embed_classes(
        self, params: Any, tokens: Int[Array, "classes templates l"]
    ) -> Float[Array, "classes d"]:
        """Text embedding of every class: mean over templates of `embed_texts`, normalised."""
        features = self.embed_each(params, tokens)
        if self.normalizes_sentences:
            features = l2_normalize(features)
        return l2_normalize(features.mean(axis=1))

    def embed_each(
        self, params: Any, tokens: Int[Array, "classes templates l"]
    ) -> Float[Array, "classes templates d"]:
        """`embed_texts` of every sentence."""
        classes, templates, length = tokens.shape
        features = self.embed_texts(params, tokens.reshape(classes * templates, length))
        return features.reshape(classes, templates, -1)
