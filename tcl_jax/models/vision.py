"""CLIP's vision transformer, with every intermediate that TCL taps as a field of its output."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from tcl_jax.models.attention import full_attention
from tcl_jax.models.dense import DENSE
from tcl_jax.models.layers import Block, LayerNorm, rematerialized
from tcl_jax.ops.resize import resize


@struct.dataclass
class VisionOutput:
    """What one pass through the vision tower yields; `jit` drops what the caller leaves unread.

    Attributes:
        tap: [b, 1 + h*w, c] tokens after block `tap_layer` (class token first), the input of the
            grounder's own blocks.
        patches: [b, h, w, c] last block as the tower's `dense` reads it, before `ln_post`.
        patch_embeddings: [b, h, w, d] `patches` through the frozen `ln_post` and `proj`.
        embedding: [b, d] class token after full attention, `ln_post` and `proj`; not normalised.
    """

    tap: jax.Array
    patches: jax.Array
    patch_embeddings: jax.Array
    embedding: jax.Array


class VisionTower(nn.Module):
    """CLIP's image encoder (Radford et al., 2021) for any image size divisible by the patch.

    Attributes:
        resolution: side of the square images it was trained on, in pixels.
        patch_size: side of a patch, in pixels.
        width, layers, heads: size of the transformer.
        embed_dim: size of the space shared with text.
        tap_layer: number of blocks before the tap, from 1 to `layers`.
        activation: "quick_gelu" (OpenAI) or "gelu" (OpenCLIP).
        dtype: compute dtype; parameters are float32.
        dense: a key of `dense.DENSE`, what the last block yields for the patches.
        remat: a key of `layers.REMAT`, what the blocks keep for the gradient.
    """

    resolution: int
    patch_size: int
    width: int
    layers: int
    heads: int
    embed_dim: int
    tap_layer: int
    activation: str = "quick_gelu"
    dtype: Any = jnp.float32
    dense: str = "maskclip"
    remat: str = "none"

    def setup(self) -> None:
        if self.dense not in DENSE:
            raise ValueError(f"dense={self.dense!r} is unknown; choose one of {', '.join(DENSE)}")
        scale = self.width**-0.5
        normal = nn.initializers.normal(scale)
        grid = self.resolution // self.patch_size
        patch = (self.patch_size, self.patch_size, 3, self.width)
        self.patch_kernel = self.param(
            "patch_kernel", nn.initializers.lecun_normal(in_axis=(0, 1, 2)), patch
        )
        self.class_embedding = self.param("class_embedding", normal, (self.width,))
        self.positional_embedding = self.param(
            "positional_embedding", normal, (1 + grid * grid, self.width)
        )
        self.ln_pre = LayerNorm()
        block = rematerialized(Block, self.remat, static=(2,))
        self.blocks = [block(self.heads, self.activation, self.dtype) for _ in range(self.layers)]
        self.ln_post = LayerNorm()
        self.proj = self.param("proj", normal, (self.width, self.embed_dim))

    def __call__(self, image: Float[Array, "b H W 3"]) -> VisionOutput:
        """Encodes normalised images.

        Args:
            image: [b, H, W, 3], normalised with ImageNet's mean and std; H and W are multiples
                of the patch size.

        Raises:
            ValueError: if H or W is not a multiple of the patch size.
        """
        grid = patch_grid(image.shape, self.patch_size)
        x = self._embed(image, grid)
        tap = x
        for number, block in enumerate(self.blocks[:-1], start=1):
            x = block(x, full_attention)
            if number == self.tap_layer:
                tap = x
        attended = self.blocks[-1](x, full_attention)
        if self.tap_layer == self.layers:
            tap = attended
        dense = DENSE[self.dense](self.blocks[-1], x, grid)
        patches = dense[:, 1:].reshape(x.shape[0], *grid, self.width)
        return VisionOutput(
            tap=tap,
            patches=patches,
            patch_embeddings=self._project(patches),
            embedding=self._project(attended[:, 0]),
        )

    def _embed(
        self, image: Float[Array, "b H W 3"], grid: tuple[int, int]
    ) -> Float[Array, "b l c"]:
        (height, width), side = grid, self.patch_size
        pixels = image.reshape(image.shape[0], height, side, width, side, 3).astype(self.dtype)
        x = jnp.einsum("bhpwqi,pqic->bhwc", pixels, self.patch_kernel.astype(self.dtype))
        x = x.reshape(image.shape[0], height * width, self.width)
        first = jnp.broadcast_to(self.class_embedding, (image.shape[0], 1, self.width))
        x = jnp.concatenate([first.astype(self.dtype), x], axis=1)
        x = x + resize_positions(self.positional_embedding, grid).astype(self.dtype)
        return self.ln_pre(x)

    def _project(self, x: Float[Array, "... c"]) -> Float[Array, "... d"]:
        return jnp.einsum("...c,cd->...d", self.ln_post(x), self.proj.astype(self.dtype))


def patch_grid(shape: tuple[Any, ...], patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches of an image batch [b, H, W, 3].

    Raises:
        ValueError: if H or W is not a positive multiple of the patch size.
    """
    height, width = shape[1:3]
    if height % patch_size or width % patch_size or not height * width:
        raise ValueError(
            f"image of {height}x{width} pixels does not divide into patches of {patch_size}; "
            f"pad or resize it to a multiple of {patch_size}"
        )
    return height // patch_size, width // patch_size


def resize_positions(positions: Float[Array, "l c"], grid: tuple[int, int]) -> Float[Array, "m c"]:
    """Position embeddings for another patch grid; the class token's row is kept.

    Bicubic with a = -0.75 and no antialias, as PyTorch's `interpolate` does it; the trained grid
    itself is returned untouched.
    """
    side = round((positions.shape[0] - 1) ** 0.5)
    if grid == (side, side):
        return positions
    first, rest = positions[:1], positions[1:].reshape(side, side, -1)
    rest = resize(rest, grid, method="bicubic", align_corners=False)
    return jnp.concatenate([first, rest.reshape(grid[0] * grid[1], -1)])
