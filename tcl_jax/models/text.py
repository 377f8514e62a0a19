"""CLIP's text transformer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import normal
from jaxtyping import Array, Float, Int, Key

from tcl_jax.models.attention import causal_attention
from tcl_jax.models.layers import (
    Transformer,
    init_block,
    init_layer_norm,
    layer_norm,
    run_blocks,
)


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


def init_text(
    key: Key[Array, ""],
    *,
    vocabulary: int,
    context: int,
    width: int,
    depth: int,
    heads: int,
    embed: int,
) -> dict[str, Any]:
    """Random parameters, drawn as OpenAI does.

    Args:
        key: of the draws.
        vocabulary, context: number of token ids, and longest text in tokens.
        width, depth, heads: of the blocks.
        embed: size of the space shared with images.
    """
    keys = jax.random.split(key, 3 + depth)
    blocks = {f"blocks_{i}": init_block(keys[3 + i], width, heads) for i in range(depth)}
    return {
        "token_embedding": normal(0.02)(keys[0], (vocabulary, width)),
        "positional_embedding": normal(0.01)(keys[1], (context, width)),
        **blocks,
        "ln_final": init_layer_norm(width),
        "text_projection": normal(width**-0.5)(keys[2], (width, embed)),
    }
