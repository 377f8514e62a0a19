"""One process of several: a few training steps and evaluations.

usage: python -m tests.parallel.worker WEIGHTS FOLDER PORT PROCESSES INDEX
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tcl_jax.data.pipeline import make_iterator
from tcl_jax.data.sources import make_erasing, make_source, make_transform
from tcl_jax.evaluation.pairs_task import PairsEvaluator
from tcl_jax.parallel.mesh import (
    data_mesh,
    gather_parameters,
    put_batch,
    put_parameters,
    put_replicated,
)
from tcl_jax.parallel.processes import any_process, start_processes, sum_over_processes
from tcl_jax.training.build import build_adamw, build_experiment, build_schedule
from tcl_jax.training.loop import noise_key
from tcl_jax.training.optim import split_groups
from tcl_jax.training.state import create_state
from tcl_jax.training.step import PhasedStep, no_failure
from tests.parallel.evaluation_worker import evaluation_counts
from tests.tiny import tiny_settings
from tests.xla_flags import quick_process


def main(weights: str, folder: str, port: str, processes: str, index: str) -> None:
    quick_process()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_default_matmul_precision", "highest")
    start_processes(f"localhost:{port}", int(processes), int(index))
    compute(weights, Path(folder), parts=2)


def compute(weights: str, folder: Path, parts: int) -> None:
    """Writes what this process found to `folder`, a file for each kind and process."""
    folder.mkdir(exist_ok=True)
    for name, found in (
        ("training", train(weights, parts)),
        ("evaluation", evaluation_counts(folder)),
        ("pairs", judge_pairs(weights, folder)),
    ):
        arrays = {key: np.asarray(value) for key, value in found.items()}
        np.savez(folder / f"{name}.{jax.process_index()}.npz", **arrays)


def train(weights: str, parts: int) -> dict[str, np.ndarray]:
    """Three steps, the gradient of the first, and what they learn.

    With more than one part the batch is taken in so many, and parameters are split over the
    devices.
    """
    config = tiny_settings(weights).unlock()
    config.train.global_batch_size = 16
    config.data.random_erasing = 0.5
    mesh, experiment = data_mesh(), build_experiment(config)
    side = experiment.method.resolution
    batches = make_iterator(
        make_source(config.data, side),
        tokenizer=experiment.objective.text_encoder.tokenizer(),
        transform=make_transform(config.data, side),
        erasing=make_erasing(config.data),
        global_batch_size=config.train.global_batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    adamw, schedule = build_adamw(config), build_schedule(config)
    split = parts > 1
    state = create_state(experiment.params, experiment.objective, adamw)
    state, frozen = put_parameters((state, experiment.frozen), mesh, sharded=split)
    placed = jax.tree.map(lambda x: x.sharding, state)
    key = noise_key(config.seed, mesh)
    batch = put_batch(next(batches), mesh)

    failure = put_replicated(no_failure(experiment.objective, state, frozen, batch, key), mesh)
    step = PhasedStep(
        experiment.objective, adamw, schedule, backbone_from_step=0, accumulation_steps=parts
    )
    results: dict[str, Any] = {}
    for i in range(3):
        state, failure, metrics = step(i, state, failure, frozen, batch, key)
        results |= {f"step{i}/{name}": value for name, value in metrics.items()}
        if i == 0:  # Adam's first moment is a tenth of the first gradient
            for adam, *_ in gather_parameters(state.opt_state, mesh).values():
                moments = {f"gradient/{path}": value for path, value in adam.mu.items()}
                results |= jax.device_get(moments)  # the next step takes their memory
        batch = put_batch(next(batches), mesh)
    assert jax.tree.map(lambda x: x.sharding, state) == placed
    whole, held = (
        sum(array.nbytes for array in arrays)
        for arrays in (
            jax.tree.leaves((state, frozen)),
            [x.addressable_shards[0].data for x in jax.tree.leaves((state, frozen))],
        )
    )
    assert held < whole / (0.7 * mesh.size) if split else held == whole
    state = gather_parameters(state, mesh)
    results |= {f"final/{k}": v for k, v in split_groups(state.params, lambda _: "")[""].items()}
    assert any_process(jax.process_index() == jax.process_count() - 1)
    counts = np.array([2**40 + jax.process_index(), 1])
    results["counts"] = sum_over_processes(counts)
    batches.close()
    return results


def judge_pairs(weights: str, folder: Path) -> dict[str, float]:
    """Scores of the start on the pairs beside the weights; process 0 writes them with more."""
    config = tiny_settings(weights).unlock()
    config.eval.update(shards=(str(Path(weights).parent / "held_out.tar"),), batch_size=16)
    experiment = build_experiment(config)
    evaluator = PairsEvaluator(config, experiment)
    scores = evaluator(experiment.params, experiment.frozen).scores
    evaluator.report(experiment.params, experiment.frozen, folder, 3)
    return dict(scores)


if __name__ == "__main__":
    main(*sys.argv[1:])
