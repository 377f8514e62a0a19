"""TCL's losses over the masks of all pairs of an image and a text, tile by tile.

`tclf`, `area`, `neg_area` and `tv_mask` look at the mask of every image with every text of the
global batch: [b, n, h, w], 0.8 GB for 64 images and 1,024 texts, and written plainly several such
arrays live at once. Yet each loss needs three numbers of a pair: the cosine of the grounded region
with the text, the mask's mean, and its total variation. Here they are computed for a tile of images
and texts at a time, and computed again for the gradient, so nothing of size [b, n, h, w] or
[b, n, d] ever exists. Over a mesh a device computes the strip of its own images with all texts;
what then has to cross devices is [n].

What one chip holds, in MiB, as the TPU compiler counts it (v5e, jax 0.10.2, libtpu 0.0.52): 64
images a chip, 56x56 pixels, d = 512, the losses' gradient with respect to pixels, w, b and scale.
The pixels are another 392, and so is their gradient.

    ===========  =====  ===============  ===============
    chips        texts  temporary,       temporary,
                        plain            tiled
    ===========  =====  ===============  ===============
    v5e:4x4       1024           6420.8              0.4
    v5e:16x16    16384                -             44.6
    ===========  =====  ===============  ===============

Plain is `losses.region_text_loss` of `masking.masked_pool` and so on. The tiles of the last column
fit into the chip's own memory (VMEM) and do not count; of the 44.6, 32 are the gathered texts.

The price is to compute similarities and regions twice. In units of 2 b n h w d FLOPs the plain
losses and their gradient take 5: similarity, regions, two for the regions' gradient and one for the
similarity's, since texts are frozen. The tiled ones take 7. For a chip of the first row that is
1.49 TFLOP instead of 1.06 by the compiler's count (which sees the body of a loop once, here one of
64), 23 GFLOP an image.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from jaxtyping import Array, Float

from tcl_jax.errors import InputError
from tcl_jax.ops import losses
from tcl_jax.ops.masking import l2_normalize, masked_pool, pixel_text_similarity
from tcl_jax.parallel.mesh import DATA_AXIS

TILE_BYTES = 16 * 2**20
"""Largest tile of float32 masks; a few of this size live at once, on the chip if there is room."""
LANES = 128
"""Texts of a tile are a multiple of this, the width of a TPU's vector registers, where possible."""


class PairStatistics(NamedTuple):
    """What the losses need of the mask of every image with every text; [b, n] float32 each.

    Attributes:
        similarity: cosine, in [-1, 1], of the text with the region that it grounds in the image.
        area: mean of the soft mask, in (0, 1).
        variation: total variation of the soft mask, see `losses.total_variation`.
    """

    similarity: jax.Array
    area: jax.Array
    variation: jax.Array


class GroundingLosses(NamedTuple):
    """Unweighted losses over the masks of all pairs; float32 scalars.

    Attributes:
        tclf: `losses.region_text_loss`.
        area, neg_area: `losses.area_losses`.
        tv_mask: `losses.total_variation` of all masks.
        mask_area: mean mask of the images with their own texts.
    """

    tclf: jax.Array
    area: jax.Array
    neg_area: jax.Array
    tv_mask: jax.Array
    mask_area: jax.Array


def grounding_losses(
    pixels: Float[Array, "n h w d"],
    texts: Float[Array, "n d"],
    w: Float[Array, ""],
    b: Float[Array, ""],
    log_scale: Float[Array, ""],
    *,
    area_prior: float = 0.4,
    area_group: int = 0,
    text_tile: int | None = None,
) -> GroundingLosses:
    """The losses of a global batch (paper, section 3.3) in memory that hardly grows with it.

    Args:
        pixels: pixel embeddings, not normalised.
        texts: text embeddings, text i of image i; normalised or not.
        w, b: the soft mask is `sigmoid(w * cosine + b)`.
        log_scale: of `losses.info_nce`.
        area_prior, area_group: of `losses.area_losses`.
        text_tile: texts of a tile; by `tile_sizes` if None.
    """
    pairs = pair_statistics(pixels, texts, w, b, text_tile=text_tile)
    return pair_losses(pairs, log_scale, area_prior=area_prior, area_group=area_group)


def pair_statistics(
    pixels: Float[Array, "b h w d"],
    texts: Float[Array, "n d"],
    w: Float[Array, ""],
    b: Float[Array, ""],
    *,
    text_tile: int | None = None,
) -> PairStatistics:
    """Statistics of the soft masks of all pairs; the masks of one tile exist at a time.

    Where images and texts are split over the data axis of a mesh (that of `jax.set_mesh`, or the
    one the arguments of the enclosing `jit` lie on) each device takes its own images with all
    texts.

    Args:
        pixels, texts, w, b, text_tile: as in `grounding_losses`, but of any numbers of images and
            texts.
    """
    strip = partial(_strip_statistics, text_tile=text_tile)
    mesh = _mesh_of(pixels, texts)
    if mesh is None:
        return strip(pixels, texts, w, b)

    def local(pixels: jax.Array, texts: jax.Array, w: jax.Array, b: jax.Array) -> PairStatistics:
        texts = jax.lax.all_gather(texts, DATA_AXIS, tiled=True)
        # Here and not in the loops, where every tile would sum its gradient over the devices.
        w, b = jax.lax.pcast((w, b), DATA_AXIS, to="varying")
        return strip(pixels, texts, w, b)

    rows, everywhere = PartitionSpec(DATA_AXIS), PartitionSpec()
    return jax.shard_map(
        local, mesh=mesh, in_specs=(rows, rows, everywhere, everywhere), out_specs=rows
    )(pixels, texts, w, b)


