"""From the masks of an image's windows to those of the image.

The protocol resizes the masks of every window to the window, takes the mean where windows overlap,
and resizes the result to the original image. These are three linear maps, each of which treats rows
and columns apart. Here they are multiplied first: a pixel of the image is one weighted mean of
cells of the model's grid, so that nothing of the image's size has an axis of classes.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float32, Integer, UInt8, UInt16
from scipy import sparse

from tcl_jax.errors import RunError
from tcl_jax.inference.windows import Axis, SlidingWindow

ROUNDING = 1e-6
"""By how much merging may raise masks; those that exceed the threshold by less do not win."""

Tile = tuple[tuple[int, int], tuple[int, int]]
"""First row and the one after the last, and columns alike."""

_TILE = 128  # pixels
_TILE_VALUES = 1 << 20
_CLASSES = 64
_BAND_VALUES = 1 << 22


@dataclasses.dataclass(frozen=True, eq=False)
class SoftMasks:
    """Soft masks of an image, kept on the grids of its windows and merged to any size.

    Attributes:
        sliding: the windows.
        grids: float32 [windows, rows, columns, classes]; each spans a padded window.
    """

    sliding: SlidingWindow
    grids: Float32[np.ndarray, "windows h w n"]

    @classmethod
    def of_array(cls, masks: Float32[np.ndarray, "h w n"]) -> SoftMasks:
        """Masks that are merged already."""
        size = masks.shape[0], masks.shape[1]
        return cls(SlidingWindow.over(size, max(size), 1, 1), masks[None])

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the resized image."""
        return self.sliding.size

    @property
    def count(self) -> int:
        """Number of masks."""
        return self.grids.shape[-1]

    def some(self, numbers: slice | Integer[np.ndarray, " k"]) -> SoftMasks:
        """Those of some numbers."""
        return SoftMasks(self.sliding, self.grids[..., numbers])

    def at(self, size: tuple[int, int]) -> Float32[np.ndarray, "H W n"]:
        """Masks of (rows, columns) = `size`, bilinear."""
        masks = np.empty((*size, self.count), np.float32)
        top = 0
        for band in self.bands(size):
            masks[top : top + len(band)] = band
            top += len(band)
        return masks

    def bands(self, size: tuple[int, int]) -> Iterator[Float32[np.ndarray, "rows W n"]]:
        """The rows of `at`, some at a time, for masks that do not fit in memory."""
        step = max(_BAND_VALUES // (size[1] * self.grids.shape[-1]), 1)
        for top in range(0, size[0], step):
            yield self.part(size, (top, min(top + step, size[0])), (0, size[1]))

    def tiles(self, size: tuple[int, int], steps: tuple[int, int] | None = None) -> list[Tile]:
        """Parts of at most `steps`, rows and columns, that together are all of `size`.

        By default smaller ones where masks are many.
        """
        side = max(min(math.isqrt(_TILE_VALUES // self.grids.shape[-1]), _TILE), 1)
        rows, columns = (
            [(i, min(i + step, whole)) for i in range(0, whole, step)]
            for whole, step in zip(size, steps or (side, side), strict=True)
        )
        return [*itertools.product(rows, columns)]

    def part(
        self, size: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
    ) -> Float32[np.ndarray, "r c n"]:
        """Some rows and columns of `at`, from a first one up to another."""
        down, across = (
            _part(*axis, *span)
            for axis, span in zip(self._axes(size), (rows, columns), strict=True)
        )
        cells = np.swapaxes(self._cells(down, across), 0, 1)  # [c, r, n]
        width, classes = columns[1] - columns[0], cells.shape[-1]
        wide = across.weights @ cells.reshape(len(cells), -1)  # [W, r n]
        wide = np.swapaxes(wide.reshape(width, -1, classes), 0, 1)  # [r, W, n]
        return (down.weights @ wide.reshape(len(wide), -1)).reshape(-1, width, classes)

    def labels(
        self, size: tuple[int, int], threshold: int | float | None = None, threads: int = 1
    ) -> UInt16[np.ndarray, "H W"]:
        """The index of `best`."""
        return self.best(size, threshold, threads)[0]

    def levels(
        self, size: tuple[int, int], thresholds: Sequence[float]
    ) -> tuple[UInt16[np.ndarray, "H W"], UInt8[np.ndarray, "H W"]]:
        """What `labels` is at each of some thresholds, which are ascending.

        Returns:
            The label map at the lowest, and against how many of the thresholds it stands at a
            pixel: at the others the pixel is 0, of the background.
        """
        labels, scores = self.best(size, thresholds[0])
        limits = np.array(thresholds) + ROUNDING
        return labels, np.searchsorted(limits.astype(np.float32), scores).astype(np.uint8)

    def best(
        self, size: tuple[int, int], threshold: int | float | None = None, threads: int = 1
    ) -> tuple[UInt16[np.ndarray, "H W"], Float32[np.ndarray, "H W"]]:
        """Index and value of the largest mask at every pixel; the first of equal ones.

        Args:
            size: rows and columns of the result.
            threshold: if given, the score of the background, a class put before the others; masks
                that exceed it by less than `ROUNDING` are equal to it.
            threads: that compute it.

        Raises:
            RunError: if masks are not finite.
        """
        labels, scores = np.empty(size, np.uint16), np.empty(size, np.float32)
        rows, columns = (_tiles(*axis) for axis in self._axes(size))

        def fill(down: _Part) -> None:
            for across in columns:
                place, cells = (down.pixels, across.pixels), self._cells(down, across)
                labels[place], scores[place] = _best(cells, down.weights, across.weights, threshold)

        if threads == 1 or len(rows) == 1:
            list(map(fill, rows))
        else:
            # NumPy computes without holding Python's lock.
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(fill, rows))
        return labels, scores

    def _axes(self, size: tuple[int, int]) -> list[tuple[Axis, int, int]]:
        """Windows, cells of each, and pixels of the result, along rows and columns."""
        axes = self.sliding.rows, self.sliding.columns
        return list(zip(axes, self.grids.shape[1:3], size, strict=True))

    def _cells(self, down: _Part, across: _Part) -> Float32[np.ndarray, "r c n"]:
        shape = len(self.sliding.rows.starts), len(self.sliding.columns.starts)
        grids = self.grids.reshape(*shape, *self.grids.shape[1:])
        return grids[down.windows[:, None], across.windows, down.cells[:, None], across.cells]


@dataclasses.dataclass(frozen=True)
class _Part:
    """Some pixels along an axis, the cells they depend on, and weights [pixels, cells]."""

    pixels: slice
    windows: Integer[np.ndarray, " cells"]
    cells: Integer[np.ndarray, " cells"]
    weights: sparse.csr_array


@functools.lru_cache(16)
def _tiles(axis: Axis, cells: int, out: int) -> list[_Part]:
    """All pixels along an axis, some at a time."""
    return [_part(axis, cells, out, i, i + _TILE) for i in range(0, out, _TILE)]


@functools.lru_cache(64)
def _part(axis: Axis, cells: int, out: int, start: int, stop: int) -> _Part:
    weights = _weights(axis, cells, out)[start:stop]
    used = np.unique(weights.indices)
    return _Part(slice(start, stop), *np.divmod(used, cells), weights[:, used])


@functools.lru_cache(16)
def _weights(axis: Axis, cells: int, out: int) -> sparse.csr_array:
    """Weights [out, windows cells] of the cells of all windows in each pixel of the result."""
    to_window = _bilinear(cells, axis.padded)[axis.before : axis.before + axis.side]
    windows = [np.arange(start, start + axis.side) for start in axis.starts]
    count = np.bincount(np.concatenate(windows))
    to_result = (_bilinear(axis.size, out) @ sparse.diags_array(1 / count)).tocsc()
    weights = sparse.hstack([to_result[:, window] @ to_window for window in windows], "csr")
    weights.eliminate_zeros()
    return weights.astype(np.float32)


def _bilinear(samples: int, out: int) -> sparse.csr_array:
    """Weights [out, samples] of `ops.resize.resize` without `align_corners`."""
    position = np.maximum((np.arange(out) + 0.5) * (samples / out) - 0.5, 0)
    first = np.minimum(position.astype(np.int64), samples - 1)
    second = np.minimum(first + 1, samples - 1)
    weight = np.where(second > first, position - first, 0)
    entries = np.concatenate([1 - weight, weight])
    places = np.tile(np.arange(out), 2), np.concatenate([first, second])
    return sparse.csr_array((entries, places), shape=(out, samples))


def _best(
    cells: Float32[np.ndarray, "r c n"],
    rows: sparse.csr_array,
    columns: sparse.csr_array,
    threshold: int | float | None,
) -> tuple[UInt16[np.ndarray, "H W"], Float32[np.ndarray, "H W"]]:
    """`SoftMasks.best` of a tile, by weights [H, r] of its rows and [W, c] of its columns."""
    low, high = cells.min(axis=(0, 1)), cells.max(axis=(0, 1))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise RunError("masks are not finite; the model's weights may be damaged")
    # A mean lies between the values it is taken of: a class whose highest value is below another's
    # lowest wins nowhere, which is so of most where there are many.
    bar = low.max() if threshold is None else max(low.max(), np.float32(threshold))
    candidates = np.flatnonzero(high >= bar - 1e-5 * (1 + abs(bar)))
    first = 0 if threshold is None else 1
    shape = rows.shape[0], columns.shape[0]
    best = np.full(shape, -np.inf if threshold is None else threshold + ROUNDING, np.float32)
    labels = np.zeros(shape, np.uint16)
    for start in range(0, len(candidates), _CLASSES):
        some = candidates[start : start + _CLASSES]
        # Sparse products: those of BLAS would each start threads of their own, and round equal
        # classes differently.
        planes = np.moveaxis(cells[..., some], 1, 0)  # [c, r, classes]
        wide = columns @ planes.reshape(len(planes), -1)
        wide = np.moveaxis(wide.reshape(len(wide), -1, len(some)), 0, -1)  # [r, classes, W]
        scores = (rows @ wide.reshape(len(wide), -1)).reshape(shape[0], len(some), -1)
        for k, values in zip(some + first, np.moveaxis(scores, 1, 0), strict=True):
            np.copyto(labels, k, where=values > best, casting="unsafe")
            np.maximum(best, values, out=best)
    return labels, best
