"""Where the projection of TCL on a backbone begins: at CLIP's embeddings of whole images."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Float

from tcl_jax.models.clip import encode_image
from tcl_jax.models.tcl import TCL, mean_patches
from tcl_jax.ops.images import renormalize
from tcl_jax.parallel.mesh import put_batch, replicated
from tcl_jax.training.objectives import Batch, augmented, with_keys

if TYPE_CHECKING:
    from tcl_jax.data.pipeline import BatchIterator

IMAGES = 4096
"""Images that the projection is fitted to; at least one batch."""
RIDGE = 0.01
"""Added to the diagonal of the normal equations, in means of it."""


def fit_projection(
    model: TCL, params: Any, frozen: Any, batches: BatchIterator, mesh: Mesh, key: jax.Array
) -> Any:
    """Learned parameters with the projection that takes mean patches to CLIP's image embeddings.

    By least squares over the first images of the run, as they are augmented; no text is needed.
    Embeddings are not normalised, so that pixels' are about as long as with CLIP's own projection,
    which the total variation of them takes. `batches` are where they were afterwards. Every process
    must call it.

    Args:
        model: the network.
        params, frozen: learned and frozen parameters at the start, on the mesh.
        batches: of this process.
        mesh: of the run.
        key: of the noise in erased rectangles.
    """
    grounder, everywhere = params[model.grounder], replicated(mesh)
    proj = grounder["proj"]
    add = jax.jit(partial(_add, model), donate_argnums=0, out_shardings=everywhere)
    position, seen = batches.get_state(), 0
    gram = jax.jit(lambda: jnp.zeros((proj.shape[0],) * 2), out_shardings=everywhere)()
    sums = gram, jax.jit(lambda: jnp.zeros(proj.shape), out_shardings=everywhere)()
    while seen < IMAGES:
        batch = put_batch(next(batches), mesh)
        sums = add(sums, params, frozen, batch, key)
        seen += len(batch["image"])
    batches.set_state(position)
    fitted = jax.jit(_solve, out_shardings=proj.sharding)(*sums)
    logging.info("the projection begins at the least squares of %d images", seen)
    return {**params, model.grounder: {**grounder, "proj": fitted}}


def _add(
    model: TCL,
    sums: tuple[Float[Array, "c c"], Float[Array, "c d"]],
    params: Any,
    frozen: Any,
    batch: Batch,
    key: jax.Array,
) -> tuple[Float[Array, "c c"], Float[Array, "c d"]]:
    """Normal equations with those of a batch."""
    own, clip = model.pixel_statistics, model.clip_model
    image = augmented(with_keys(batch, key), own)
    means = mean_patches(model, {**params, **frozen}, image)
    seen = renormalize(image, own, clip.pixel_statistics)
    wanted = encode_image(clip, frozen["clip"], seen).embedding.astype(jnp.float32)
    product = partial(jnp.einsum, "bc,bd->cd", means, precision="highest")
    return sums[0] + product(means), sums[1] + product(wanted)


def _solve(gram: Float[Array, "c c"], towards: Float[Array, "c d"]) -> Float[Array, "c d"]:
    size = len(gram)
    ridge = RIDGE * jnp.trace(gram) / size * jnp.eye(size)
    with jax.default_matmul_precision("highest"):
        return jnp.linalg.solve(gram + ridge, towards)
