"""From the mask grids of an image's sliding windows to its label map, tile by tile.

The protocol resizes every window's masks to the window, takes the mean where windows overlap, and
resizes the result to the original image: three linear maps, each of which treats rows and columns
apart. Here they are multiplied first, so that a pixel of the image is one weighted mean of grid
cells. Nothing of the image's size has a class axis: of an image of 2000 x 3000 pixels and 171
classes, only the grids are held (8.6 MB for each window of 112 x 112 cells).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, UInt16

from tcl_jax.errors import RunError
from tcl_jax.inference.settings import MAX_LONG_SIDE
from tcl_jax.inference.upsampling import largest, possible_winners
from tcl_jax.inference.windows import Window, sliding_windows, working_size
from tcl_jax.ops.images import center_offset
from tcl_jax.ops.resize import resize_matrix

_TILE = 128


@dataclasses.dataclass(frozen=True)
class Mosaic:
    """How an image is cut into windows and put together again.

    Attributes:
        height, width: of the original image, in pixels.
        short_side: pixels that its short side is resized to.
        window, stride: side and distance of the square windows, in pixels of the resized image.
        patch_size: windows are padded to a multiple of it, centred, before masks are made.
        max_long_side: most pixels of the resized image's long side.
    """

    height: int
    width: int
    short_side: int
    window: int
    stride: int
    patch_size: int
    max_long_side: int = MAX_LONG_SIDE

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the resized image."""
        return working_size(self.height, self.width, self.short_side, self.max_long_side)

    @functools.cached_property
    def windows(self) -> tuple[Window, ...]:
        """Row by row, all of one size."""
        return tuple(sliding_windows(*self.size, self.window, self.stride))

    def labels(
        self, grids: Sequence[Float32[np.ndarray, "h w n"]], constant: int | float | None = None
    ) -> UInt16[np.ndarray, "H W"]:
        """The class with the largest score at every pixel of the original; the first of equal ones.

        Args:
            grids: masks of each of `windows` on a grid that spans the padded window.
            constant: if given, the score of a further class put before the others.

        Raises:
            RunError: if masks are not finite.
        """
        starts = (sorted({w.top for w in self.windows}), sorted({w.left for w in self.windows}))
        sides = (self.windows[0].height, self.windows[0].width)
        rows, columns = (
            _weights(original, working, tuple(start), side, self.patch_size, cells)
            for original, working, start, side, cells in zip(
                (self.height, self.width), self.size, starts, sides, grids[0].shape, strict=False
            )
        )
        labels = np.empty((self.height, self.width), np.uint16)
        column_parts = [_part(columns, left) for left in range(0, self.width, _TILE)]
        for top in range(0, self.height, _TILE):
            row_part = _part(rows, top)
            for i, column_part in enumerate(column_parts):
                cells = np.concatenate(
                    [
                        np.concatenate(
                            [grids[r * len(starts[1]) + c][y, x] for c, x in column_part.cells], 1
                        )
                        for r, y in row_part.cells
                    ]
                )
                tile = _best(cells, row_part.weights, column_part.weights, constant)
                labels[top : top + _TILE, i * _TILE : (i + 1) * _TILE] = tile
        return labels


@dataclasses.dataclass(frozen=True)
class _Part:
    """The cells along one axis that some pixels depend on, and their weights [pixels, cells]."""

    cells: list[tuple[int, slice]]
    weights: np.ndarray


def _part(weights: np.ndarray, start: int) -> _Part:
    """Of `_TILE` pixels from `start`."""
    block = weights[start : start + _TILE]
    cells, kept = [], []
    for window in range(block.shape[1]):
        used = np.flatnonzero(block[:, window].any(axis=0))
        if used.size:
            part = slice(int(used[0]), int(used[-1]) + 1)
            cells.append((window, part))
            kept.append(block[:, window, part])
    return _Part(cells, np.concatenate(kept, axis=1))


@functools.lru_cache(16)
def _weights(
    original: int, working: int, starts: tuple[int, ...], side: int, patch_size: int, cells: int
) -> Float32[np.ndarray, "original windows cells"]:
    """Weight of every cell of every window in every pixel, along one axis."""
    padded, before = center_offset(side, patch_size)
    to_window = _bilinear(cells, padded)[before : before + side]
    count = np.zeros(working)
    for start in starts:
        count[start : start + side] += 1
    to_original = _bilinear(working, original) / count
    return np.stack(
        [to_original[:, start : start + side] @ to_window for start in starts], axis=1
    ).astype(np.float32)


def _bilinear(in_size: int, out_size: int) -> np.ndarray:
    matrix = resize_matrix(in_size, out_size, method="bilinear", align_corners=False)
    return matrix.astype(np.float64)


def _best(
    cells: np.ndarray, rows: np.ndarray, columns: np.ndarray, constant: int | float | None
) -> UInt16[np.ndarray, "h w"]:
    """Labels of a tile from its cells [r, c, n] and weights [h, r] and [w, c]."""
    low, high = cells.min(axis=(0, 1)), cells.max(axis=(0, 1))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise RunError("masks are not finite; the model's weights may be damaged")
    candidates = possible_winners(low, high, constant)
    # Two large products; many small ones, one per class, would be slower several times.
    planes = np.moveaxis(cells[..., candidates], -1, 1)
    wide = planes.reshape(-1, planes.shape[2]) @ columns.T
    scores = (rows @ wide.reshape(len(planes), -1)).reshape(len(rows), -1, len(columns))
    each = ((k, scores[:, i]) for i, k in enumerate(candidates))
    return largest(each, (len(rows), len(columns)), constant)
