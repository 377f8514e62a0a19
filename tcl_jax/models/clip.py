"""CLIP: both towers, and the table of published sizes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tcl_jax.errors import InputError
from tcl_jax.models.layers import ACTIVATIONS, matmul_precision
from tcl_jax.models.text import TextTower
from tcl_jax.models.vision import VisionOutput, VisionTower

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)
"""Start of every learned temperature, CLIP's own and TCL's two (CLIP section 2.5)."""


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
    def vision_heads(self) -> int:
        """Heads of the vision tower."""
        return self.vision_width // HEAD_SIZE

    @property
    def text_heads(self) -> int:
        """Heads of the text tower."""
        return self.text_width // HEAD_SIZE

    def tap_of(self, layer: int | None) -> int:
        """Block, counted from 1, that feeds the grounder: for None and 0 that before the last."""
        return layer or self.vision_layers - 1


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
    if variant == "auto" and weights is not None:
        for name, value in given.items():
            if (own := getattr(weights, name, None)) != value:
                raise InputError(
                    f"model.sizes.{name}={value!r}, and the weights have {own!r}; leave it out, or "
                    "give other weights (model.variant='custom' takes the sizes as they are given)"
                )
        return weights
    if variant == "auto":
        raise InputError(
            "model.variant='auto' takes the sizes from model.weights, and none are trained further "
            f"here; choose one of {', '.join(VARIANTS)}, or 'custom' with the sizes in model.sizes"
        )
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


class CLIP(nn.Module):
    """A CLIP of any size.

    Attributes:
        config: its sizes.
        tap_layer: block after which `VisionOutput.tap` is read; the one before the last if None.
        dtype: compute dtype; parameters are float32.
        dense: a key of `dense.DENSE`, how `VisionOutput.patches` are made.
        remat: a key of `layers.REMAT`, what the blocks keep for the gradient.
    """

    config: CLIPConfig
    tap_layer: int | None = None
    dtype: Any = jnp.float32
    dense: str = "maskclip"
    remat: str = "none"

    def setup(self) -> None:
        c = self.config
        tap = c.tap_of(self.tap_layer)
        self.visual = VisionTower(
            resolution=c.resolution,
            patch_size=c.patch_size,
            width=c.vision_width,
            layers=c.vision_layers,
            heads=c.vision_heads,
            embed_dim=c.embed_dim,
            tap_layer=tap,
            activation=c.activation,
            dtype=self.dtype,
            dense=self.dense,
            remat=self.remat,
        )
        self.text = TextTower(
            vocab_size=c.vocab_size,
            context_length=c.context_length,
            width=c.text_width,
            layers=c.text_layers,
            heads=c.text_heads,
            embed_dim=c.embed_dim,
            activation=c.activation,
            dtype=self.dtype,
            remat=self.remat,
        )
        self.logit_scale = self.param(
            "logit_scale", nn.initializers.constant(INITIAL_LOGIT_SCALE), ()
        )

    def __call__(
        self, image: Float[Array, "b H W 3"], tokens: Int[Array, "n l"]
    ) -> tuple[VisionOutput, Float[Array, "n d"], Float[Array, ""]]:
        """Both towers and the learned log temperature."""
        return self.visual(image), self.text(tokens), self.logit_scale

    def encode_image(self, image: Float[Array, "b H W 3"]) -> VisionOutput:
        return self.visual(image)

    def encode_text(self, tokens: Int[Array, "n l"]) -> Float[Array, "n d"]:
        return self.text(tokens)


def encode_image(model: CLIP, params: Any, image: Float[Array, "b H W 3"]) -> VisionOutput:
    """Every vision feature of normalised images; see `VisionOutput`."""
    with matmul_precision(model.dtype):
        output = model.apply({"params": params}, image, method=CLIP.encode_image)
    assert isinstance(output, VisionOutput)
    return output


def encode_text(model: CLIP, params: Any, tokens: Int[Array, "n l"]) -> Float[Array, "n d"]:
    """Text embeddings, float32 and not normalised."""
    with matmul_precision(model.dtype):
        embedding = model.apply({"params": params}, tokens, method=CLIP.encode_text)
    return jnp.asarray(embedding, jnp.float32)
