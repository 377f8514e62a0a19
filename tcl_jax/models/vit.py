"""One vision transformer for several families: CLIP, DINO, DINOv2, DINOv3, TIPS.

`ViT` has the settings that the parameters do not show. Besides the blocks (see `layers`) these have

    patch_kernel            [p, p, 3, c]; patch_bias [c] may be absent
    class_embedding         [c]; a first token, or [n, c] if there are several
    register_tokens         [r, c]; tokens without position between it and the patches
    mask_token              [c]; takes the place of patches that are masked
    positional_embedding    [1 + s*s, c], or [s*s, c] where the class token, if any, has no position
    rope_periods            [d / 4]; rotary embedding of the patches' queries and keys
    ln_pre, ln_post         before and after the blocks
    proj                    [c, e], from `ln_post` to the space shared with text

of which all but `patch_kernel`, `ln_post` and the blocks may be absent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Float32

from tcl_jax.errors import InputError
from tcl_jax.models.layers import BlockOutput, Transformer, layer_norm, run_blocks
from tcl_jax.ops.images import center_pad
from tcl_jax.ops.resize import resize, resize_matrix

Resample = Callable[[jax.Array, Sequence[int]], jax.Array]
"""([s, s, c], (h, w)) -> [h, w, c]: position embeddings at another grid than the trained one."""


# ------------------------------------------------------------------------ positions at another grid


def bicubic(grid: Float[Array, "s s c"], shape: Sequence[int]) -> Float[Array, "h w c"]:
    """PyTorch's bicubic, a = -0.75, no antialias (TCL, SigLIP 2)."""
    return resize(grid, shape, method="bicubic")


def bicubic_offset(grid: Float[Array, "s s c"], shape: Sequence[int]) -> Float[Array, "h w c"]:
    """`bicubic` in steps of s / (h + 0.1), a trained side included.

    DINOv2 without registers, DINO, and the authors' CLIPs of SCLIP, NACLIP, ClearCLIP and others.
    """
    rows, columns = (
        resize_matrix(i, o, method="bicubic", align_corners=False, offset=0.1)
        for i, o in zip(grid.shape, shape, strict=False)
    )
    return jnp.einsum("Hh,Ww,hwc->HWc", rows, columns, grid, precision="highest")


def bicubic_antialias(grid: Float[Array, "s s c"], shape: Sequence[int]) -> Float[Array, "h w c"]:
    """Antialiased bicubic, a = -0.5 (DINOv2 with registers)."""
    return jax.image.resize(grid, (*shape, grid.shape[-1]), "cubic")


def bilinear_antialias(grid: Float[Array, "s s c"], shape: Sequence[int]) -> Float[Array, "h w c"]:
    """Antialiased bilinear (TIPS)."""
    return jax.image.resize(grid, (*shape, grid.shape[-1]), "linear")


# ---------------------------------------------------------------------------------- the transformer


@dataclasses.dataclass(frozen=True)
class ViT(Transformer):
    """Settings of a vision tower that its parameters do not show, `Transformer`'s and two more.

    Attributes:
        resample: how position embeddings are brought to another grid.
        ragged: what is done with an image whose sides are no multiples of the patch: "refuse",
            "crop" what is left over at the right and below, or "pad" with zeros, centred.
    """

    resample: Resample = bicubic
    ragged: str = "refuse"


@struct.dataclass
class Features:
    """Results of a pass through the tower; `jit` drops what the caller leaves unread.

    Attributes:
        tokens: [b, l, c] what enters the first block: class token, registers, patches row by row.
        blocks: of every block.
        grid: rows and columns of patches.
    """

    tokens: jax.Array
    blocks: tuple[BlockOutput, ...]
    grid: tuple[int, int] = struct.field(pytree_node=False)

    def after(self, block: int) -> Float[Array, "b l c"]:
        """Tokens after so many blocks, counted from 1; of 0, those that enter the first."""
        return self.blocks[block - 1].output if block else self.tokens

    def patches(self, tokens: Float[Array, "b l c"]) -> Float[Array, "b h w c"]:
        """The patches among tokens, on their grid."""
        rows, columns = self.grid
        patches = tokens[:, tokens.shape[1] - rows * columns :]
        return patches.reshape(tokens.shape[0], rows, columns, -1)


def encode(
    vit: ViT,
    params: Any,
    image: Float[Array, "b H W 3"],
    mask: Bool[Array, "b h w"] | None = None,
) -> Features:
    """Features of normalised images of any size.

    Args:
        vit, params: of the tower.
        image: see `ViT.ragged` for sides that are no multiples of the patch.
        mask: patches that `mask_token` takes the place of, before positions are added.

    Raises:
        ValueError: if a side is no multiple of the patch and `vit.ragged` is "refuse", or if there
            is not even one patch.
    """
    patch = params["patch_kernel"].shape[0]
    grid = image_grid(vit, image.shape, patch)
    if vit.ragged == "pad":
        image, _ = center_pad(image, patch)
    elif vit.ragged == "crop":
        image = image[:, : grid[0] * patch, : grid[1] * patch]
    tokens = _embed(vit, params, image, grid, mask)
    rotate = find_rotation(params, tokens, grid)
    return Features(tokens, run_blocks(vit, params, tokens, rotate=rotate), grid)


