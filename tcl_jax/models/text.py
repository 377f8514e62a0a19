"""CLIP's text transformer."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tcl_jax.models.attention import causal_attention
from tcl_jax.models.layers import Transformer, layer_norm, run_blocks


def encode_tokens(
    settings: Transformer, params: Any, tokens: Int[Array, "n l"]
) -> Float[Array, "n d"]:
    """Text embeddings (Radford et al., 2021), not normalised.

    Args:
        settings, params: of the tower.
        tokens: [n, l] ids, zeros after the end-of-text token, which has the largest id; l is at
            most the context length.

    Raises:
        ValueError: if l is larger.
    """
    length, context = tokens.shape[1], params["positional_embedding"].shape[0]
    if length > context:
        raise ValueError(
            f"texts of {length} tokens are longer than this CLIP's context of {context}; "
            f"tokenise with context_length={context}"
        )
    x = jnp.take(params["token_embedding"], tokens, axis=0)
    x = (x + params["positional_embedding"][:length]).astype(settings.dtype)
    x = run_blocks(settings, params, x, causal_attention)[-1].output
    end = jnp.argmax(tokens, axis=-1)
    x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
    x = layer_norm(x, params["ln_final"], settings.eps)
    return jnp.einsum("nc,cd->nd", x, params["text_projection"].astype(settings.dtype))
