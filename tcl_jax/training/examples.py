"""A few training images with the masks of their own captions, to watch while training."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tcl_jax.inference.masks import MaskOptions, grid_masks
from tcl_jax.ops.images import normalize
from tcl_jax.ops.resize import resize
from tcl_jax.parallel.mesh import replicated
from tcl_jax.training.build import Experiment
from tcl_jax.training.objectives import Batch

PLAIN = MaskOptions(kp_weight=0.0)


class ExampleMasks:
    """Soft masks of the first batch since this process began.

    Args:
        experiment: what is trained.
        mesh: of the run.
        count: images shown.
    """

    def __init__(self, experiment: Experiment, mesh: Mesh, count: int = 8) -> None:
        self._experiment, self._mesh, self._count = experiment, mesh, count
        self._batch: Batch | None = None
        self._masks = jax.jit(self._compute, out_shardings=replicated(mesh))

    def take(self, batch: Batch) -> None:
        """Chooses the images: the first of this batch, if it has images and not their features."""
        if "image" not in batch:
            return
        rows = jax.jit(
            lambda b: jax.tree.map(lambda x: x[: self._count], b),
            out_shardings=replicated(self._mesh),
        )
        self._batch = rows(batch)

    def pictures(self, params: Any, frozen: Any) -> dict[str, np.ndarray]:
        """One picture: a row of images over a row of masks, uint8 [2H, count*W, 3]."""
        if self._batch is None:
            return {}
        masks = self._masks(self._experiment.join(params, frozen), self._batch)
        images, masks = jax.device_get((self._batch["image"], masks))
        heat = np.repeat((masks * 255).astype(np.uint8), 3, axis=-1)
        rows = [np.concatenate(list(row), axis=1) for row in (images, heat)]
        return {"example_masks": np.concatenate(rows, axis=0)}

    def _compute(self, params: Any, batch: Batch) -> jax.Array:
        method = self._experiment.method
        if "text_embedding" in batch:
            texts = self._experiment.objective.project_texts(params, batch["text_embedding"])
        else:
            texts = method.embed_texts(params, batch["tokens"])
        image = normalize(batch["image"], method.pixel_statistics)
        masks = grid_masks(method, params, image, texts, PLAIN)
        row = jnp.arange(masks.shape[0])
        return resize(masks[row, :, :, row][..., None], batch["image"].shape[1:3])
