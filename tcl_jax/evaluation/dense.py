"""Label maps of a stream of images by a method that scores every pixel for every class."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32

from tcl_jax.inference.masks import MaskOptions, make_masks, maskclip_similarity
from tcl_jax.models.clip import CLIP
from tcl_jax.models.method import Method
from tcl_jax.ops.images import normalize
from tcl_jax.parallel.mesh import batch_sharded, put_batch, replicated

ScoreFn = Callable[[Any, Float[Array, "b H W 3"], Float[Array, "n d"]], Float[Array, "b H W n"]]
"""(all parameters, normalised images, text embeddings) -> score of every class at every pixel."""


def tcl_scores(model: Method, options: MaskOptions) -> ScoreFn:
    """Soft masks of what is trained."""
    return lambda params, image, texts: make_masks(model, params, image, texts, options)


def maskclip_scores(model: CLIP) -> ScoreFn:
    """Cosine of CLIP's own patch features with the texts: the MaskCLIP baseline."""
    return functools.partial(maskclip_similarity, model)


class BestClass:
    """The best class and its score at every pixel, so that thresholds can be tried on the host.

    Args:
        scores: the method; compiled once per image shape.
        mesh: images are split over it.
    """

    def __init__(self, scores: ScoreFn, mesh: Mesh) -> None:
        rows, everywhere = batch_sharded(mesh), replicated(mesh)

        def best(params: Any, image: jax.Array, texts: jax.Array) -> tuple[jax.Array, jax.Array]:
            values = scores(params, normalize(image), texts)
            return jnp.argmax(values, axis=-1).astype(jnp.uint16), jnp.max(values, axis=-1)

        self._mesh, self._rows, self._everywhere = mesh, rows, everywhere
        self._best = jax.jit(best, in_shardings=(everywhere, rows, everywhere), out_shardings=rows)

    def __call__(
        self,
        params: Any,
        texts: Float32[np.ndarray, "n d"],
        batches: Iterable[Mapping[str, np.ndarray]],
    ) -> Iterator[tuple[Mapping[str, np.ndarray], np.ndarray, np.ndarray]]:
        """Yields (batch, class uint16 [b, H, W], score float32 [b, H, W]) of this process's rows.

        The next batch is computed while the caller works on the one before.
        """
        ahead: tuple[Mapping[str, np.ndarray], Any] | None = None
        for batch in batches:
            image = put_batch({"image": batch["image"]}, self._mesh)["image"]
            current = (batch, self._best(params, image, texts))
            if ahead is not None:
                yield ahead[0], _local_rows(ahead[1][0]), _local_rows(ahead[1][1])
            ahead = current
        if ahead is not None:
            yield ahead[0], _local_rows(ahead[1][0]), _local_rows(ahead[1][1])

    def trace(
        self, params: Any, image: tuple[int, int, int, int], texts: tuple[int, int]
    ) -> jax.stages.Traced:
        """The program for arguments of these shapes; of parameters, shapes will do too."""
        shape = jax.ShapeDtypeStruct
        return self._best.trace(
            params,
            shape(image, np.uint8, sharding=self._rows),
            shape(texts, np.float32, sharding=self._everywhere),
        )


def _local_rows(x: jax.Array) -> np.ndarray:
    """The rows of a sharded array that this process holds, in order."""
    shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def with_background(classes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Label map uint16: 0 where no class scores above the threshold, else the class plus 1."""
    return np.where(scores > threshold, classes + 1, 0).astype(np.uint16)
