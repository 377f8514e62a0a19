"""Masks of images: windows of one shape are computed together, over all devices at hand."""

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

from tcl_jax.inference.masks import MaskOptions, Synonyms, best_synonym, grid_masks
from tcl_jax.inference.merging import SoftMasks
from tcl_jax.inference.windows import SlidingWindow
from tcl_jax.models.method import Method
from tcl_jax.ops.images import inside_boxes, normalize
from tcl_jax.parallel.mesh import batch_sharded, replicated

Item = TypeVar("Item")

_WAITING = 8
"""Batches' worth of windows that wait for others of their shape."""
_LARGEST = 1 << 29
"""Pixels times texts of the windows that a device computes together."""


def default_batch_size() -> int:
    """Windows that a device computes together, if nobody says."""
    return 1 if jax.default_backend() == "cpu" else 8


@dataclasses.dataclass(frozen=True, eq=False)
class ImageTask(Generic[Item]):
    """An image to make masks of.

    Attributes:
        item: whatever tells the caller which image it is.
        sliding: its windows.
        pixels: RGB bytes, or normalised float32, of `sliding.size`.
    """

    item: Item
    sliding: SlidingWindow
    pixels: UInt8[np.ndarray, "h w 3"] | Float32[np.ndarray, "h w 3"]


class MaskEngine:
    """Soft masks of streams of images, in batches of windows of one padded shape.

    A program is compiled for each number of texts, each `options` and `synonyms`, and each padded
    shape of a window, as far as the method sees it. That is one shape, but for images longer than
    the protocol's 2048 pixels to a short side (4.6 to 1 for windows of 448), whose windows are
    lower or narrower, and for windows of whole images.

    Args:
        model: the method.
        mesh: devices of this process, over which the windows of a batch are split.
        batch_size: windows per device, fewer where texts are many; None: `default_batch_size`.
    """

    def __init__(self, model: Method, mesh: Mesh, batch_size: int | None = None) -> None:
        self.patch_size, self._seen_size = model.patch_size, model.seen_size
        self.batch_size = batch_size or default_batch_size()
        self._mesh = mesh
        self._split, self._everywhere = batch_sharded(mesh), replicated(mesh)

        # Beyond windows that need no padding a method sees black, see `Method.seen_size`.
        black = normalize(np.zeros(3, np.uint8), model.pixel_statistics)

        def masks(
            params: Any,
            pixels: UInt8[Array, "b h w 3"] | Float[Array, "b h w 3"],
            boxes: Int32[Array, "b 4"],
            texts: Float[Array, "n d"],
            options: MaskOptions,
            synonyms: Synonyms | None,
        ) -> Float[Array, "b g f classes"]:
            inside = inside_boxes(boxes, pixels.shape[1], pixels.shape[2])[..., None]
            pixels = normalize(pixels, model.pixel_statistics)
            image = jnp.where(inside, pixels, black if model.patch_size == 1 else 0.0)
            found = grid_masks(model, params, image, texts, options)
            return found if synonyms is None else best_synonym(found, synonyms)

        self._compiled = jax.jit(
            masks,
            static_argnums=(4, 5),
            in_shardings=(self._everywhere, self._split, self._split, self._everywhere),
            out_shardings=self._split,
        )

    def __call__(
        self,
        params: Any,
        tasks: Iterable[ImageTask[Item]],
        texts: Float32[np.ndarray, "n d"],
        options: MaskOptions,
        synonyms: Synonyms | None = None,
        batch_size: int | None = None,
    ) -> Iterator[tuple[ImageTask[Item], SoftMasks]]:
        """Yields every image with its masks, in the order in which they are finished.

        The next batch is computed while the caller works on the one before.

        Args:
            params: of the model, replicated over the mesh.
            tasks: the images; read as they are needed.
            texts: embeddings, [n, d].
            options: post-processing.
            synonyms: texts of each class, which takes the largest of their masks; None: each text
                is a class.
            batch_size: windows per device, where fewer than usual are to come.
        """
        running: collections.deque[tuple[list[_Window[Item]], jax.Array]] = collections.deque()
        for seen, windows in self._batches(tasks, len(texts), batch_size):
            rows = self.rows(seen, len(texts), batch_size)
            inputs = *_stack(windows, seen, rows), np.asarray(texts, np.float32)
            if jax.process_count() > 1:  # JAX takes no arrays of the host then
                inputs = jax.device_put(inputs, (self._split, self._split, self._everywhere))
            with jax.transfer_guard("allow"):  # cheaper than `device_put`
                masks = self._compiled(params, *inputs, options.of_windows, synonyms)
            masks.copy_to_host_async()
            running.append((windows, masks))
            if len(running) > 1:
                yield from _finish(*running.popleft())
        while running:
            yield from _finish(*running.popleft())

    def rows(self, padded: tuple[int, int], texts: int, batch_size: int | None = None) -> int:
        """Windows of a batch over all devices.

        Args:
            padded: rows and columns of a padded window, as far as they are seen.
            texts: number of texts.
            batch_size: see `__call__`.
        """
        largest = _LARGEST // (padded[0] * padded[1] * texts)
        return self._mesh.size * max(min(batch_size or self.batch_size, largest), 1)

    def _batches(
        self, tasks: Iterable[ImageTask[Item]], texts: int, batch_size: int | None
    ) -> Iterator[tuple[tuple[int, int], list[_Window[Item]]]]:
        """Shapes with windows of them, fewer than a batch has where there are no more of a shape.

        Of images of ever other shapes, the most numerous go once too many wait.
        """
        waiting: dict[tuple[int, int], list[_Window[Item]]] = {}
        most = _WAITING * self._mesh.size * (batch_size or self.batch_size)
        for task in tasks:
            seen, count = self._seen_size(task.sliding.padded), len(task.sliding.windows)
            job = _Job(task, [None] * count)
            for k in range(count):
                windows = waiting.setdefault(seen, [])
                windows.append(_Window(job, k))
                if len(windows) == self.rows(seen, texts, batch_size):
                    yield seen, waiting.pop(seen)
            while sum(map(len, waiting.values())) > most:
                fullest = max(waiting, key=lambda seen: len(waiting[seen]))
                yield fullest, waiting.pop(fullest)
        yield from waiting.items()


