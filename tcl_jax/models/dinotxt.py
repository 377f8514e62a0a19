"""dino.txt: texts for the features of a frozen DINOv2 or DINOv3, by a head and a text tower.

Jose et al., "DINOv2 Meets Text: A Unified Framework for Image- and Pixel-Level Vision-Language
Alignment", CVPR 2025.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tcl_jax.data.tokenizer import ClipTokenizer
from tcl_jax.models.flops import Parts, blocks_of, vision_tower
from tcl_jax.models.layers import Transformer, layer_norm, matmul_precision, run_blocks
from tcl_jax.models.method import MaskOptions
from tcl_jax.models.shapes import Shapes, count_prefix, shape_of
from tcl_jax.models.text import clip_tokenizer, encode_tokens
from tcl_jax.models.text_encoder import TextEncoder
from tcl_jax.models.vit import encode, project
from tcl_jax.models.zero_shot import Aligned, ZeroShot

EPS = 1e-5
"""Of every LayerNorm of the head and the text tower."""


def tower(dtype: Any = jnp.float32) -> Transformer:
    """Settings of the head and of the text tower."""
    return Transformer(EPS, dtype=dtype)


@dataclasses.dataclass(frozen=True)
class DinoTxtText(TextEncoder):
    """The half of the text tower's embeddings that belongs to patches, the second.

    Parameters are as `text.encode_tokens` has them, under `text`.

    Attributes:
        width: of that half.
        context_length, vocab_size: of the texts.
    """

    width: int
    context_length: int
    vocab_size: int
    dtype: Any = jnp.float32

    normalizes_sentences = True

    @classmethod
    def of_shapes(cls, shapes: Shapes, folder: str = "") -> DinoTxtText:
        """The tower whose parameters have these shapes, under `text` and others."""
        del folder
        vocab_size, _ = shape_of(shapes, "text/token_embedding")
        context_length, _ = shape_of(shapes, "text/positional_embedding")
        width = shape_of(shapes, "text/text_projection")[-1]
        return cls(width // 2, context_length, vocab_size)

    @property
    def embed_dim(self) -> int:
        return self.width

    def tokenizer(self, file: str | None = None) -> ClipTokenizer:
        return clip_tokenizer(self.context_length, self.vocab_size, file)

    def embed_texts(self, params: Any, tokens: Int[Array, "n l"]) -> Float[Array, "n d"]:
        return encode_text(params["text"], tokens, self.dtype)[:, self.width :]


def encode_text(params: Any, tokens: Int[Array, "n l"], dtype: Any) -> Float[Array, "n d"]:
    """Whole text embeddings, for `Aligned.embedding`; float32 and not normalised."""
    with matmul_precision(dtype):
        return encode_tokens(tower(dtype), params, tokens).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class DinoTxt(ZeroShot):
    """Zero-shot segmentation by the head's patches.

    Parameters are `vision`, the backbone as a tower of `vit`, `head` and `text`.

    Attributes:
        own_patches: whether the backbone's own patches are compared with the texts in place of the
            head's, as the published notebook does against its own comment.
    """

    backbone: str = "dinov3"
    own_patches: bool = False

    name = "dinotxt"
    title = "dino.txt"
    parameters = ("dinotxt",)
    towers = ("vision", "head", "text")
    texts = DinoTxtText
    protocol = "dinotxt"
    described = ("backbone", "own_patches", "shapes")

    @property
    def resolution(self) -> int:
        return 224

    def align(self, params: Any, image: Float[Array, "b H W 3"]) -> Aligned:
        """The head's class token and mean patch [b, 2 d], and its patches or the backbone's own.

        The head takes the backbone's tokens after their final norm, and has no positions. Patches
        are compared with the second half of a text's embedding.
        """
        params, vit = params["dinotxt"], self.vit
        features, head = encode(vit, params["vision"], image), params["head"]
        own = project(vit, params["vision"], features.blocks[-1].output)
        tokens = run_blocks(tower(self.dtype), head, own)[-1].output
        tokens = layer_norm(tokens, head["ln_post"], EPS)
        patches = features.patches(tokens)
        embedding = jnp.concatenate([tokens[:, 0], patches.mean(axis=(1, 2))], axis=-1)
        return Aligned(embedding, features.patches(own) if self.own_patches else patches)

    def encode_text(self, params: Any, tokens: Int[Array, "n l"]) -> Float[Array, "n e"]:
        return encode_text(params["dinotxt"]["text"], tokens, self.dtype)

    def flops(self, side: int, texts: int, options: MaskOptions) -> Parts:
        del options
        patches = self.patches_of(side)
        parts = {
            "image tower": vision_tower(self.shapes, "vision", patches),
            "masks": 2 * patches * texts * self.embed_dim,
        }
        if not self.own_patches:
            tokens = count_prefix(self.shapes, "vision") + patches
            parts["head"] = blocks_of(self.shapes, "head", tokens)
        return parts

    @property
    def summary(self) -> str:
        width = shape_of(self.shapes, "vision/patch_kernel")[-1]
        return f"dino.txt on {self.backbone} of width {width} and patches of {self.patch}"
