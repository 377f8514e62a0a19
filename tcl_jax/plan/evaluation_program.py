"""The largest program of a run's evaluations, traced without weights or data."""

from __future__ import annotations

import jax
from ml_collections import ConfigDict

from tcl_jax.evaluation.benchmark import load_benchmark
from tcl_jax.evaluation.benchmark_task import protocol_of
from tcl_jax.evaluation.scenes import check_scenes
from tcl_jax.evaluation.tasks import known_tasks
from tcl_jax.inference.engine import MaskEngine, default_batch_size
from tcl_jax.inference.masks import MaskOptions
from tcl_jax.ops.images import center_offset
from tcl_jax.parallel.mesh import data_mesh, local_mesh, replicated
from tcl_jax.plan.training_program import Program, with_sharding
from tcl_jax.shapes.source import class_names
from tcl_jax.training.build import Experiment

SHAPES = "shapes"
"""The evaluation that is no benchmark of photographs."""


def trace_evaluation(
    config: ConfigDict, experiment: Experiment, devices: list[jax.Device]
) -> Program | None:
    """The program with the most texts of `eval.tasks`, benchmarks before drawn scenes.

    Args:
        config: reads `eval` and `model`.
        experiment: an abstract one.
        devices: of the run; every process evaluates on its own.

    Raises:
        InputError: if a task is unknown, or its settings do not fit the devices.
    """
    names, model, mesh = known_tasks(config), experiment.method, local_mesh(devices)
    options = MaskOptions(pamr=config.eval.pamr, kp_weight=config.eval.kp_weight)
    if benchmarks := [name for name in names if name != SHAPES]:
        loaded = [load_benchmark(name, split=config.eval.split) for name in benchmarks]
        benchmark = max(loaded, key=lambda benchmark: len(benchmark.texts))
        protocol = protocol_of(config, experiment)
        options, side = protocol.options, protocol.sizes(benchmark)[1]
        texts, synonyms = len(benchmark.texts), benchmark.synonyms
        title = f"{benchmark.name}: windows of {side}, {texts} texts"
        engine = MaskEngine(model, mesh, default_batch_size(devices[0].platform))
    elif names:
        check_scenes(config.eval.num_scenes, config.eval.batch_size, data_mesh(devices))
        texts, side, synonyms = len(class_names()), model.resolution, None
        title = f"drawn scenes of {side}, {texts} texts"
        engine = MaskEngine(model, mesh, config.eval.batch_size // len(devices))
    else:
        return None
    params = with_sharding(experiment.join(experiment.params, experiment.frozen), replicated(mesh))
    padded, _ = center_offset(side, model.patch_size)
    return Program(
        name="evaluation",
        title=title,
        traced=engine.trace(params, side, texts, options, synonyms),
        devices=list(mesh.devices.flat),
        rows=engine.rows((padded, padded), texts),
        parts=model.flops(padded, texts, options),
    )
