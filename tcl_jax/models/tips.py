"""TIPS and TIPSv2: a vision tower and a text tower in one space, without projections.

Maninis et al., "TIPS: Text-Image Pretraining with Spatial awareness", ICLR 2025.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tcl_jax.data.sentence_pieces import SentencePieceTokenizer
from tcl_jax.models.attention import self_only_attention
from tcl_jax.models.flops import Parts, vision_tower
from tcl_jax.models.layers import Transformer, block, matmul_precision
from tcl_jax.models.method import MaskOptions
from tcl_jax.models.shapes import Shapes, shape_of
from tcl_jax.models.text import encode_padded_tokens
from tcl_jax.models.text_encoder import TextEncoder
from tcl_jax.models.vit import encode, project
from tcl_jax.models.zero_shot import Aligned, ZeroShot


@dataclasses.dataclass(frozen=True)
class TIPSText(TextEncoder):
    """The text tower, with parameters under `text` as `text.encode_padded_tokens` has them.

    Attributes:
        width: of the tower and of embeddings.
        vocab_size: of the tokens.
        folder: where the weights are from, and tokenizer.model is looked for.
    """

    width: int
    vocab_size: int
    dtype: Any = jnp.float32
    folder: str = dataclasses.field(default="", compare=False)

    normalizes_sentences = True

    @classmethod
    def of_shapes(cls, shapes: Shapes, folder: str = "") -> TIPSText:
        """The tower whose parameters have these shapes, under `text` and others."""
        vocab_size, width = shape_of(shapes, "text/token_embedding")
        return cls(width, vocab_size, folder=folder)

    @property
    def embed_dim(self) -> int:
        return self.width

    @property
    def tokenizer_file(self) -> Path | None:
        return self.tokenizer().find()

    def tokenizer(self, file: str | None = None) -> SentencePieceTokenizer:
        return SentencePieceTokenizer(file, self.vocab_size, folder=self.folder)

    def embed_texts(self, params: Any, tokens: Int[Array, "n l"]) -> Float[Array, "n d"]:
        settings = Transformer(1e-6, jax.nn.relu, self.dtype)  # epsilon of the Flax code
        with matmul_precision(self.dtype):
            return encode_padded_tokens(settings, params["text"], tokens)


@dataclasses.dataclass(frozen=True)
class TIPS(ZeroShot):
    """Zero-shot segmentation by the value path, as in the authors' notebook.

    Parameters are `vision`, a tower of `vit`, and `text`.
    """

    backbone: str = "tips"

    name = "tips"
    title = "TIPS"
    parameters = ("tips",)
    towers = ("vision", "text")
    texts = TIPSText
    protocol = "tips"

    @property
    def resolution(self) -> int:
        return round(shape_of(self.shapes, "vision/positional_embedding")[0] ** 0.5) * self.patch

    def align(self, params: Any, image: Float[Array, "b H W 3"]) -> Aligned:
        """The first class token, and the authors' value path.

        For patches, tokens see themselves alone in the last block; its residuals and MLP, and the
        final norm, are as usual.
        """
        vit, vision = self.vit, params["tips"]["vision"]
        features = encode(vit, vision, image)
        last = len(features.blocks) - 1
        found = block(vit, vision[f"blocks_{last}"], features.after(last), self_only_attention)
        return Aligned(
            project(vit, vision, features.blocks[-1].output[:, 0]),
            features.patches(project(vit, vision, found.output)),
        )

    def flops(self, side: int, texts: int, options: MaskOptions) -> Parts:
        del options
        patches = self.patches_of(side)
        return {
            "image tower": vision_tower(self.shapes, "vision", patches, last_sees_itself=True),
            "masks": 2 * patches * texts * self.embed_dim,
        }

    @property
    def summary(self) -> str:
        width = shape_of(self.shapes, "vision/patch_kernel")[-1]
        return f"TIPS of width {width} and patches of {self.patch}"