def find_rotation(
    params: Any, tokens: Float[Array, "b l c"], grid: tuple[int, int]
) -> Callable[[jax.Array], jax.Array] | None:
    """The rotary embedding of a tower for these tokens, patches last; None where it has none."""
    if "rope_periods" not in params:
        return None
    return rotary_embedding(params["rope_periods"], grid, tokens.shape[1] - grid[0] * grid[1])


def project(vit: Transformer, params: Any, tokens: Float[Array, "... c"]) -> Float[Array, "... d"]:
    """`ln_post`, and `proj` where there is one, of tokens of the last block."""
    tokens = layer_norm(tokens, params["ln_post"], vit.eps)
    if "proj" not in params:
        return tokens
    return jnp.einsum("...c,cd->...d", tokens, params["proj"].astype(vit.dtype))


def _embed(
    vit: ViT,
    params: Any,
    image: Float[Array, "b H W 3"],
    grid: tuple[int, int],
    mask: Bool[Array, "b h w"] | None,
) -> Float[Array, "b l c"]:
    (batch, (height, width)), kernel = (image.shape[0], grid), params["patch_kernel"]
    side, channels = kernel.shape[0], kernel.shape[-1]
    pixels = image.reshape(batch, height, side, width, side, 3).astype(vit.dtype)
    patches = jnp.einsum("bhpwqi,pqic->bhwc", pixels, kernel.astype(vit.dtype))
    x = patches.reshape(batch, height * width, channels)
    if "patch_bias" in params:
        x = x + params["patch_bias"].astype(vit.dtype)
    if mask is not None:
        hidden = mask.reshape(batch, height * width, 1)
        x = jnp.where(hidden, params["mask_token"].astype(vit.dtype), x)
    first = [
        tokens.reshape(-1, channels).astype(vit.dtype)
        for name in ("class_embedding", "register_tokens")
        if (tokens := params.get(name)) is not None
    ]
    if (positions := params.get("positional_embedding")) is not None:
        positions = resize_positions(positions, grid, vit.resample).astype(vit.dtype)
        classes = positions.shape[0] - height * width
        x = x + positions[classes:]
        if classes:
            first[0] = first[0] + positions[:classes]
    first = [jnp.broadcast_to(tokens, (batch, *tokens.shape)) for tokens in first]
    x = jnp.concatenate([*first, x], axis=1)
    return layer_norm(x, params["ln_pre"], vit.eps) if "ln_pre" in params else x


def image_grid(vit: ViT, shape: tuple[Any, ...], patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches of an image batch [b, H, W, 3], as `ViT.ragged` makes them.

    Raises:
        ValueError: as `encode`.
    """
    height, width = shape[1:3]
    if vit.ragged == "crop" and min(height, width) < patch_size:
        raise InputError(
            f"image of {height}x{width} pixels has not one whole patch of {patch_size}; "
            "give a larger one, or resize it"
        )
    ragged = vit.ragged == "refuse" and (height % patch_size or width % patch_size)
    if ragged or not height * width:
        raise ValueError(
            f"image of {height}x{width} pixels does not divide into patches of {patch_size}; "
            f"pad or resize it to a multiple of {patch_size}"
        )
    added = patch_size - 1 if vit.ragged == "pad" else 0
    return (height + added) // patch_size, (width + added) // patch_size


def resize_positions(
    positions: Float[Array, "l c"], grid: tuple[int, int], resample: Resample = bicubic
) -> Float[Array, "m c"]:
    """Position embeddings for another patch grid.

    The class token's row, if there is one, is kept; the trained grid itself is left untouched.
    """
    side = round(positions.shape[0] ** 0.5)
    if grid == (side, side):
        return positions
    classes = positions.shape[0] - side**2
    first, rest = positions[:classes], positions[classes:].reshape(side, side, -1)
    return jnp.concatenate([first, resample(rest, grid).reshape(grid[0] * grid[1], -1)])


def rope_periods(number: int) -> Float32[np.ndarray, "d"]:
    """The published DINOv3's: from 1 towards its `pos_embed_rope_base`, 100."""
    return (100.0 ** (np.arange(number) / number)).astype(np.float32)


def rotary_embedding(
    periods: Float[Array, "d"], grid: tuple[int, int], prefix: int
) -> Callable[[jax.Array], jax.Array]:
    """DINOv3's RoPE: turns queries or keys [b, l, heads, d] of patches by their place, in float32.

    Args:
        periods: [d / 4], those of the rows and again of the columns.
        grid: rows and columns of patches; a place is in -1 to 1 along each.
        prefix: number of tokens before the patches, which are not turned.
    """
    rows, columns = (2 * (jnp.arange(n, dtype=jnp.float32) + 0.5) / n - 1 for n in grid)
    places = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1)  # [h, w, 2]
    angles = 2 * jnp.pi * places[..., None] / periods.astype(jnp.float32)  # [h, w, 2, d / 4]
    angles = angles.reshape(grid[0] * grid[1], 1, -1)
    sin, cos = (jnp.concatenate([f(angles), f(angles)], axis=-1) for f in (jnp.sin, jnp.cos))

    def rotate(x: Float[Array, "b l h d"]) -> Float[Array, "b l h d"]:
        patches = x[:, prefix:].astype(jnp.float32)
        first, second = jnp.split(patches, 2, axis=-1)
        turned = patches * cos + jnp.concatenate([-second, first], axis=-1) * sin
        return jnp.concatenate([x[:, :prefix], turned.astype(x.dtype)], axis=1)

    return rotate
