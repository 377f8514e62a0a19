"""Masks of many images: windows of several are computed together, over all devices at hand."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int32, UInt8

from tcl_jax.inference.masks import (
    MaskOptions,
    Synonyms,
    best_synonym,
    each_alone,
    grid_masks,
)
from tcl_jax.inference.mosaic import Mosaic
from tcl_jax.models.method import Method
from tcl_jax.ops.images import center_offset, inside_boxes, normalize
from tcl_jax.parallel.mesh import batch_sharded, replicated

Item = TypeVar("Item")


def default_batch_size(platform: str | None = None) -> int:
    """Windows that a device computes together, if nobody says; None: of JAX's own platform."""
    return 1 if (platform or jax.default_backend()) == "cpu" else 8


@dataclasses.dataclass(frozen=True)
class ImageTask(Generic[Item]):
    """An image to make masks of.

    Attributes:
        item: whatever tells the caller which image it is.
        mosaic: its windows.
        image: uint8 RGB, resized to `mosaic.size`.
    """

    item: Item
    mosaic: Mosaic
    image: UInt8[np.ndarray, "h w 3"]


class BatchedMasks:
    """Masks of streams of images on the model's grid, in batches of windows of one shape.

    A program is compiled for each number of texts and for each padded shape of a window. That is
    one shape, but for images longer than the protocol's 2048 pixels to a short side (4.6 to 1 for
    windows of 448), whose windows are lower or narrower.

    Args:
        model: the method.
        options: post-processing.
        mesh: devices of this process, over which the windows of a batch are split.
        batch_size: windows per device; None: `default_batch_size`.
    """

    def __init__(
        self,
        model: Method,
        options: MaskOptions,
        mesh: Mesh,
        batch_size: int | None = None,
    ) -> None:
        self._patch, self._width = model.patch_size, model.config.embed_dim
        self._rows, everywhere = batch_sharded(mesh), replicated(mesh)
        self._everywhere = everywhere
        self._batch = mesh.size * (batch_size or default_batch_size())

        def masks(
            params: Any,
            pixels: UInt8[Array, "b h w 3"],
            boxes: Int32[Array, "b 4"],
            texts: Float[Array, "n d"],
            synonyms: Synonyms,
        ) -> Float[Array, "b g f classes"]:
            image = jnp.where(
                inside_boxes(boxes, pixels.shape[1], pixels.shape[2])[..., None],
                normalize(pixels, model.pixel_statistics),
                0.0,
            )
            return best_synonym(grid_masks(model, params, image, texts, options), synonyms)

        self._compiled = jax.jit(
            masks,
            static_argnums=4,
            in_shardings=(everywhere, self._rows, self._rows, everywhere),
            out_shardings=self._rows,
        )

    def __call__(
        self,
        params: Any,
        tasks: Iterable[ImageTask[Item]],
        texts: Float32[np.ndarray, "n d"],
        synonyms: Synonyms | None = None,
    ) -> Iterator[tuple[ImageTask[Item], list[np.ndarray]]]:
        """Yields every task with the masks of its windows, float32 [grid rows, columns, classes].

        The order is that in which images are finished, and the next batch is computed while the
        caller works on the one before.

        Args:
            params: of the model, replicated over the mesh.
            tasks: the images; read as they are needed.
            texts: embeddings, [n, d].
            synonyms: texts of each class, which takes the largest of their masks; None: each text
                is a class.
        """
        synonyms = synonyms or each_alone(len(texts))
        placed = jax.device_put(np.asarray(texts, np.float32), self._everywhere)
        waiting: dict[tuple[int, int], list[_Piece[Item]]] = {}
        running: collections.deque[tuple[list[_Piece[Item]], jax.Array]] = collections.deque()

        def start(pieces: list[_Piece[Item]]) -> tuple[list[_Piece[Item]], jax.Array]:
            masks = self._compiled(params, *self._stack(pieces), placed, synonyms)
            masks.copy_to_host_async()
            return pieces, masks

        for task in tasks:
            job = _Job(task, [None] * len(task.mosaic.windows))
            for k, window in enumerate(task.mosaic.windows):
                (rows, _), (columns, _) = (
                    center_offset(side, self._patch) for side in (window.height, window.width)
                )
                pieces = waiting.setdefault((rows, columns), [])
                pieces.append(_Piece(job, k, task.image[window.slices]))
                if len(pieces) == self._batch:
                    running.append(start(waiting.pop((rows, columns))))
                    if len(running) > 1:
                        yield from _finish(*running.popleft())
        for pieces in waiting.values():
            running.append(start(pieces))
            if len(running) > 1:
                yield from _finish(*running.popleft())
        while running:
            yield from _finish(*running.popleft())

    def trace(
        self, params: Any, side: int, texts: int, synonyms: Synonyms | None = None
    ) -> jax.stages.Traced:
        """The program for square windows of `side` pixels; shapes will do as parameters."""
        padded, shape = center_offset(side, self._patch)[0], jax.ShapeDtypeStruct
        return self._compiled.trace(
            params,
            shape((self._batch, padded, padded, 3), np.uint8, sharding=self._rows),
            shape((self._batch, 4), np.int32, sharding=self._rows),
            shape((texts, self._width), np.float32, sharding=self._everywhere),
            synonyms or each_alone(texts),
        )

    def _stack(self, pieces: Sequence[_Piece[Item]]) -> tuple[jax.Array, jax.Array]:
        """A batch on the devices: padded pixels, and which of them are the windows."""
        height, width = pieces[0].pixels.shape[:2]
        rows, columns = (center_offset(side, self._patch)[0] for side in (height, width))
        batch = np.zeros((self._batch, rows, columns, 3), np.uint8)
        boxes = np.zeros((self._batch, 4), np.int32)
        for i, piece in enumerate(pieces):
            height, width = piece.pixels.shape[:2]
            top, left = (center_offset(side, self._patch)[1] for side in (height, width))
            batch[i, top : top + height, left : left + width] = piece.pixels
            boxes[i] = top, left, height, width
        return jax.device_put((batch, boxes), self._rows)


@dataclasses.dataclass
class _Job(Generic[Item]):
    """An image whose windows are being computed."""

    task: ImageTask[Item]
    masks: list[np.ndarray | None]


@dataclasses.dataclass(frozen=True)
class _Piece(Generic[Item]):
    """A window of an image."""

    job: _Job[Item]
    index: int
    pixels: np.ndarray


def _finish(
    pieces: Sequence[_Piece[Item]], batch: jax.Array
) -> Iterator[tuple[ImageTask[Item], list[np.ndarray]]]:
    """Puts the masks where they belong; yields the images that are complete by that."""
    for piece, masks in zip(pieces, np.asarray(batch), strict=False):
        piece.job.masks[piece.index] = masks
        done = [masks for masks in piece.job.masks if masks is not None]
        if len(done) == len(piece.job.masks):
            yield piece.job.task, done