def pair_losses(
    pairs: PairStatistics,
    log_scale: Float[Array, ""],
    *,
    area_prior: float = 0.4,
    area_group: int = 0,
) -> GroundingLosses:
    """The losses of a global batch from the statistics [n, n] of all of its pairs.

    Over a mesh each device keeps the rows of its own images, and [n] numbers cross it.

    Args:
        pairs: of n images and their n texts.
        log_scale, area_prior, area_group: as in `grounding_losses`.
    """
    mesh = _mesh_of(*pairs)
    axis = None if mesh is None else DATA_AXIS
    local = partial(_strip_losses, area_prior=area_prior, area_group=area_group, axis=axis)
    if mesh is None:
        return local(pairs, log_scale)
    rows, everywhere = PartitionSpec(DATA_AXIS), PartitionSpec()
    return jax.shard_map(local, mesh=mesh, in_specs=(rows, everywhere), out_specs=everywhere)(
        pairs, log_scale
    )


def tile_sizes(
    images: int, texts: int, pixels: int, text_tile: int | None = None
) -> tuple[int, int]:
    """Images and texts of a tile.

    All texts if one image's masks of them fit into `TILE_BYTES`; else the fewest tiles of equal
    size that do, where the largest is a power of two (so that it divides the usual batches). Then
    as many images as fit, of those numbers that divide the images.

    Args:
        images: on this device.
        texts: of the global batch.
        pixels: of a mask.
        text_tile: texts of a tile where given.

    Raises:
        InputError: if `text_tile` is not positive.
    """
    if text_tile is not None and text_tile < 1:
        raise InputError(
            f"text_tile={text_tile} is not a number of texts; give 1 or more, or none to have it "
            "chosen by the size of the masks"
        )
    limit = max(TILE_BYTES // (4 * pixels), 1)
    if text_tile is None:
        largest = 1 << (limit.bit_length() - 1)
        tiles = -(-texts // largest)
        text_tile = min(largest, -(-texts // tiles // LANES) * LANES)
    text_tile = min(text_tile, texts)
    fitting = max(limit // text_tile, 1)
    image_tile = max(c for c in range(1, min(images, fitting) + 1) if images % c == 0)
    return image_tile, text_tile


def _strip_statistics(
    pixels: Float[Array, "b h w d"],
    texts: Float[Array, "n d"],
    w: Float[Array, ""],
    b: Float[Array, ""],
    text_tile: int | None,
) -> PairStatistics:
    # Of one device's images with all texts.
    images, height, width, size = pixels.shape
    count = texts.shape[0]
    image_tile, text_tile = tile_sizes(images, count, height * width, text_tile)
    padding = -count % text_tile
    # A zero text gives finite numbers, and what they are is cut off.
    text_tiles = jnp.pad(texts, ((0, padding), (0, 0))).reshape(-1, text_tile, size)
    image_tiles = pixels.reshape(-1, image_tile, height, width, size)
    # Without this the gradient would keep every tile's masks after all.
    of_tile = jax.checkpoint(_tile_statistics, prevent_cse=False)

    def of_images(pixels: jax.Array) -> PairStatistics:
        tiles = jax.lax.map(lambda texts: of_tile(pixels, texts, w, b), text_tiles)
        strips = (jnp.moveaxis(x, 0, 1).reshape(image_tile, -1)[:, :count] for x in tiles)
        return PairStatistics(*strips)

    strips = jax.lax.map(of_images, image_tiles)
    return PairStatistics(*(x.reshape(images, count) for x in strips))


def _tile_statistics(
    pixels: Float[Array, "b h w d"],
    texts: Float[Array, "n d"],
    w: Float[Array, ""],
    b: Float[Array, ""],
) -> PairStatistics:
    masks = jax.nn.sigmoid(w * pixel_text_similarity(pixels, texts) + b)
    regions = masked_pool(pixels, masks)
    return PairStatistics(
        similarity=jnp.einsum(
            "bnd,nd->bn", l2_normalize(regions), l2_normalize(texts), precision=Precision.HIGHEST
        ),
        area=jnp.mean(masks, axis=(2, 3)),
        variation=losses.variation_of_each(masks),
    )


def _strip_losses(
    pairs: PairStatistics,
    log_scale: Float[Array, ""],
    *,
    area_prior: float,
    area_group: int,
    axis: str | None,
) -> GroundingLosses:
    # One device's part: the rows of its images, of the batch that `axis` splits.
    area, neg_area, mask_area = losses.strip_area_losses(pairs.area, area_prior, axis, area_group)
    return GroundingLosses(
        tclf=losses.strip_info_nce(pairs.similarity, log_scale, axis),
        area=area,
        neg_area=neg_area,
        tv_mask=losses.strip_mean(pairs.variation, axis),
        mask_area=mask_area,
    )


def _mesh_of(*arrays: jax.Array) -> AbstractMesh | None:
    # The mesh whose data axis splits the rows of the arrays, if there is one to split them here.
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        mesh = jax.typeof(arrays[0]).sharding.mesh
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if types.get(DATA_AXIS) != AxisType.Auto:
        return None
    devices = mesh.shape[DATA_AXIS]
    return None if devices == 1 or any(x.shape[0] % devices for x in arrays) else mesh