@dataclasses.dataclass
class _Job(Generic[Item]):
    """An image whose windows are being computed."""

    task: ImageTask[Item]
    grids: list[np.ndarray | None]


@dataclasses.dataclass(frozen=True)
class _Window(Generic[Item]):
    """A window of an image."""

    job: _Job[Item]
    index: int


def _stack(
    windows: Sequence[_Window[Any]], seen: tuple[int, int], rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """A batch of the padded pixels that are seen, and which are the windows: top, left, height,
    width.
    """
    dtype = windows[0].job.task.pixels.dtype
    batch = np.zeros((rows, *seen, 3), dtype)
    boxes = np.zeros((rows, 4), np.int32)
    for i, window in enumerate(windows):
        task = window.job.task
        top, left = task.sliding.rows.before, task.sliding.columns.before
        height, width = task.sliding.side
        boxes[i] = top, left, height, width
        down, across = task.sliding.windows[window.index]
        place = batch[i, top : top + height, left : left + width]
        place[:] = task.pixels[down, across][: place.shape[0], : place.shape[1]]
    return batch, boxes


def _finish(
    windows: Sequence[_Window[Item]], batch: jax.Array
) -> Iterator[tuple[ImageTask[Item], SoftMasks]]:
    """Puts the masks where they belong; yields the images that are complete by that."""
    for window, masks in zip(windows, np.asarray(batch), strict=False):
        job = window.job
        job.grids[window.index] = masks
        done = [grid for grid in job.grids if grid is not None]
        if len(done) == len(job.grids):
            yield job.task, SoftMasks(job.task.sliding, np.stack(done))
