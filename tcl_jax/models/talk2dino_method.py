"""Talk2DINO as a method that segments, see `talk2dino`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from tcl_jax.data.tokenizer import Tokenizer
from tcl_jax.errors import InputError
from tcl_jax.models.clip import CLIP, CLIPConfig
from tcl_jax.models.dinotxt import DinoTxtText
from tcl_jax.models.families import FAMILIES
from tcl_jax.models.flops import Parts, vision_tower
from tcl_jax.models.method import Image, MaskOptions, Method
from tcl_jax.models.shapes import Shapes, from_json, init_params, shape_of, to_json
from tcl_jax.models.talk2dino import (
    HeadFeatures,
    embed_templates,
    head_features,
    patch_masks,
    project_text,
)
from tcl_jax.models.text_encoder import TextEncoder
from tcl_jax.models.tips import TIPSText
from tcl_jax.models.vit import ViT
from tcl_jax.ops.images import PixelStatistics
from tcl_jax.ops.pamr import pamr
from tcl_jax.ops.resize import resize

RESIZE_DIM = 448
"""Side of the square that every window is resized to (the original's `resize_dim`), in pixels."""
THRESHOLDS = {1024: 0.54}
THRESHOLD = 0.55
"""The authors' score of the background: by width of the patches (ViT-L), and of all others."""


TEXT_TOWERS: dict[str, type[TIPSText | DinoTxtText]] = {"tips": TIPSText, "dinotxt": DinoTxtText}
"""Text towers besides CLIP's, by the name of their method."""


def usual_side(backbone: Mapping[str, Any]) -> int:
    """`RESIZE_DIM`, or the side that a small backbone's positions were learned for, in pixels."""
    positions = backbone.get("positional_embedding")
    if positions is None:
        return RESIZE_DIM
    trained = round(len(positions) ** 0.5) * int(backbone["patch_kernel"].shape[0])
    return RESIZE_DIM if trained >= RESIZE_DIM // 2 else trained


@dataclasses.dataclass(frozen=True)
class ProjectedText(TextEncoder):
    """A text tower and the projection, of the parameters `text` and `projection`.

    Attributes:
        tower: the text tower; None: texts are not embedded here.
        width: of the patches.
    """

    tower: TextEncoder | None
    width: int
    dtype: Any = jnp.float32

    @property
    def embed_dim(self) -> int:
        return self.width

    @property
    def frozen(self) -> TextEncoder:
        """The text tower, in `dtype`.

        Raises:
            InputError: if there is none.
        """
        if self.tower is None:
            raise InputError(
                "this Talk2DINO has no text tower to embed texts with; load it with clip=, which "
                "is ViT-B/16 for the released projections"
            )
        tower: TextEncoder = dataclasses.replace(cast(Any, self.tower), dtype=self.dtype)
        return tower

    @property
    def tokenizer_file(self) -> Path | None:
        return None if self.tower is None else self.tower.tokenizer_file

    def tokenizer(self, file: str | None = None) -> Tokenizer:
        return self.frozen.tokenizer(file)

    def embed_texts(self, params: Any, tokens: Int[Array, "n l"]) -> Float[Array, "n c"]:
        return project_text(params["projection"], self.frozen.embed_texts(params, tokens))

    def embed_classes(
        self, params: Any, tokens: Int[Array, "classes templates l"]
    ) -> Float[Array, "classes c"]:
        """`embed_templates` of the tower's features: their mean is projected."""
        features = self.frozen.embed_each(params, tokens)
        return embed_templates(params["projection"], features)


@dataclasses.dataclass(frozen=True)
class Talk2DINO(Method):
    """Talk2DINO, of the parameters `backbone`, `projection` and the text tower's `text`.

    A window is resized to a square, and its masks are brought back to the window's own size; PAMR
    works on that size, too. So the masks' grid is the image's pixels. All but the towers is
    float32.

    Attributes:
        family: of the backbone, a key of `families.FAMILIES`.
        shapes: of all parameters.
        texts: the text tower, CLIP's or another; None: embeddings of texts are given.
        resize_dim: side of the square in pixels, a multiple of the backbone's patch.
        antialias: whether resizing to it is antialiased, as it is by the original with a recent
            torchvision; with 0.16, which it pins, it is not. Windows of that size stay as they
            are, which are all of the protocol's but those of very long images.

    Raises:
        ValueError: if the patch does not divide the square.
    """

    family: str
    shapes: Shapes
    texts: TextEncoder | None = None
    resize_dim: int = RESIZE_DIM
    antialias: bool = True
    dtype: Any = jnp.float32

    name = "talk2dino"
    title = "Talk2DINO"
    parameters = ("backbone", "projection")
    cleans = True
    protocol = "talk2dino"
    patch_size = 1

    def __post_init__(self) -> None:
        patch = shape_of(self.shapes, "backbone/patch_kernel")[0]
        if self.resize_dim < 1 or self.resize_dim % patch:
            raise ValueError(
                f"resize_dim={self.resize_dim} must be a multiple of this backbone's patch of "
                f"{patch} pixels"
            )

    @property
    def vit(self) -> ViT:
        """Settings of the backbone."""
        return dataclasses.replace(FAMILIES[self.family].vit, dtype=self.dtype)

    @property
    def text_width(self) -> int:
        """Channels of the texts' features that are projected."""
        return shape_of(self.shapes, "projection/hidden/kernel")[0]

    @property
    def width(self) -> int:
        """Channels of a patch."""
        return shape_of(self.shapes, "projection/out/kernel")[1]

    @property
    def pixel_statistics(self) -> PixelStatistics:
        return FAMILIES[self.family].pixel_statistics

    @property
    def resolution(self) -> int:
        return self.resize_dim

    @property
    def threshold(self) -> float:
        return THRESHOLDS.get(self.width, THRESHOLD)

    @property
    def text_encoder(self) -> ProjectedText:
        return ProjectedText(self.texts, self.width, self.dtype)

    def text_params(self, params: Any) -> Any:
        return {name: params[name] for name in ("text", "projection") if name in params}

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        return init_params(key, self.shapes)

    def head_features(self, params: Any, image: Float[Array, "b H W 3"]) -> HeadFeatures:
        """Those of the backbone."""
        return head_features(self.vit, params["backbone"], image)

    def dense_features(self, params: Any, image: Image) -> Float[Array, "b h w c"]:
        """The patches of the image resized to the square."""
        return self.head_features(params, self._square(image)).patches

    def _square(self, image: Float[Array, "b H W 3"]) -> Float[Array, "b s s 3"]:
        side = (self.resize_dim, self.resize_dim)
        if not self.antialias:
            return resize(image, side)
        return jax.vmap(lambda one: jax.image.resize(one, (*side, 3), "linear"))(image)

    def masks(
        self, params: Any, image: Image, text_embeddings: Float[Array, "n c"], options: MaskOptions
    ) -> Float[Array, "b H W n"]:
        """`patch_masks` at the image's own size, of any size, refined where the options say so."""
        features = self.head_features(params, self._square(image))
        masks = patch_masks(features, text_embeddings, cleaning=options.cleaning)
        masks = resize(masks, image.shape[1:3], align_corners=True)
        return pamr(image, masks) if options.refine == "pamr" else masks

    def flops(self, side: int, texts: int, options: MaskOptions) -> Parts:
        del side, options
        patches = (self.resize_dim // shape_of(self.shapes, "backbone/patch_kernel")[0]) ** 2
        return {
            "image tower": vision_tower(self.shapes, "backbone", patches),
            "masks": 2 * patches * texts * self.width,
        }

    @property
    def head_shape(self) -> tuple[int, int]:
        """Heads and channels of an image's `HeadFeatures.disentangled`."""
        heads = next(x[-2] for name, x in self.shapes if name.endswith("in_proj/kernel"))
        return heads, self.width

    def training_flops(self, batch: int) -> Parts:
        """FLOPs of one image with its text in a training step of a global batch, by part.

        Both towers' features are stored, and count as nothing.
        """
        text, (heads, width) = self.text_width, self.head_shape
        return {
            # Forward, weights, and the first layer's output; texts need no gradient.
            "projection": 4 * text * width + 6 * width**2,
            "heads": 2 * heads * width,
            "contrast": 2 * 2 * batch * width,
        }

    @property
    def summary(self) -> str:
        return f"Talk2DINO on {FAMILIES[self.family].title} of width {self.width}"

    def describe(self) -> dict[str, Any]:
        kinds: dict[type, dict[str, str]] = {y: {"text": x} for x, y in TEXT_TOWERS.items()}
        return {
            "family": self.family,
            "shapes": to_json(self.shapes),
            "clip": dataclasses.asdict(self.texts.config) if isinstance(self.texts, CLIP) else None,
            **kinds.get(type(self.texts), {}),
            "resize_dim": self.resize_dim,
            "antialias": self.antialias,
        }

    @classmethod
    def from_description(cls, fields: Mapping[str, Any]) -> Talk2DINO:
        clip, shapes = fields["clip"], from_json(fields["shapes"])
        texts: TextEncoder | None = None if clip is None else CLIP(CLIPConfig(**clip))
        if "text" in fields:
            texts = TEXT_TOWERS[fields["text"]].of_shapes(shapes, fields.get("folder", ""))
        family, resize_dim = FAMILIES[fields["family"]].name, fields["resize_dim"]
        return cls(family, shapes, texts, resize_dim, fields["antialias"])
