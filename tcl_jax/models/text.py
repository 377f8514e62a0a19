"""CLIP's text transformer."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tcl_jax.models.attention import causal_attention
from tcl_jax.models.layers import Block, LayerNorm, rematerialized


class TextTower(nn.Module):
    """CLIP's text encoder (Radford et al., 2021).

    Attributes:
        vocab_size: number of token ids; the end-of-text token has the largest id.
        context_length: longest text, in tokens; shorter ones are taken as they are.
        width, layers, heads: size of the transformer.
        embed_dim: size of the space shared with images.
        activation: "quick_gelu" (OpenAI) or "gelu" (OpenCLIP).
        dtype: compute dtype; parameters are float32.
        remat: a key of `layers.REMAT`, what the blocks keep for the gradient.
    """

    vocab_size: int
    context_length: int
    width: int
    layers: int
    heads: int
    embed_dim: int
    activation: str = "quick_gelu"
    dtype: Any = jnp.float32
    remat: str = "none"

    def setup(self) -> None:
        normal = nn.initializers.normal
        self.token_embedding = self.param(
            "token_embedding", normal(0.02), (self.vocab_size, self.width)
        )
        self.positional_embedding = self.param(
            "positional_embedding", normal(0.01), (self.context_length, self.width)
        )
        block = rematerialized(Block, self.remat, static=(2,))
        self.blocks = [block(self.heads, self.activation, self.dtype) for _ in range(self.layers)]
        self.ln_final = LayerNorm()
        self.text_projection = self.param(
            "text_projection", normal(self.width**-0.5), (self.width, self.embed_dim)
        )

    def __call__(self, tokens: Int[Array, "n l"]) -> Float[Array, "n d"]:
        """Text embeddings, not normalised.

        Args:
            tokens: [n, l] ids with l up to `context_length`; zeros after the end-of-text token.

        Raises:
            ValueError: if l is larger than `context_length`.
        """
        length = tokens.shape[1]
        if length > self.context_length:
            raise ValueError(
                f"texts of {length} tokens are longer than this CLIP's context of "
                f"{self.context_length}; tokenise with context_length={self.context_length}"
            )
        x = jnp.take(self.token_embedding, tokens, axis=0)
        x = (x + self.positional_embedding[:length]).astype(self.dtype)
        for block in self.blocks:
            x = block(x, causal_attention)
        end = jnp.argmax(tokens, axis=-1)
        x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        return jnp.einsum("nc,cd->nd", self.ln_final(x), self.text_projection.astype(self.dtype))
