"""The losses of all pairs and their gradients over a mesh of all devices."""

from __future__ import annotations

import jax
import numpy as np

from tcl_jax.ops.grounding import GroundingLosses, grounding_losses
from tcl_jax.parallel.mesh import data_mesh, put_batch, put_replicated, replicated
from tests.ops.test_grounding import inputs, weighted
from tests.training.grounding_compile import largest_collective

COUNT = 16
NAMES = ("pixels", "texts", "w", "b", "log_scale")


def pair_losses() -> dict[str, np.ndarray]:
    """Losses, gradients, and elements of the largest array that the devices exchange."""
    mesh = data_mesh()
    arrays = dict(zip(NAMES, map(np.asarray, inputs(COUNT)), strict=True))
    share = COUNT // jax.process_count()
    mine = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
    rows = put_batch({name: arrays[name][mine] for name in NAMES[:2]}, mesh)
    scalars = put_replicated({name: arrays[name] for name in NAMES[2:]}, mesh)

    def loss(arguments: dict[str, jax.Array]) -> tuple[jax.Array, GroundingLosses]:
        # A prior far from the masks' mean, lest `area` be the difference of near equals. Of eight
        # devices two have the images of a group, of one or two devices there are several in each.
        given = (arguments[name] for name in NAMES)
        found = grounding_losses(*given, area_prior=0.1, area_group=4, text_tile=5)
        return weighted(found), found

    gradient = jax.jit(jax.grad(loss, has_aux=True), out_shardings=replicated(mesh))
    gradients, found = gradient({**rows, **scalars})
    # As in training, where pixels' gradients stay where the pixels are.
    program = jax.jit(jax.grad(lambda x: loss(x)[0])).lower({**rows, **scalars}).compile()
    return {
        "largest_collective": np.asarray(largest_collective(program.as_text())),
        **{f"gradient/{name}": np.asarray(value) for name, value in gradients.items()},
        **{name: np.asarray(value) for name, value in found._asdict().items()},
    }
