"""The training step of a config, traced for devices that need not be there and without weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from tcl_jax.data.sources import make_erasing
from tcl_jax.parallel.mesh import batch_sharded, parameter_sharding, replicated
from tcl_jax.training.batches import caption_tower
from tcl_jax.training.build import Experiment, build_adamw, build_step
from tcl_jax.training.state import create_state
from tcl_jax.training.step import no_failure


def trace_step(
    config: ConfigDict, experiment: Experiment, mesh: Mesh, phase: int
) -> jax.stages.Traced:
    """The step of a phase as `training.loop.train` makes it.

    Args:
        config: as in configs/tcl.py; `train.global_batch_size` divides over the mesh.
        experiment: an abstract one.
        phase: 1 or 2, of `training.step.PHASES`.
    """
    adamw = build_adamw(config)
    step = build_step(config, experiment.objective)
    everywhere, split = replicated(mesh), config.train.fsdp

    def place(tree: Any) -> Any:
        return jax.tree.map(
            lambda x: with_sharding(x, parameter_sharding(x.shape, mesh, sharded=split)), tree
        )

    state = jax.eval_shape(
        lambda params: create_state(params, experiment.objective, adamw), experiment.params
    )
    state, frozen = place(state), place(experiment.frozen)
    batch = abstract_batch(config, experiment, mesh)
    key = with_sharding(jax.eval_shape(lambda: jax.random.key(0)), everywhere)
    failure = with_sharding(no_failure(experiment.objective, state, frozen, batch, key), everywhere)
    return step.trace(phase, state, failure, frozen, batch, key)


def abstract_batch(config: ConfigDict, experiment: Experiment, mesh: Mesh) -> Any:
    """Shapes of a `Batch` on the mesh."""
    side, size = experiment.method.resolution, config.train.global_batch_size
    heads, encoder = experiment.objective.head_shape, experiment.objective.text_encoder
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {}
    if heads is None:
        shapes["image"] = ((size, side, side, 3), jnp.uint8)
    else:
        shapes["heads"] = ((size, *heads), jnp.float16)
    if heads is not None or config.data.caption_cache:
        caption_tower(config, experiment)
        shapes["text_embedding"] = ((size, encoder.embed_dim), jnp.float32)
    else:
        shapes["tokens"] = ((size, encoder.tokenizer()([""]).shape[1]), jnp.int32)
    if make_erasing(config.data) is not None:
        shapes["erase"] = ((size, 4), jnp.int32)
    rows = batch_sharded(mesh)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
        for name, (shape, dtype) in shapes.items()
    }


def with_sharding(tree: Any, sharding: NamedSharding) -> Any:
    """Shapes of a tree's arrays, with a sharding."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
