"""CLIP: both towers, and the table of published sizes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct
from jax.nn.initializers import lecun_normal, normal
from jaxtyping import Array, Float, Int, Key

from tcl_jax.data.tokenizer import ClipTokenizer
from tcl_jax.errors import InputError
from tcl_jax.models.flops import Tower
from tcl_jax.models.layers import (
    ACTIVATIONS,
    CLIP_EPS,
    Transformer,
    init_block,
    init_layer_norm,
    matmul_precision,
)
from tcl_jax.models.text import clip_tokenizer, encode_tokens
from tcl_jax.models.text_encoder import TextEncoder
from tcl_jax.models.vit import Features, Resample, ViT, bicubic, encode, project
from tcl_jax.ops.images import IMAGENET, PixelStatistics

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)
"""Start of every logit scale, the log of an inverse temperature: CLIP's own, TCL's two."""


HEAD_SIZE = 64
"""Channels per attention head in every CLIP of OpenAI's; checkpoints do not record it."""


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Sizes of a CLIP; each tower has width // 64 heads.

    Attributes:
        embed_dim: size of the shared space.
        resolution, patch_size: of the images, in pixels.
        vision_width, vision_layers, text_width, text_layers: of the two transformers.
        context_length, vocab_size: of the texts.
        activation: a key of `layers.ACTIVATIONS`.
    """

    embed_dim: int
    resolution: int
    patch_size: int
    vision_width: int
    vision_layers: int
    text_width: int
    text_layers: int
    context_length: int = 77
    vocab_size: int = 49408
    activation: str = "quick_gelu"

    def __post_init__(self) -> None:
        if self.resolution % self.patch_size:
            raise ValueError(
                f"clip.resolution={self.resolution} is not a multiple of "
                f"clip.patch_size={self.patch_size}"
            )
        for name in ("vision_width", "text_width"):
            width = getattr(self, name)
            if width < HEAD_SIZE or width % (width // HEAD_SIZE):
                raise ValueError(
                    f"clip.{name}={width} does not divide into {width // HEAD_SIZE} attention "
                    f"heads, CLIP's one per {HEAD_SIZE} channels; choose a multiple of {HEAD_SIZE}"
                )
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"clip.activation={self.activation!r} is unknown; "
                f"choose one of {', '.join(sorted(ACTIVATIONS))}"
            )

    @property
    def tower(self) -> Tower:
        """Sizes of the vision tower."""
        vision = (self.vision_width, self.vision_layers)
        return Tower(self.embed_dim, self.resolution, self.patch_size, *vision, prefix_tokens=1)

    @property
    def vision_heads(self) -> int:
        """Heads of the vision tower."""
        return self.vision_width // HEAD_SIZE

    @property
    def text_heads(self) -> int:
        """Heads of the text tower."""
        return self.text_width // HEAD_SIZE

    @property
    def title(self) -> str:
        """The published name of these sizes, or the sizes."""
        for name, sizes in VARIANTS.items():
            if dataclasses.replace(self, activation=sizes.activation) == sizes:
                return f"CLIP {name} ({self.activation})"
        return f"a CLIP of other sizes, {self}"


VARIANTS: dict[str, CLIPConfig] = {
    "ViT-B/32": CLIPConfig(512, 224, 32, 768, 12, 512, 12),
    "ViT-B/16": CLIPConfig(512, 224, 16, 768, 12, 512, 12),
    "ViT-L/14": CLIPConfig(768, 224, 14, 1024, 24, 768, 12),
    "ViT-L/14@336px": CLIPConfig(768, 336, 14, 1024, 24, 768, 12),
}


def choose_sizes(
    variant: str, sizes: Mapping[str, Any], weights: CLIPConfig | None = None
) -> CLIPConfig:
    """Sizes of a CLIP as a run's config gives them.

    Args:
        variant: a row of `VARIANTS`, "auto" for those of the weights, or "custom".
        sizes: fields of `CLIPConfig` that differ from the variant's; 0 and "" are none.
        weights: sizes of the pretrained weights, where there are some.

    Raises:
        InputError: if the variant is unknown, its sizes are not known, or they are impossible.
    """
    given = {name: value for name, value in sizes.items() if value}
    if variant == "auto":
        if weights is None:
            raise InputError(
                "model.variant='auto' takes the sizes from model.weights, and there are none; "
                f"choose one of {', '.join(VARIANTS)}, or 'custom' with the sizes in model.sizes"
            )
        for name, value in given.items():
            if (own := getattr(weights, name, None)) != value:
                raise InputError(
                    f"model.sizes.{name}={value!r}, and the weights have {own!r}; leave it out, or "
                    "give other weights (model.variant='custom' takes the sizes as they are given)"
                )
        return weights
    if variant not in (*VARIANTS, "custom"):
        raise InputError(
            f"model.variant={variant!r} is unknown; choose one of {', '.join(VARIANTS)}, 'auto' "
            "for the sizes of model.weights, or 'custom' with the sizes in model.sizes"
        )
    base = dataclasses.asdict(VARIANTS[variant]) if variant in VARIANTS else {}
    all_sizes = {**base, **given}
    needed = [f.name for f in dataclasses.fields(CLIPConfig) if f.default is dataclasses.MISSING]
    if lacking := [f"model.sizes.{name}" for name in needed if name not in all_sizes]:
        raise InputError(
            f"model.sizes do not describe a CLIP: with model.variant='custom' give "
            f"{', '.join(lacking)}, too"
        )
    try:
        return CLIPConfig(**all_sizes)
    except (TypeError, ValueError) as error:
        raise InputError(f"model.sizes do not describe a CLIP: {error}") from error


@dataclasses.dataclass(frozen=True)
class CLIP(TextEncoder):
    """A CLIP of any size (Radford et al., 2021), with parameters `visual`, `text`, `logit_scale`.

    Attributes:
        config: its sizes.
        remat: a key of `layers.REMAT`, what the blocks keep for the gradient.
        resample, ragged: of the vision tower, see `vit.ViT`; as the original TCL has them.
        normalizes_sentences: see `TextEncoder`; a matter of the protocol.
        pixel_statistics: mean and deviation that images are normalised with.
    """

    config: CLIPConfig
    dtype: Any = jnp.float32
    remat: str = "none"
    resample: Resample = bicubic
    ragged: str = "refuse"
    normalizes_sentences: bool = False

    pixel_statistics: ClassVar[PixelStatistics] = IMAGENET

    @property
    def vision(self) -> ViT:
        """The vision tower."""
        activation = ACTIVATIONS[self.config.activation]
        return ViT(CLIP_EPS, activation, self.dtype, self.remat, self.resample, self.ragged)

    @property
    def text(self) -> Transformer:
        """The text tower."""
        return Transformer(CLIP_EPS, ACTIVATIONS[self.config.activation], self.dtype, self.remat)

    @property
    def embed_dim(self) -> int:
        return self.config.embed_dim

    @property
    def settings(self) -> tuple[str, ...]:
        return (self.config.activation, *["normalized"] * self.normalizes_sentences)

    def tokenizer(self, file: str | None = None) -> ClipTokenizer:
        return clip_tokenizer(self.config.context_length, self.config.vocab_size, file)

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Random parameters, float32."""
        c = self.config
        keys = iter(jax.random.split(key, 7 + c.vision_layers + c.text_layers))
        grid, patch = c.resolution // c.patch_size, (c.patch_size, c.patch_size, 3)
        vision, text = normal(c.vision_width**-0.5), normal(c.text_width**-0.5)

        def blocks(depth: int, width: int, heads: int) -> dict[str, Any]:
            return {f"blocks_{i}": init_block(next(keys), width, heads) for i in range(depth)}

        return {
            "visual": {
                "patch_kernel": lecun_normal((0, 1, 2))(next(keys), (*patch, c.vision_width)),
                "class_embedding": vision(next(keys), (c.vision_width,)),
                "positional_embedding": vision(next(keys), (1 + grid**2, c.vision_width)),
                "ln_pre": init_layer_norm(c.vision_width),
                **blocks(c.vision_layers, c.vision_width, c.vision_heads),
                "ln_post": init_layer_norm(c.vision_width),
                "proj": vision(next(keys), (c.vision_width, c.embed_dim)),
            },
            "text": {
                "token_embedding": normal(0.02)(next(keys), (c.vocab_size, c.text_width)),
                "positional_embedding": normal(0.01)(next(keys), (c.context_length, c.text_width)),
                **blocks(c.text_layers, c.text_width, c.text_heads),
                "ln_final": init_layer_norm(c.text_width),
                "text_projection": text(next(keys), (c.text_width, c.embed_dim)),
            },
            "logit_scale": jnp.asarray(INITIAL_LOGIT_SCALE, jnp.float32),
        }

    def embed_texts(self, params: Any, tokens: Int[Array, "n l"]) -> Float[Array, "n d"]:
        return encode_text(self, params, tokens)


@struct.dataclass
class ImageFeatures:
    """Results of the vision tower; `jit` drops what the caller leaves unread.

    Attributes:
        features: of every block.
        embedding: [b, d] the class token through `ln_post` and `proj`; not normalised.
    """

    features: Features
    embedding: jax.Array


def encode_image(model: CLIP, params: Any, image: Float[Array, "b H W 3"]) -> ImageFeatures:
    """Features of normalised images; H and W are multiples of the patch, but see `CLIP.ragged`."""
    with matmul_precision(model.dtype):
        features = encode(model.vision, params["visual"], image)
        last = features.blocks[-1].output[:, 0]
        return ImageFeatures(features, project(model.vision, params["visual"], last))


def encode_text(model: CLIP, params: Any, tokens: Int[Array, "n l"]) -> Float[Array, "n d"]:
    """Text embeddings, float32 and not normalised, of tokens as in `text.encode_tokens`."""
    with matmul_precision(model.dtype):
        embedding = encode_tokens(model.text, params["text"], tokens)
    return embedding.astype(jnp.float32)
