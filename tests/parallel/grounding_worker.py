"""One process that computes the losses of all pairs and their gradients over a mesh.

usage: python -m tests.parallel.grounding_worker OUT.npz [PORT PROCESSES INDEX]
"""

from __future__ import annotations

import sys

import jax
import numpy as np

from tcl_jax.ops.grounding import GroundingLosses, grounding_losses
from tcl_jax.parallel.mesh import data_mesh, put_batch, put_replicated, replicated
from tcl_jax.parallel.processes import start_processes
from tests.ops.test_grounding import inputs, weighted
from tests.training.grounding_compile import largest_collective

COUNT = 16
NAMES = ("pixels", "texts", "w", "b", "log_scale")


def main(out: str, port: str = "", processes: str = "1", index: str = "0") -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_default_matmul_precision", "highest")
    if port:
        start_processes(f"localhost:{port}", int(processes), int(index))
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
    if jax.process_index() == 0:
        np.savez(
            out,
            largest_collective=largest_collective(program.as_text()),
            devices=len(jax.devices()),
            **{f"gradient/{name}": np.asarray(value) for name, value in gradients.items()},
            **{name: np.asarray(value) for name, value in found._asdict().items()},
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
