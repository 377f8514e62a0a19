"""Text transformers: CLIP's and dino.txt's, and that of TIPS."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from tcl_jax.data.tokenizer import ClipTokenizer
from tcl_jax.errors import InputError
from tcl_jax.models.attention import causal_attention, masked_attention
from tcl_jax.models.layers import Transformer, layer_norm, run_blocks


def clip_tokenizer(context_length: int, vocab_size: int, file: str | None) -> ClipTokenizer:
    """OpenAI's tokenizer, or that of a tokenizer.json, for a text tower of these sizes.

    Raises:
        InputError: if the file cannot be read, or the tower has another vocabulary.
    """
    tokenizer = ClipTokenizer(context_length, file)
    if tokenizer.vocab_size != vocab_size:
        raise InputError(
            f"this text tower has a vocabulary of {vocab_size} and not the "
            f"{tokenizer.vocab_size} of the tokenizer; give its own tokenizer.json as "
            "tokenizer_file, or text embeddings (training needs a CLIP with OpenAI's "
            "vocabulary)"
        )
    return tokenizer


def encode_tokens(
    settings: Transformer, params: Any, tokens: Int[Array, "n l"]
) -> Float[Array, "n d"]:
    """Text embeddings (Radford et al., 2021), not normalised.

    After a text's end-of-text token, which has the largest id, its row has zeros.

    Raises:
        ValueError: if rows are longer than the context of the tower.
    """
    length, context = tokens.shape[1], params["positional_embedding"].shape[0]
    if length > context:
        raise ValueError(
            f"texts of {length} tokens are longer than this tower's context of {context}; "
            f"tokenise with context_length={context}"
        )
    x = jnp.take(params["token_embedding"], tokens, axis=0)
    x = (x + params["positional_embedding"][:length]).astype(settings.dtype)
    x = run_blocks(settings, params, x, causal_attention)[-1].output
    end = jnp.argmax(tokens, axis=-1)
    x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
    x = layer_norm(x, params["ln_final"], settings.eps)
    return jnp.einsum("nc,cd->nd", x, params["text_projection"].astype(settings.dtype))


def encode_padded_tokens(
    settings: Transformer, params: Any, tokens: Int[Array, "n l"]
) -> Float[Array, "n d"]:
    """Text embeddings of TIPS (Maninis et al., ICLR 2025), not normalised.

    Tokens see each other in both directions, and the embedding is their mean. Places are told by
    sines, so that rows may have any length. They have zeros where a text has ended; a row of zeros
    has the embedding zero.
    """
    (_, length), width = tokens.shape, params["token_embedding"].shape[1]
    hidden = tokens == 0
    x = jnp.take(params["token_embedding"], tokens, axis=0) * width**0.5
    x = (x + sinusoids(length, width)).astype(settings.dtype)
    x = run_blocks(settings, params, x, masked_attention(hidden))[-1].output
    x = layer_norm(x, params["ln_final"], settings.eps).astype(jnp.float32)
    share = ~hidden / (jnp.sum(~hidden, axis=1, keepdims=True) + 1e-8)
    return jnp.sum(x * share[..., None], axis=1)


def sinusoids(length: int, width: int) -> Float32[np.ndarray, "length width"]:
    """Embeddings of places: sines, then cosines, of `place * 10000^(-j / (width / 2 - 1))`."""
    steps = np.arange(width // 2) / (width // 2 - 1)
    angles = np.arange(length)[:, None] * 10000.0**-steps
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
