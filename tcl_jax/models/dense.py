"""Segmentation by CLIP alone, without any training: its last block has another attention.

With it a patch's embedding is about what the patch shows rather than about the whole image.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from tcl_jax.models import flops
from tcl_jax.models.attention import (
    Attention,
    correlative_self_attention,
    neighbourhood_attention,
    query_attention,
    self_only_attention,
)
from tcl_jax.models.clip import encode_image
from tcl_jax.models.clip_method import CLIPMethod
from tcl_jax.models.decoder import UPSAMPLING
from tcl_jax.models.layers import block
from tcl_jax.models.method import Dense, Image, MaskOptions, Masks, Texts, refine_masks
from tcl_jax.models.vit import Features, bicubic_offset, project

KP_SCALE, KP_OFFSET = 10.0, 0.25
"""Steepness and centre of the sigmoid of CLIP's own patch similarities. TCL mixes these masks into
its own (section 4.1); KP is the original's name for that (`kp_branch`, and its share `kp_w`)."""


def clip_masks(similarity: Float[Array, "..."]) -> Float[Array, "..."]:
    """`sigmoid(10 (similarity - 0.25))`, which TCL mixes into its own masks, see `KP_SCALE`."""
    return jax.nn.sigmoid(KP_SCALE * (similarity - KP_OFFSET))


@dataclasses.dataclass(frozen=True)
class DenseCLIP(CLIPMethod):
    """A CLIP whose patches are embedded in another way than its class token, without training.

    Masks are a sigmoid of the cosines of patches and texts, on the patch grid; with PAMR on four
    times as many rows and columns, as TCL's are.
    """

    dtype: Any = jnp.float32

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        return {"clip": self.clip_model.init(key)}

    def masks(
        self, params: Any, image: Image, text_embeddings: Texts, options: MaskOptions
    ) -> Masks:
        """`clip_masks`, refined where the options say so."""
        masks = clip_masks(self.cosines(params, image, text_embeddings))
        if options.refine == "pamr":
            rows, columns = masks.shape[1:3]
            masks = refine_masks(image, masks, (UPSAMPLING * rows, UPSAMPLING * columns))
        return masks

    @property
    def summary(self) -> str:
        return f"CLIP alone, {self.config.title}"


class PatchTokens(DenseCLIP):
    """A CLIP whose patches have other tokens at its end, on their own grid."""

    @abc.abstractmethod
    def patch_tokens(self, clip: Any, features: Features) -> Float[Array, "b h w c"]:
        """What enters `ln_post`, of CLIP's parameters and features."""

    def embed_patches(self, clip: Any, features: Features) -> Float[Array, "b h w d"]:
        """`dense_features`, of CLIP's parameters and features."""
        tokens = self.patch_tokens(clip, features)
        embedded = project(self.clip_model.vision, clip["visual"], tokens)
        return embedded.astype(jnp.float32)

    def dense_features(self, params: Any, image: Image) -> Dense:
        """`patch_tokens` through `ln_post` and `proj`."""
        features = encode_image(self.clip_model, params["clip"], image).features
        return self.embed_patches(params["clip"], features)


class LastBlock(PatchTokens):
    """A CLIP whose last block has another attention for the patches.

    Attributes:
        reduced: whether the block yields what attention does, with neither residual nor MLP.
        products: number of those of tokens with tokens that its attention is made of.
    """

    reduced: ClassVar[bool] = False
    products: ClassVar[int] = 0

    @abc.abstractmethod
    def attention(self, grid: tuple[int, int]) -> Attention:
        """What the patches, of so many rows and columns, attend to in the last block."""

    def patch_tokens(self, clip: Any, features: Features) -> Float[Array, "b h w c"]:
        """The last block of the patches, before `ln_post`, of CLIP's parameters and features."""
        vision, last = self.clip_model.vision, len(features.blocks) - 1
        params, x = clip["visual"][f"blocks_{last}"], features.after(last)
        found = block(vision, params, x, self.attention(features.grid))
        return features.patches(found.attended if self.reduced else found.output)

    def flops(self, side: int, texts: int, options: MaskOptions) -> flops.Parts:
        del options
        mlp = not self.reduced
        return flops.dense_masks(self.config.tower, side, texts, products=self.products, mlp=mlp)


class MaskCLIP(LastBlock):
    """Tokens attend to themselves alone, as in TCL.

    Zhou et al., "Extract Free Dense Labels from CLIP", ECCV 2022.
    """

    name = "maskclip"
    title = "MaskCLIP"

    def attention(self, grid: tuple[int, int]) -> Attention:
        return self_only_attention


class AuthorsCLIP(DenseCLIP):
    """Pixels and positions are those of these methods' authors, which differ from TCL's.

    Of an image, what is beyond its last whole patch is not seen.
    """

    own_pixels = "clip"
    clip_fields: ClassVar[Mapping[str, Any]] = {"resample": bicubic_offset, "ragged": "crop"}


class CroppedCLIP(AuthorsCLIP):
    """Masks of an image's whole patches are stretched over all of it."""

    patch_size = 1

    def seen_size(self, size: tuple[int, int]) -> tuple[int, int]:
        height, width = (side - side % self.config.patch_size or side for side in size)
        return height, width


class SCLIP(CroppedCLIP, LastBlock):
    """Tokens attend to similar ones.

    Wang et al., "SCLIP: Rethinking Self-Attention for Dense Vision-Language Inference", ECCV 2024.
    """

    name = "sclip"
    title = "SCLIP"
    protocol = "sclip"
    products = 2

    def attention(self, grid: tuple[int, int]) -> Attention:
        return correlative_self_attention


class NACLIP(CroppedCLIP, LastBlock):
    """Patches attend to similar ones, nearer ones more, in the paper's reduced block.

    Hajimiri et al., "Pay Attention to Your Neighbours: Training-Free Open-Vocabulary Semantic
    Segmentation", WACV 2025.
    """

    name = "naclip"
    title = "NACLIP"
    protocol = "naclip"
    reduced = True
    products = 1

    def attention(self, grid: tuple[int, int]) -> Attention:
        return neighbourhood_attention(grid)


class ClearCLIP(AuthorsCLIP, LastBlock):
    """Tokens attend to those of similar queries; neither residual nor MLP blurs what they find.

    Windows are padded to whole patches.

    Lan et al., "ClearCLIP: Decomposing CLIP Representations for Dense Vision-Language Inference",
    ECCV 2024.
    """

    name = "clearclip"
    title = "ClearCLIP"
    protocol = "clearclip"
    reduced = True
    products = 1

    def attention(self, grid: tuple[int, int]) -> Attention:
        return query_attention
