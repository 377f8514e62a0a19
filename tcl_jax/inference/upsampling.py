"""Soft masks from the model's resolution to an image's, and the best of them per pixel.

`ops.resize` makes the whole result, on the device. Here an image may have 100 megapixels and
hundreds of classes: every result sample has two sources per axis, and they are gathered on the
host, some rows or a tile at a time. Values equal those of `ops.resize` (bilinear,
`align_corners=False`) but for rounding.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float32, Integer, UInt16

from tcl_jax.parallel.cores import available_cores

_BAND_VALUES = 1 << 22
_TILE_COLUMNS, _TILE_PIXELS = 1024, 1 << 17


def upsample(
    scores: Float32[np.ndarray, "h w n"], shape: tuple[int, int]
) -> Float32[np.ndarray, "H W n"]:
    """Bilinear resize of the first two axes; the same array where the size is kept.

    Args:
        scores: float32 [h, w, n].
        shape: rows and columns of the result.
    """
    if scores.shape[:2] == shape:
        return scores
    result = np.empty((*shape, scores.shape[2]), np.float32)
    top = 0
    for band in upsampled_bands(scores, shape):
        result[top : top + len(band)] = band
        top += len(band)
    return result


def upsampled_bands(
    scores: Float32[np.ndarray, "h w n"], shape: tuple[int, int]
) -> Iterator[Float32[np.ndarray, "rows W n"]]:
    """The rows of `upsample`'s result, some at a time, for results that do not fit in memory."""
    (height, width), (rows, columns) = scores.shape[:2], shape
    step = max(_BAND_VALUES // (columns * scores.shape[2]), 1)
    column_part, column_taps = _taps(width, columns, 0, columns)
    for top in range(0, rows, step):
        part, row_taps = _taps(height, rows, top, top + step)
        yield row_taps.along_rows(column_taps.along_columns(scores[part, column_part]))


def upsampled_argmax(
    scores: Float32[np.ndarray, "h w n"], shape: tuple[int, int], constant: int | float | None
) -> UInt16[np.ndarray, "H W"]:
    """Index of the largest value of `upsample`'s result per pixel; the first of equal ones.

    Args:
        scores: float32 [h, w, n], n up to 65535.
        shape: rows and columns of the result.
        constant: if given, the value of a further class put before the others.
    """
    (height, width), (rows, columns) = scores.shape[:2], shape
    labels = np.empty(shape, np.uint16)
    across = min(columns, max(_TILE_COLUMNS, _TILE_PIXELS // rows))
    down = max(_TILE_PIXELS // across, 1)

    def fill(corner: tuple[int, int]) -> None:
        top, left = corner
        row_part, row_taps = _taps(height, rows, top, top + down)
        column_part, column_taps = _taps(width, columns, left, left + across)
        _fill_tile(
            labels[top : top + down, left : left + across],
            np.ascontiguousarray(np.moveaxis(scores[row_part, column_part], -1, 0)),
            row_taps,
            column_taps,
            constant,
        )

    corners = itertools.product(range(0, rows, down), range(0, columns, across))
    # NumPy computes without holding Python's lock.
    with ThreadPoolExecutor(min(available_cores(), 8)) as threads:
        list(threads.map(fill, corners))
    return labels


def _fill_tile(
    labels: np.ndarray,
    planes: np.ndarray,
    rows: _Taps,
    columns: _Taps,
    constant: int | float | None,
) -> None:
    """Writes the labels of a tile made from planes [n, h, w]."""
    candidates = possible_winners(planes.min(axis=(1, 2)), planes.max(axis=(1, 2)), constant)
    scores = (
        rows.along_rows(columns.along_columns(planes[k, ..., None]))[..., 0] for k in candidates
    )
    labels[:] = largest(zip(candidates, scores, strict=True), labels.shape, constant)


def possible_winners(
    low: Float32[np.ndarray, " n"], high: Float32[np.ndarray, " n"], constant: int | float | None
) -> Integer[np.ndarray, " k"]:
    """Classes that may have the largest mean somewhere, ascending.

    A mean lies between the values it is taken of: a class whose highest value is below another's
    lowest wins nowhere, which is so of most where there are many.

    Args:
        low, high: smallest and largest value of each class.
        constant: if given, the value of a further class.
    """
    bar = low.max() if constant is None else max(low.max(), np.float32(constant))
    return np.flatnonzero(high >= bar - 1e-5 * (1 + abs(bar)))


def largest(
    scores: Iterable[tuple[int | np.integer, Float32[np.ndarray, "h w"]]],
    shape: tuple[int, ...],
    constant: int | float | None,
) -> UInt16[np.ndarray, "h w"]:
    """The class with the largest score per pixel; the first of equal ones.

    Args:
        scores: classes, ascending, and their scores; without a constant at least one.
        shape: of the scores.
        constant: if given, the score of a further class put before the others.
    """
    first = 0 if constant is None else 1
    best = np.full(shape, -np.inf if constant is None else constant, np.float32)
    labels = np.zeros(shape, np.uint16)
    for k, values in scores:
        np.copyto(labels, k + first, where=values > best, casting="unsafe")
        np.maximum(best, values, out=best)
    return labels


@dataclasses.dataclass(frozen=True)
class _Taps:
    """The two samples that every result sample is a mean of, and their weights."""

    first: np.ndarray
    second: np.ndarray
    first_weight: np.ndarray
    second_weight: np.ndarray

    def along_rows(self, x: np.ndarray) -> np.ndarray:
        """[h, w, n] to [H, w, n]."""
        result = x[self.first]
        result *= self.first_weight[:, None, None]
        other = x[self.second]
        other *= self.second_weight[:, None, None]
        result += other
        return result

    def along_columns(self, x: np.ndarray) -> np.ndarray:
        """[h, w, n] to [h, W, n]."""
        result = x[:, self.first]
        result *= self.first_weight[:, None]
        other = x[:, self.second]
        other *= self.second_weight[:, None]
        result += other
        return result


def _taps(in_size: int, out_size: int, start: int, stop: int) -> tuple[slice, _Taps]:
    """The samples that results `start` to `stop` need, and taps that count from the first."""
    out = np.arange(start, min(stop, out_size))
    position = np.maximum((out + 0.5) * (in_size / out_size) - 0.5, 0.0)
    first = np.minimum(position.astype(np.int64), in_size - 1)
    second = np.minimum(first + 1, in_size - 1)
    weight = np.where(second > first, position - first, 0.0)
    low, high = int(first[0]), int(second[-1]) + 1
    weights = (1 - weight).astype(np.float32), weight.astype(np.float32)
    return slice(low, high), _Taps(first - low, second - low, *weights)
