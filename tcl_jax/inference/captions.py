"""Embeddings of captions by a frozen text tower, many at a time, and what tells towers apart."""

from __future__ import annotations

import collections
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32

from tcl_jax.checkpoints.leaves import hash_leaves
from tcl_jax.files import short_hash
from tcl_jax.models.clip import CLIP
from tcl_jax.parallel.mesh import batch_sharded, local_mesh, put_replicated

_TOKENS = 16
_AHEAD = 2
# Texts on which tokenizers and their cleaning differ.
_PROBES = ("It's 1 Photo,  of&amp;amp;lt; a cafÃ© ½\n", "日本語 🙂 l’été", "x" * 400, "a " * 400)


def text_tower_id(clip: CLIP, params: Any) -> str:
    """Sixteen hexadecimal digits: equal where embeddings are, up to rounding by the machine.

    They tell apart weights, activations, compute dtypes, context lengths and tokenizers.

    Args:
        clip, params: CLIP and its parameters, on the host.
    """
    c = clip.config
    sizes = [c.text_width, c.text_heads, c.text_layers, c.context_length, c.embed_dim]
    tokens = clip.tokenizer()(_PROBES).tolist()
    computed = [c.activation, jnp.dtype(clip.dtype).name]
    return short_hash([sizes, computed, tokens, hash_leaves(params["text"])])


class CaptionEmbedder:
    """Text embeddings as a training computes them, by all devices of this process.

    Short captions are computed together, and no more of their tokens than the longest has, since
    texts see nothing that comes after them: all tokens of a context of 77 would be several times
    the work. Compiled once per length in steps of 16 tokens.

    Args:
        clip: the CLIP.
        params: its parameters; the text tower's are copied to the devices.
        batch_size: captions that a device computes together.
    """

    def __init__(self, clip: CLIP, params: Any, batch_size: int = 512) -> None:
        mesh = local_mesh()
        self._dimension, self._rows = clip.embed_dim, batch_sharded(mesh)
        self._batch_size = batch_size * mesh.size
        self._params = put_replicated({"text": params["text"]}, mesh)
        self._encode = jax.jit(
            lambda params, tokens: clip.embed_texts(params, tokens).astype(clip.dtype),
            out_shardings=self._rows,
        )

    def __call__(self, tokens: Int32[np.ndarray, "n length"]) -> Float32[np.ndarray, "n d"]:
        """Embeddings, not normalised: float32, of values that the tower's compute dtype has.

        Args:
            tokens: ids of each caption, zeros after its end.
        """
        embedded = np.zeros((len(tokens), self._dimension), np.float32)
        # The end of a text has the largest id.
        lengths = tokens.argmax(axis=-1) + 1
        order = np.argsort(lengths, kind="stable")
        running: collections.deque[tuple[np.ndarray, jax.Array]] = collections.deque()

        def finish() -> None:
            rows, values = running.popleft()
            embedded[rows] = np.asarray(values)[: len(rows)]

        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            longest = -(-int(lengths[rows[-1]]) // _TOKENS) * _TOKENS
            batch = np.pad(tokens[rows, :longest], ((0, self._batch_size - len(rows)), (0, 0)))
            placed = jax.device_put(batch, self._rows)
            running.append((rows, self._encode(self._params, placed)))
            if len(running) > _AHEAD:
                finish()
        while running:
            finish()
        return embedded
