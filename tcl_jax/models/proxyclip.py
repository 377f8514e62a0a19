"""ProxyCLIP: patches of CLIP attend to those that another encoder, such as a DINO, finds similar.

Lan et al., "ProxyCLIP: Proxy Attention Improves CLIP for Open-Vocabulary Segmentation", ECCV 2024.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from tcl_jax.models import flops
from tcl_jax.models.backbone import backbone_features
from tcl_jax.models.clip import encode_image
from tcl_jax.models.dense import AuthorsCLIP
from tcl_jax.models.families import FAMILIES
from tcl_jax.models.layers import dense
from tcl_jax.models.method import Dense, Image, MaskOptions
from tcl_jax.models.shapes import Shapes, init_params, shape_of
from tcl_jax.models.vit import ViT, project
from tcl_jax.ops.images import renormalize
from tcl_jax.ops.masking import l2_normalize
from tcl_jax.ops.resize import resize

BETA, GAMMA = 1.2, 3.0
"""What the mean similarity is multiplied by to be the least that is attended to, and the
attention's inverse temperature."""
ROWS = 448
"""Patches whose attention is in memory at a time. All 3,136 of a window of 448 pixels in patches of
8 are seven times as many, and their attention is 39 MB in place of 6, of each image of a batch."""


@dataclasses.dataclass(frozen=True)
class ProxyCLIP(AuthorsCLIP):
    """The last block of CLIP with the attention of another encoder, on that encoder's grid.

    Both see the same pixels, each with its own statistics and cropped to its own whole patches.
    Windows are padded to multiples of 56, as by the authors. Parameters are `clip` and `second`, a
    tower of `vit`.

    Attributes:
        second: family of the other encoder, a key of `families.FAMILIES`.
        shapes: of its parameters under `second`.
    """

    second: str = dataclasses.field(kw_only=True)
    shapes: Shapes = dataclasses.field(kw_only=True)

    name = "proxyclip"
    title = "ProxyCLIP"
    parameters = ("clip", "second")
    protocol = "proxyclip"
    described = ("config", "second", "shapes")
    patch_size = 56

    @property
    def vit(self) -> ViT:
        """Settings of the other encoder."""
        return dataclasses.replace(FAMILIES[self.second].vit, dtype=self.dtype, ragged="crop")

    @property
    def second_patch(self) -> int:
        """Side of the other encoder's patches in pixels."""
        return shape_of(self.shapes, "second/patch_kernel")[0]

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        first, second = jax.random.split(key)
        return {**super().init(first), **init_params(second, self.shapes)}

    def proxy_tokens(self, params: Any, image: Float[Array, "b H W 3"]) -> Float[Array, "b h w c"]:
        """The other encoder's patches after its final norm, float32."""
        others = FAMILIES[self.second].pixel_statistics
        pixels = renormalize(image, self.pixel_statistics, others)
        return backbone_features(self.vit, params["second"], pixels).patches

    def values(
        self, params: Any, image: Float[Array, "b H W 3"], grid: Sequence[int]
    ) -> Float[Array, "b h w c"]:
        """Values of the patches in CLIP's last block, all heads joined, on a grid; float32."""
        features = encode_image(self.clip_model, params["clip"], image).features
        value = features.blocks[-1].value
        return resize(features.patches(value.reshape(*value.shape[:2], -1)), grid)

    def last_block(self, params: Any, image: Float[Array, "b H W 3"]) -> Float[Array, "b h w c"]:
        """What the last block's attention yields, which is all that is left of the block."""
        tokens = self.proxy_tokens(params, image)
        batch, *grid, width = tokens.shape
        values = self.values(params, image, grid).reshape(batch, grid[0] * grid[1], -1)
        mixed = attend_by_proxy(tokens.reshape(batch, -1, width), values)
        mixed = mixed.reshape(batch, *grid, self.config.vision_heads, -1)
        last = params["clip"]["visual"][f"blocks_{self.config.vision_layers - 1}"]
        return dense(mixed, last["attn"]["out_proj"], self.dtype, axes=2)

    def dense_features(self, params: Any, image: Image) -> Dense:
        """Patches on the other encoder's grid.

        Raises:
            InputError: if the image has not one whole patch of either encoder.
        """
        visual = params["clip"]["visual"]
        embedded = project(self.clip_model.vision, visual, self.last_block(params, image))
        return embedded.astype(jnp.float32)

    def flops(self, side: int, texts: int, options: MaskOptions) -> flops.Parts:
        del options
        patches, config = (side // self.second_patch) ** 2, self.config
        width, embed, depth = config.vision_width, config.embed_dim, config.vision_layers
        values = 2 * (side // config.patch_size) ** 2 * width**2
        size = shape_of(self.shapes, "second/patch_kernel")[-1]
        return {
            "image tower": flops.image_tower(config.tower, depth - 1, side) + values,
            "second encoder": flops.vision_tower(self.shapes, "second", patches),
            "attention": 2 * patches**2 * (size + width) + 2 * patches * width**2,
            "masks": 2 * patches * embed * (width + texts),
        }

    @property
    def summary(self) -> str:
        width = shape_of(self.shapes, "second/patch_kernel")[-1]
        second = f"{FAMILIES[self.second].title} of width {width} and patches of"
        return f"{self.config.title} with {second} {self.second_patch}"


def attend_by_proxy(
    tokens: Float[Array, "b m c"], values: Float[Array, "b m d"]
) -> Float[Array, "b m d"]:
    """Values in the shares that the similarity of tokens gives, the same for all heads.

    Of each image, what is at least `BETA` times as similar as two of its tokens are on average is
    attended to, by the softmax of `GAMMA` times the rest. Tokens that are all alike have nothing as
    similar, and attend to themselves alone. The tokens are the second encoder's; values
    are float32.
    """
    units = l2_normalize(tokens)
    # The mean over all pairs is the square of the mean, for which no pair has to be looked at.
    least = BETA * jnp.sum(jnp.square(jnp.mean(units, axis=1)), axis=-1)
    places = jnp.arange(units.shape[1])

    def attend(row: tuple[jax.Array, jax.Array]) -> Float[Array, "b d"]:
        unit, place = row
        scores = GAMMA * (jnp.einsum("bc,bmc->bm", unit, units) - least[:, None])
        hidden = (scores < 0) & (places != place)
        shares = jax.nn.softmax(jnp.where(hidden, -jnp.inf, scores), axis=-1)
        return jnp.einsum("bm,bmd->bd", shares, values)

    mixed = jax.lax.map(attend, (jnp.moveaxis(units, 1, 0), places), batch_size=ROWS)
    return jnp.moveaxis(mixed, 0, 1)
