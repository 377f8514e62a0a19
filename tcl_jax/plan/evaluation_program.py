"""The largest program of a run's evaluations, traced without weights or data."""

from __future__ import annotations

import jax
from ml_collections import ConfigDict

from tcl_jax.evaluation.benchmark import load_benchmark
from tcl_jax.evaluation.benchmark_task import protocol_of
from tcl_jax.evaluation.dense import BestClass, maskclip_scores, tcl_scores
from tcl_jax.evaluation.scenes import check_scenes
from tcl_jax.evaluation.tasks import known_tasks
from tcl_jax.inference.batched import BatchedMasks, default_batch_size
from tcl_jax.inference.masks import MaskOptions
from tcl_jax.ops.images import center_offset
from tcl_jax.parallel.mesh import data_mesh, local_mesh, replicated
from tcl_jax.plan.training_program import Program, with_sharding
from tcl_jax.shapes.source import class_names
from tcl_jax.training.build import Task

SHAPES = "shapes"
"""The evaluation that is no benchmark of photographs."""


def trace_evaluation(config: ConfigDict, task: Task, devices: list[jax.Device]) -> Program | None:
    """The program with the most texts of `eval.tasks`, benchmarks before drawn scenes.

    Args:
        config: reads `eval` and `model`.
        task: an abstract one.
        devices: of the run; every process evaluates a benchmark on its own.

    Raises:
        InputError: if a task is unknown, or its settings do not fit the devices.
    """
    names = known_tasks(config)
    benchmarks = [name for name in names if name != SHAPES]
    if benchmarks:
        return _trace_windows(config, task, devices, benchmarks)
    return _trace_scenes(config, task, devices) if names else None


def _trace_windows(
    config: ConfigDict, task: Task, devices: list[jax.Device], names: list[str]
) -> Program:
    loaded = [load_benchmark(name, split=config.eval.split) for name in names]
    benchmark = max(loaded, key=lambda benchmark: len(benchmark.texts))
    protocol, model = protocol_of(config, task), task.network
    mesh, batch = local_mesh(devices), default_batch_size(devices[0].platform)
    texts, side = len(benchmark.texts), protocol.sizes(benchmark)[1]
    traced = BatchedMasks(model, protocol.options, mesh, batch).trace(
        with_sharding(task.join(task.params, task.frozen), replicated(mesh)),
        side,
        texts,
        benchmark.synonyms,
    )
    padded, _ = center_offset(side, model.patch_size)
    return Program(
        name="evaluation",
        title=f"{benchmark.name}: windows of {side}, {texts} texts",
        traced=traced,
        devices=list(mesh.devices.flat),
        rows=batch * mesh.size,
        parts=model.flops(padded, texts, protocol.options),
    )


def _trace_scenes(config: ConfigDict, task: Task, devices: list[jax.Device]) -> Program:
    model, sizes, mesh = task.network, task.clip.config, data_mesh(devices)
    rows, side, texts = config.eval.batch_size, sizes.resolution, len(class_names())
    check_scenes(config.eval.num_scenes, rows, mesh)
    options = MaskOptions(pamr=config.eval.pamr, kp_weight=config.eval.kp_weight)
    params = task.join(task.params, task.frozen)
    if task.trains_clip:
        scores, params = maskclip_scores(task.clip), params["clip"]
    else:
        scores = tcl_scores(model, options)
    traced = BestClass(scores, mesh).trace(
        with_sharding(params, replicated(mesh)),
        (rows, side, side, 3),
        (texts, sizes.embed_dim),
    )
    return Program(
        name="evaluation",
        title=f"drawn scenes of {side}, {texts} texts",
        traced=traced,
        devices=devices,
        rows=rows,
        parts=model.flops(side, texts, options),
    )
