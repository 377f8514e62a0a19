"""What TCL's losses need of the mask of every image with every text of the global batch.

These masks, [n, n, h, w], are 0.8 GB for the 64 images of a chip and 1,024 texts, and the losses
with their gradient hold several such arrays. But a loss needs three numbers of each pair. They are
computed here for a tile of images and texts at a time, and again for the gradient, so that nothing
of size [n, n, h, w] or [n, n, d] ever exists. Over a mesh each device takes its own images with all
texts. All else about the losses is plain, see `ops.losses`.

The price is to compute similarities and regions twice: 7 instead of 5 times 2 n n h w d FLOPs.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from jaxtyping import Array, Float

from tcl_jax.ops import losses
from tcl_jax.ops.masking import mask_logits, masked_pool, pixel_text_similarity
from tcl_jax.parallel.mesh import DATA_AXIS

TILE_BYTES = 16 * 2**20
"""Largest tile of float32 masks; a few of this size live at once, on the chip if there is room."""


class PairStatistics(NamedTuple):
    """Of the mask of every image with every text; [b, n] float32 each.

    Attributes:
        similarity: cosine, in [-1, 1], of the text with the region that it grounds in the image.
        area: mean of the soft mask, in (0, 1).
        variation: total variation of the soft mask.
    """

    similarity: jax.Array
    area: jax.Array
    variation: jax.Array


def pair_statistics(
    pixels: Float[Array, "b h w d"],
    texts: Float[Array, "n d"],
    w: Float[Array, ""],
    b: Float[Array, ""],
) -> PairStatistics:
    """Statistics of all pairs, tile by tile.

    Where images and texts are split over the data axis of a mesh (that of `jax.set_mesh`, or the
    one the arguments of the enclosing `jit` are sharded over), so are the rows of the result.

    Args:
        pixels: pixel embeddings, not normalised.
        texts: text embeddings, normalised or not.
        w, b: of `mask_logits`.
    """
    mesh = _mesh_of(pixels, texts)
    if mesh is None:
        return _tiled(pixels, texts, w, b)

    def local(pixels: jax.Array, texts: jax.Array, w: jax.Array, b: jax.Array) -> PairStatistics:
        texts = jax.lax.all_gather(texts, DATA_AXIS, tiled=True)
        # Here and not in the loops, where every tile would sum its gradient over the devices.
        w, b = jax.lax.pcast((w, b), DATA_AXIS, to="varying")
        return _tiled(pixels, texts, w, b)

    rows, everywhere = PartitionSpec(DATA_AXIS), PartitionSpec()
    return jax.shard_map(
        local, mesh=mesh, in_specs=(rows, rows, everywhere, everywhere), out_specs=rows
    )(pixels, texts, w, b)


def _tiled(pixels: jax.Array, texts: jax.Array, w: jax.Array, b: jax.Array) -> PairStatistics:
    images, height, width, size = pixels.shape
    count = len(texts)
    image_tile, text_tile = tile_sizes(images, count, height * width)
    # A zero text gives finite numbers, which are cut off below.
    text_tiles = jnp.pad(texts, ((0, -count % text_tile), (0, 0))).reshape(-1, text_tile, size)
    image_tiles = pixels.reshape(-1, image_tile, height, width, size)
    # Without this the gradient would keep every tile's masks after all.
    of_tile = jax.checkpoint(_of_tile, prevent_cse=False)

    def of_images(pixels: jax.Array) -> PairStatistics:
        tiles = jax.lax.map(lambda texts: of_tile(pixels, texts, w, b), text_tiles)
        return jax.tree.map(
            lambda x: jnp.moveaxis(x, 0, 1).reshape(image_tile, -1)[:, :count], tiles
        )

    tiles = jax.lax.map(of_images, image_tiles)
    return jax.tree.map(lambda x: x.reshape(images, count), tiles)


def _of_tile(pixels: jax.Array, texts: jax.Array, w: jax.Array, b: jax.Array) -> PairStatistics:
    masks = jax.nn.sigmoid(mask_logits(pixel_text_similarity(pixels, texts), w, b))
    return PairStatistics(
        similarity=losses.region_text_similarity(masked_pool(pixels, masks), texts),
        area=jnp.mean(masks, axis=(2, 3)),
        variation=losses.total_variation(masks),
    )


def tile_sizes(images: int, texts: int, pixels: int) -> tuple[int, int]:
    """Images and texts of a tile, whose masks fit into `TILE_BYTES`.

    As many texts as one image's masks of them fit, a power of two, which divides the usual batches;
    of other numbers of texts equal parts. Then as many images as fit and divide their number. These
    are the images of this device, all texts of the global batch, and the pixels of a mask.
    """
    fitting = max(TILE_BYTES // (4 * pixels), 1)
    tiles = -(-texts // (1 << (fitting.bit_length() - 1)))
    text_tile = -(-texts // tiles)
    most = min(images, max(fitting // text_tile, 1))
    return max(n for n in range(1, most + 1) if images % n == 0), text_tile


def _mesh_of(*arrays: jax.Array) -> AbstractMesh | None:
    # The mesh whose data axis splits the rows of the arrays, if there is one to split them here.
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        mesh = jax.typeof(arrays[0]).sharding.mesh
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if types.get(DATA_AXIS) != AxisType.Auto:
        return None
    devices = mesh.shape[DATA_AXIS]
    return None if devices == 1 or any(len(x) % devices for x in arrays) else mesh
