"""A few training images with the masks of their own captions, to watch while training."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tcl_jax.models.tcl import ground
from tcl_jax.ops.images import normalize
from tcl_jax.ops.masking import diagonal
from tcl_jax.ops.resize import resize
from tcl_jax.parallel.mesh import replicated
from tcl_jax.training.objectives import Batch, Objective, TCLObjective, embed_texts


class ExampleMasks:
    """Soft masks of the first batch of a run.

    Args:
        objective: nothing is shown unless it is TCL's.
        mesh: of the run.
        count: images shown.
    """

    def __init__(self, objective: Objective, mesh: Mesh, count: int = 8) -> None:
        self._objective, self._mesh, self._count = objective, mesh, count
        self._batch: Batch | None = None
        self._masks = jax.jit(self._compute, out_shardings=replicated(mesh))

    def take(self, batch: Batch) -> None:
        """Chooses the images: the first of this batch."""
        rows = jax.jit(
            lambda b: jax.tree.map(lambda x: x[: self._count], b),
            out_shardings=replicated(self._mesh),
        )
        self._batch = rows(batch)

    def pictures(self, params: Any, frozen: Any) -> dict[str, np.ndarray]:
        """One picture: a row of images over a row of masks, uint8 [2H, count*W, 3]."""
        if self._batch is None or not isinstance(self._objective, TCLObjective):
            return {}
        images, masks = jax.device_get((
            self._batch["image"], self._masks({**params, "clip": frozen}, self._batch)
        ))  # fmt: skip
        heat = np.repeat((masks * 255).astype(np.uint8), 3, axis=-1)
        rows = [np.concatenate(list(row), axis=1) for row in (images, heat)]
        return {"example_masks": np.concatenate(rows, axis=0)}

    def _compute(self, params: Any, batch: Batch) -> jax.Array:
        assert isinstance(self._objective, TCLObjective)
        model = self._objective.model
        texts = embed_texts(model.clip_model, params["clip"], batch)
        grounding = ground(model, params, normalize(batch["image"]), texts)
        soft = jax.nn.sigmoid(diagonal(grounding.mask_logits))[..., None]
        return resize(soft, batch["image"].shape[1:3])
