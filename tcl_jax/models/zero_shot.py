"""What methods share whose patches and texts lie in one space by training: TIPS and dino.txt."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key

from tcl_jax.models.families import FAMILIES
from tcl_jax.models.method import Dense, Image, MaskOptions, Method, Texts, refine_masks
from tcl_jax.models.shapes import Shapes, init_params, shape_of, shapes_of
from tcl_jax.models.text_encoder import TextEncoder
from tcl_jax.models.vit import ViT
from tcl_jax.ops.images import PixelStatistics
from tcl_jax.ops.resize import resize


@struct.dataclass
class Aligned:
    """Images in the space of texts; nothing is normalised.

    Attributes:
        embedding: [b, e] of the image.
        patches: [b, h, w, d] of the patches on their grid.
    """

    embedding: jax.Array
    patches: jax.Array


@dataclasses.dataclass(frozen=True)
class ZeroShot(Method):
    """Each pixel's probability of each text: softmax over the texts of the cosines.

    Windows of any size: they are resized, bicubic, to the next multiple of the patch. Cosines of
    the patches are resized to the window itself before the softmax, which has no temperature. So
    probabilities of many texts differ little, and there is no background: of a threshold of 0, as
    these methods have it, nothing is below. All parameters are under the method's name.

    Attributes:
        towers: names of the parameters of each tower that masks and texts need.
        texts: the text tower, of the parameters `text`.
        shapes: of all parameters.
        backbone: family of the vision tower, a key of `families.FAMILIES`.
        folder: where the weights are from.
    """

    shapes: Shapes
    dtype: Any = jnp.float32
    backbone: str = ""
    folder: str = dataclasses.field(default="", compare=False)

    towers: ClassVar[tuple[str, ...]]
    texts: ClassVar[Any]
    patch_size: ClassVar[int] = 1
    described: ClassVar[tuple[str, ...]] = ("shapes",)

    @classmethod
    def of_towers(cls, towers: Any, **fields: Any) -> ZeroShot:
        """The method of the parameters of each of the towers, and of further fields."""
        return cls(shapes_of({cls.name: towers}), **fields)

    @property
    def vit(self) -> ViT:
        """Settings of the vision tower."""
        return dataclasses.replace(FAMILIES[self.backbone].vit, dtype=self.dtype)

    @property
    def pixel_statistics(self) -> PixelStatistics:
        return FAMILIES[self.backbone].pixel_statistics

    @property
    def text_encoder(self) -> TextEncoder:
        encoder = self.texts.of_shapes(self.shapes, self.folder)
        return cast(TextEncoder, dataclasses.replace(encoder, dtype=self.dtype))

    def text_params(self, params: Any) -> Any:
        return {"text": params[self.name]["text"]}

    @abc.abstractmethod
    def align(self, params: Any, image: Float[Array, "b H W 3"]) -> Aligned:
        """What texts are compared with.

        Of all parameters, and of images normalised with `pixel_statistics`, whose sides are
        multiples of the patch.
        """

    def encode_text(self, params: Any, tokens: Int[Array, "n l"]) -> Float[Array, "n e"]:
        """Text embeddings in the space of `Aligned.embedding`, float32 and not normalised."""
        return self.embed_texts(params, tokens)

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return shape_of(self.shapes, "vision/patch_kernel")[0]

    def patches_of(self, side: int) -> int:
        """Number of patches of a square window of `side` pixels."""
        return (-(-side // self.patch)) ** 2

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        return init_params(key, self.shapes)

    def dense_features(self, params: Any, image: Image) -> Dense:
        """The patches of the image resized to the next multiple of the patch."""
        patches = self.align(params, resize_to_patches(image, self.patch)).patches
        return patches.astype(jnp.float32)

    def masks(
        self, params: Any, image: Image, text_embeddings: Texts, options: MaskOptions
    ) -> Float[Array, "b H W n"]:
        """Probabilities at the windows' own size."""
        size = image.shape[1:3]
        cosines = self.cosines(params, image, text_embeddings)
        real = jnp.any(text_embeddings != 0, axis=-1)
        masks = jax.nn.softmax(resize(cosines, size), axis=-1, where=real)
        return refine_masks(image, masks, size) if options.refine == "pamr" else masks

    @classmethod
    def from_description(cls, fields: Mapping[str, Any]) -> Any:
        method = super().from_description(fields)
        return dataclasses.replace(method, folder=fields.get("folder", ""))


def resize_to_patches(image: Float[Array, "b H W 3"], patch: int) -> Float[Array, "b h w 3"]:
    """Images whose sides are the next multiples of the patch, PyTorch's bicubic."""
    height, width = (-(-side // patch) * patch for side in image.shape[1:3])
    return resize(image, (height, width), method="bicubic")
