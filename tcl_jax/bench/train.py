"""`bench train`: how fast a training step is, and which operations its time goes to."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tcl_jax.bench.against import COMPARED, Official, open_official
from tcl_jax.bench.report import Report, say
from tcl_jax.bench.subject import Subject, read_subject
from tcl_jax.bench.timing import Runner, measure_in_turn
from tcl_jax.bench.trace import time_by_kind
from tcl_jax.models.clip import CLIPConfig
from tcl_jax.models.decoder import UPSAMPLING
from tcl_jax.models.flops import total
from tcl_jax.ops.images import normalize
from tcl_jax.parallel.mesh import (
    check_batch_size,
    data_mesh,
    put_batch,
    put_parameters,
    put_replicated,
)
from tcl_jax.training.build import build_adamw, build_step
from tcl_jax.training.state import create_state
from tcl_jax.training.step import no_failure

COMPARED_IMAGES = 4
"""Of a batch whose float32 losses are compared with the official code's."""


def bench_train(flags: argparse.Namespace) -> None:
    """`bench train`: time, images per second, MFU and memory of a step."""
    subject = read_subject(flags)
    config, objective = subject.config, subject.experiment.objective
    mesh = data_mesh(jax.devices()[:1] if flags.against else None)
    for size in flags.batch_sizes:
        check_batch_size(size, mesh, config.train.accumulation_steps)
    devices = list(mesh.devices.flat)
    how = {"calls": flags.calls, "rounds": flags.rounds, "warm_up": flags.warmup}
    settings = {name: config.train[name] for name in ("remat", "accumulation_steps", "fsdp")}
    report = Report("train", flags.load, flags.json, devices, **subject.about, **settings)
    sizes = objective.model.config

    def request_of(official: Official, batch: dict[str, np.ndarray], phase: int) -> dict[str, Any]:
        arrays = dict(batch)
        images = np.asarray(normalize(jnp.asarray(arrays.pop("image"))))
        file = official.write_batch(images, **arrays)
        return {"kind": "train", "file": file, "phase": phase - 1}

    with open_official(flags, subject) as official:
        if official is not None:
            report.put("official", official.load(subject))
            agreement = {}
            for phase in flags.phases:
                say(f"phase {phase}: comparing losses")
                batch = made_up_batch(sizes, COMPARED_IMAGES, noise=True)
                *_, metrics = step_runner(subject, batch, phase, mesh, exact=True)()
                ours = {name: np.asarray(metrics[name]) for name in COMPARED}
                request = request_of(official, batch, phase)
                agreement[f"phase {phase}"] = official.check(ours, f"phase {phase}", **request)
                report.put("agreement", agreement)
        for size, phase in itertools.product(flags.batch_sizes, flags.phases):
            what = f"batch {size}, phase {phase}"
            with report.skip_too_large(what):
                say(what)
                batch = made_up_batch(sizes, size)
                runner = step_runner(subject, batch, phase, mesh)
                flops = [total(objective.training_flops(size, phase == 2))]
                (row,) = measure_in_turn([runner], devices, **how, images=size, flops=flops)
                report.add("steps", {"batch_size": size, "phase": phase, **row})
                if official is not None:
                    request = request_of(official, batch, phase)
                    for row in official.times(what, request, runner.run, **how):
                        report.add("against", row)
                if flags.trace:
                    say(f"{what}: tracing")
                    for row in time_by_kind(runner):
                        report.add("time_by_kind", {"what": what, **row})
    report.print_tables()


def step_runner(
    subject: Subject,
    batch: dict[str, np.ndarray],
    phase: int,
    mesh: Mesh,
    *,
    exact: bool = False,
) -> Runner:
    """The training step of a phase (1 or 2) on one batch; a call gives (state, failure, metrics).

    Args:
        batch: rows on the host, as `objectives.Batch`.
        phase: 1, the head trains, or 2, the grounder's copies of CLIP's blocks train, too.
        exact: in float32, and in one part whatever the config says.
    """
    experiment, config = subject.experiment, copy.deepcopy(subject.config)
    objective: Any = experiment.objective
    if exact:
        model = dataclasses.replace(objective.model, dtype=jnp.float32)
        objective = dataclasses.replace(objective, model=model)
        with config.unlocked():
            config.train.accumulation_steps = 1
    state = create_state(experiment.params, objective, build_adamw(config))
    state, frozen = (
        put_parameters(tree, mesh, sharded=config.train.fsdp) for tree in (state, experiment.frozen)
    )
    key = put_replicated(np.asarray(jax.random.key_data(jax.random.key(0))), mesh)
    fixed = (frozen, put_batch(batch, mesh), jax.random.wrap_key_data(key))
    failure = put_replicated(no_failure(objective, state, *fixed), mesh)
    step = build_step(config, objective)
    return Runner(step.trace(phase, state, failure, *fixed), (state, failure, *fixed), 2)


def made_up_batch(config: CLIPConfig, size: int, *, noise: bool = False) -> dict[str, np.ndarray]:
    """Random pixels and tokens of `size` rows, and, if asked for, the masks' noise, `uniform`."""
    rng, side = np.random.default_rng(0), config.resolution
    tokens = rng.integers(1, config.vocab_size - 1, (size, config.context_length), np.int32)
    tokens[:, -1] = config.vocab_size - 1  # where a text ends
    batch = {"image": rng.integers(0, 256, (size, side, side, 3), np.uint8), "tokens": tokens}
    if noise:
        grid = UPSAMPLING * side // config.patch_size
        batch["uniform"] = rng.uniform(1e-3, 1 - 1e-3, (size, grid, grid)).astype(np.float32)
    return batch
