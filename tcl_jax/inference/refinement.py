"""PAMR of merged scores at an image's own size, as NACLIP's authors use it.

One program is for all images, and splits the texts over the devices: images are filled up to a few
sizes, and large ones are refined in parts that overlap by as much as PAMR reaches, which changes
nothing. Texts are refined some at a time, so that the host never holds the scores of all of them.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int, Integer, UInt8

from tcl_jax.inference.merging import SoftMasks, Tile
from tcl_jax.ops.images import PixelStatistics, normalize
from tcl_jax.ops.pamr import pamr
from tcl_jax.parallel.mesh import batch_sharded, replicated

_STEP = 256  # pixels, of the sizes that programs are compiled for
_LARGEST = 1024
_FEW = 8  # texts, whose multiples a device refines together
_VALUES = 1 << 23  # scores of them, of which the host holds a few copies per thread


class Refiner:
    """Refines scores on the devices of this process, for one thread at a time.

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
        self._devices = threading.Lock()

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
    ) -> tuple[list[Tile], Callable[..., Iterator[Float32[np.ndarray, "r c _"]]]]:
        """Parts that together are all of `size`, and what refines one, see `label_rule.Values`.

        Args:
            pixels: of the image as the model saw it, RGB bytes or normalised; resized bilinearly.
            masks: merged scores of the texts.
            size: to which both are brought, rows and columns.
        """
        image = SoftMasks.of_array(normalize(pixels, self._statistics))
        step = max(_LARGEST - 2 * self._reach, _STEP)
        height, width = (side if side <= _LARGEST else step for side in size)
        values = functools.partial(self._refine, masks, image, size)
        return masks.tiles(size, (height, width)), values

    def _refine(
        self,
        masks: SoftMasks,
        image: SoftMasks,
        size: tuple[int, int],
        tile: Tile,
        some: Integer[np.ndarray, " k"] | None = None,
    ) -> Iterator[Float32[np.ndarray, "r c _"]]:
        masks = masks if some is None else masks.some(some)
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
        devices, texts = self._mesh.size, masks.grids.shape[-1]
        most = max(_VALUES // math.prod(filled) // _FEW, 1)
        share = _FEW * min(most, -(-texts // (devices * _FEW)))
        for start in range(0, texts, devices * share):
            few = masks.some(slice(start, start + devices * share))
            scores = _fill(few.part(size, rows, columns), (*filled, devices * share))
            scores = np.moveaxis(scores.reshape(*filled, devices, share), 2, 0)
            with self._devices:  # or the memory of as many programs as there are threads
                scores = jax.device_put(np.ascontiguousarray(scores), self._split)
                refined = np.asarray(self._compiled(pixels, scores, put(extent)))
            refined = np.moveaxis(refined[:, top:bottom, left:right], 0, 2)
            yield refined.reshape(*refined.shape[:2], -1)[..., : texts - start]


def _fill(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.pad(x, [(0, new - old) for old, new in zip(x.shape, shape, strict=True)])
