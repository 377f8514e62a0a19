"""PAMR of merged scores at an image's own size, as NACLIP's authors use it.

One program is for all images, and splits the texts over the devices: images are filled up to a few
sizes, and large ones are refined in parts that overlap by as much as PAMR reaches, which changes
nothing.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int, UInt8

from tcl_jax.inference.merging import SoftMasks, Tile
from tcl_jax.ops.images import PixelStatistics
from tcl_jax.ops.pamr import pamr
from tcl_jax.parallel.mesh import batch_sharded, replicated

_STEP = 256  # pixels, of the sizes that programs are compiled for
_LARGEST = 1024
_TEXTS = 32  # that a device refines together
_FEW = 8


class Refiner:
    """Refines scores on the devices of this process.

    Args:
        mesh: over which the texts are split.
        statistics: that images are normalised with.
        dilations, iterations: see `ops.pamr.pamr`.
    """

    def __init__(
        self,
        mesh: Mesh,
        statistics: PixelStatistics,
        dilations: tuple[int, ...],
        iterations: int,
    ) -> None:
        self._mesh, self._statistics, self._reach = mesh, statistics, max(dilations) * iterations
        self._everywhere, self._split = replicated(mesh), batch_sharded(mesh)

        def refine(
            image: Float[Array, "H W 3"], scores: Float[Array, "b H W k"], size: Int[Array, "2"]
        ) -> Float[Array, "b H W k"]:
            images = jnp.broadcast_to(image, (len(scores), *image.shape))
            return pamr(images, scores, dilations=dilations, iterations=iterations, size=size)

        self._compiled = jax.jit(
            refine,
            in_shardings=(self._everywhere, self._split, self._everywhere),
            out_shardings=self._split,
        )

    def __call__(
        self,
        pixels: UInt8[np.ndarray, "h w 3"] | Float32[np.ndarray, "h w 3"],
        masks: SoftMasks,
        size: tuple[int, int],
    ) -> tuple[list[Tile], Callable[[Tile], Float32[np.ndarray, "r c n"]]]:
        """Parts that together are all of `size`, and what refines the scores of one.

        Args:
            pixels: of the image as the model saw it, RGB bytes or normalised; resized bilinearly.
            masks: merged scores of the texts.
            size: to which both are brought, rows and columns.
        """
        if pixels.dtype == np.uint8:
            mean, deviation = (np.array(x, np.float32) * 255 for x in self._statistics)
            pixels = (pixels.astype(np.float32) - mean) / deviation
        image = SoftMasks.of_array(pixels)
        return self._tiles(size), functools.partial(self._refine, masks, image, size)

    def _tiles(self, size: tuple[int, int]) -> list[Tile]:
        step = max(_LARGEST - 2 * self._reach, _STEP)
        rows, columns = (
            [(0, side)]
            if side <= _LARGEST
            else [(i, min(i + step, side)) for i in range(0, side, step)]
            for side in size
        )
        return [*itertools.product(rows, columns)]

    def _refine(
        self, masks: SoftMasks, image: SoftMasks, size: tuple[int, int], tile: Tile
    ) -> Float32[np.ndarray, "r c n"]:
        rows, columns = (
            (max(start - self._reach, 0), min(stop + self._reach, side))
            for (start, stop), side in zip(tile, size, strict=True)
        )
        true = rows[1] - rows[0], columns[1] - columns[0]
        filled = tuple(-(-side // _STEP) * _STEP for side in true)
        extent = np.asarray(true, np.int32)
        put = functools.partial(jax.device_put, device=self._everywhere)
        pixels = put(_fill(image.part(size, rows, columns), (*filled, 3)))
        (top, bottom), (left, right) = (
            (start - first, stop - first)
            for (start, stop), (first, _) in zip(tile, (rows, columns), strict=True)
        )
        found = []
        for some in self._groups(masks.part(size, rows, columns), filled):
            refined = np.asarray(
                self._compiled(pixels, jax.device_put(some, self._split), put(extent))
            )
            found += [*refined[:, top:bottom, left:right]]
        return np.concatenate(found, axis=-1)[..., : masks.grids.shape[-1]]

    def _groups(
        self, scores: Float32[np.ndarray, "r c n"], filled: tuple[int, ...]
    ) -> Iterator[Float32[np.ndarray, "b H W k"]]:
        """Scores of as many texts as all devices refine together, filled up."""
        devices, texts = self._mesh.size, scores.shape[-1]
        share = min(-(-texts // (devices * _FEW)) * _FEW, _TEXTS)
        for start in range(0, texts, devices * share):
            some = scores[..., start : start + devices * share]
            some = _fill(some, (*filled, devices * share)).reshape(*filled, devices, share)
            yield np.ascontiguousarray(np.moveaxis(some, 2, 0))


def _fill(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.pad(x, [(0, new - old) for old, new in zip(x.shape, shape, strict=True)])
