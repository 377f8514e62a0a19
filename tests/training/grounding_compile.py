"""Compiles the losses of all pairs with their gradients for TPUs that need not be there.

usage: python -m tests.training.grounding_compile KIND:TOPOLOGY ...

Prints one line of JSON for each, with sizes in bytes on one chip. 64 images a chip.
"""

from __future__ import annotations

import json
import os
import re
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from tcl_jax.ops.grounding import grounding_losses
from tcl_jax.parallel.mesh import batch_sharded, data_mesh, replicated
from tests.ops.test_grounding import plain, weighted

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Without a TPU libtpu has to be told what to be, and that others may use it too."""
IMAGES, SIDE, SIZE = 64, 56, 512
COLLECTIVE = re.compile(r"= (.*?) (?:all-\w+|reduce-scatter|collective-\w+)(?:-start)?\(")
ARRAY = re.compile(r"\w\d+\[([\d,]*)\]")


def largest_collective(hlo: str) -> int:
    """Elements of the largest array that a collective operation of a program makes."""
    arrays = [a for shapes in COLLECTIVE.findall(hlo) for a in ARRAY.findall(shapes)]
    sizes = [[int(n) for n in dimensions.split(",") if n] for dimensions in arrays]
    return max((int(jnp.prod(jnp.array(size))) if size else 1 for size in sizes), default=0)


def measure(kind: str, topology: str) -> dict[str, Any]:
    """What the compiler says of one program."""
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = data_mesh(devices)
    rows, everywhere = batch_sharded(mesh), replicated(mesh)

    def array(sharding: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    grouped = partial(grounding_losses, area_group=64)
    losses = {"plain": plain, "tiled": grounding_losses, "grouped": grouped}[kind]
    gradient = jax.grad(lambda *arguments: weighted(losses(*arguments)), argnums=(0, 2, 3, 4))
    count, scalar = IMAGES * mesh.size, array(everywhere)
    compiled = (
        jax.jit(gradient, out_shardings=(rows, everywhere, everywhere, everywhere))
        .lower(array(rows, count, SIDE, SIDE, SIZE), array(rows, count, SIZE), *[scalar] * 3)
        .compile()
    )
    memory = compiled.memory_analysis()
    return {
        "program": f"{kind}:{topology}",
        "texts": count,
        "temporary": memory.temp_size_in_bytes,
        "gradient": memory.output_size_in_bytes,
        "largest_collective": largest_collective(compiled.as_text()),
        "flops": compiled.cost_analysis()["flops"],
    }


if __name__ == "__main__":
    os.environ.update(ENVIRONMENT)
    for argument in sys.argv[1:]:
        print(json.dumps(measure(*argument.split(":", 1))), flush=True)
