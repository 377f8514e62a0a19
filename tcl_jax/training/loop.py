"""The training loop, read from top to bottom."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tcl_jax.checkpoints.store import CheckpointStore
from tcl_jax.data.bad_samples import BadSampleLog
from tcl_jax.errors import InputError, RunError, as_input_error
from tcl_jax.files import write_json
from tcl_jax.models.flops import total
from tcl_jax.parallel.cores import TUNABLES, asks_for_huge_pages
from tcl_jax.parallel.lock import alone_in
from tcl_jax.parallel.mesh import (
    check_batch_size,
    data_mesh,
    gather_parameters,
    put_batch,
    put_parameters,
    put_replicated,
    replicated,
)
from tcl_jax.parallel.processes import (
    any_process,
    check_same,
    raise_on_all_processes,
    sum_over_processes,
)
from tcl_jax.training.batches import open_batches
from tcl_jax.training.build import Experiment, build_adamw, build_step
from tcl_jax.training.check import check_same_config, number_of_updates
from tcl_jax.training.chips import mfu
from tcl_jax.training.examples import ExampleMasks
from tcl_jax.training.interrupt import Interrupt
from tcl_jax.training.metrics import AreaWatch, MetricWriter, Progress, TrainMetrics
from tcl_jax.training.state import Failure, create_state
from tcl_jax.training.step import no_failure
from tcl_jax.training.workdir import open_workdir
from tcl_jax.weights.identity import check_frozen, decisive


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of one evaluation task: scores by name, and pictures uint8 [H, W, 3] by name."""

    scores: Mapping[str, float]
    images: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


Evaluator = Callable[[Any, Any], Evaluation]
"""(learned parameters, frozen parameters) -> Evaluation; every process calls it."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: updates made in all.
        finished: False if it was interrupted.
        params, frozen: learned and frozen parameters, whole on every device.
    """

    step: int
    finished: bool
    params: Any
    frozen: Any


class NonFiniteError(RunError):
    """The loss or its gradient was not finite; names the step and the terms."""


def train(
    config: ConfigDict, workdir: str, experiment: Experiment, evaluators: Mapping[str, Evaluator]
) -> Outcome:
    """Trains, or continues what `workdir` holds.

    Args:
        config: as in configs/tcl.py, already checked.
        workdir: directory of the run: checkpoints, metrics, TensorBoard, config.
        experiment: what to train.
        evaluators: run every `eval.every` steps, by the name of their task.

    Raises:
        InputError: for a config, a data source or a workdir that cannot be used, as one that
            another run uses; no checkpoint is written then.
        NonFiniteError: the run stops at once and keeps the last good checkpoint.
        RunError: more samples cannot be used than `data.max_bad_share` allows.
    """
    settings = json.loads(json.dumps(config.to_dict()))
    mesh = data_mesh()
    check_batch_size(config.train.global_batch_size, mesh, config.train.accumulation_steps)
    root = raise_on_all_processes(lambda: open_workdir(workdir, settings))
    settings |= json.loads(json.dumps(experiment.record))
    identities = {**experiment.identities, **experiment.begun_from}
    weights = {name: decisive(one) for name, one in identities.items()}
    check_same("pretrained weights", json.dumps(weights), "Give every process the same files")
    with alone_in(root, f"workdir {workdir!r}"):
        return _train(config, settings, root, mesh, experiment, evaluators)


def _train(
    config: ConfigDict,
    settings: dict[str, Any],
    root: Path,
    mesh: Mesh,
    experiment: Experiment,
    evaluators: Mapping[str, Evaluator],
) -> Outcome:
    t, is_writer = config.train, jax.process_index() == 0

    # --------------------------------------------------------------------------------------- data
    suffix = "" if is_writer else f"-{jax.process_index()}"
    bad_samples = BadSampleLog(
        root / f"bad_samples{suffix}.jsonl", max_share=config.data.max_bad_share
    )
    batches = open_batches(config, experiment, bad_samples)

    # -------------------------------------------------------------------------- state, old or new
    adamw = build_adamw(config)
    frozen = put_parameters(experiment.frozen, mesh, sharded=t.fsdp)
    state = put_parameters(
        create_state(experiment.params, experiment.objective, adamw), mesh, sharded=t.fsdp
    )
    first = 0
    with as_input_error(f"workdir {str(root)!r}"):
        store = CheckpointStore(
            root / "checkpoints",
            keep_latest=t.keep_latest,
            keep_best=t.keep_best,
            best_metric=config.eval.best_metric or None,
        )
        check_same("checkpoints", str(store.steps()), "All have to see one workdir")
        if store.latest_step() is not None:
            restored = store.restore(jax.tree.map(_abstract, state))
            state, first = restored.state, restored.step
            if "frozen" not in restored.config:
                raise InputError(
                    "its checkpoints do not say which weights it was trained on ('frozen'), as "
                    "another version wrote them; start in a new workdir"
                )
            # Where `config.json` is gone, this alone tells another config.
            if judged := check_same_config(settings, restored.config):
                logging.info(
                    "%s: given otherwise until now; scores before and after are not alike",
                    ", ".join(judged),
                )
            check_frozen(restored.config["frozen"], experiment.identities)
            # What lies there now may be other weights: these have been trained since.
            settings["begun_from"] = restored.config.get("begun_from", {})
            if restored.data_state is None:
                raise InputError(
                    "it was trained by another number of processes, which were not at one place in "
                    "the data; continue with as many processes as before"
                )
            batches.set_state(restored.data_state)
            logging.info("continuing from step %d", first)
            if (before := restored.config["train"]["total_steps"]) < t.total_steps:
                logging.info(
                    "train.total_steps was %d: the learning rate follows the longer schedule from "
                    "here on",
                    before,
                )
    if is_writer:
        write_json(root / "config.json", settings)
    last = number_of_updates(settings)
    where = "with its last evaluation before" if last <= t.total_steps else "one step after"
    logging.info("%d steps: the run ends %s train.total_steps=%d", last, where, t.total_steps)

    # ------------------------------------------------------------------------------------ logging
    writer = MetricWriter(root, start_step=first)
    window = TrainMetrics()
    warmup = min(config.optim.warmup_steps, t.total_steps // 10)  # time enough for areas
    area = AreaWatch(config.loss.area_prior, warmup)
    examples = ExampleMasks(experiment, mesh)
    if is_writer:
        table = parameter_overview.get_parameter_overview(state.params, include_stats=False)
        (root / "parameters.txt").write_text(f"{table}\n")
        logging.info("learned parameters (parameters.txt lists them): %s", table.splitlines()[-1])
        if jax.default_backend() == "cpu" and not asks_for_huge_pages():
            logging.info(
                "on this CPU a step takes less time with memory in huge pages: stop with Ctrl-C, "
                "set GLIBC_TUNABLES=%s before the same command, and it goes on from there",
                TUNABLES,
            )

    # ---------------------------------------------------------------------------------- the steps
    take_step = build_step(config, experiment.objective)
    failure: Failure | None = None
    key = noise_key(config.seed, mesh)

    def save(step: int, scores: Mapping[str, float] | None = None, wait: bool = False) -> None:
        _check_finite(failure, root)
        position = batches.get_state()
        store.save(
            step, state, data_state=position, config=settings, metrics=dict(scores or {}), wait=wait
        )

    def evaluate(step: int) -> dict[str, float]:
        scores: dict[str, float] = {}
        params, fixed = gather_parameters((state.params, frozen), mesh)
        for name, evaluator in evaluators.items():
            result = evaluator(params, fixed)
            scores.update({f"{name}/{score}": value for score, value in result.scores.items()})
            writer.images(step, {f"{name}/{k}": v for k, v in result.images.items()})
        writer.images(step, examples.pictures(params, fixed))
        if scores:
            writer.scalars(step, scores)
        if (best := config.eval.best_metric) and scores and best not in scores:
            logging.warning(
                "eval.best_metric=%r is none of the scores, %s: no checkpoint is kept as the best",
                best,
                ", ".join(scores),
            )
        return scores

    def describe_stop() -> str:
        if jax.process_count() == 1 or leave or asked == last:
            return progress.describe_stop()
        return progress.describe_stop(min(common_stop(done, asked, t.log_every), last))

    interrupted = leave = False
    done = asked = first  # asked: the step of the last log
    with (
        contextlib.closing(batches),
        store,
        writer,
        Progress(last, first) as progress,
        Interrupt(describe_stop) as interrupt,
        jax.transfer_guard("disallow"),
    ):
        if first == 0 and experiment.begin is not None:
            with progress.paused("the preparation"), jax.transfer_guard("allow"):
                params = experiment.begin(state.params, frozen, batches, mesh, key)
            state = state.replace(params=params)
        for step in range(first, last):
            batch = put_batch(next(batches), mesh)
            if failure is None:
                healthy = no_failure(experiment.objective, state, frozen, batch, key)
                failure = put_replicated(healthy, mesh)
                examples.take(batch)
            if step == t.backbone_from_step:
                progress.compiling()
            state, failure, metrics = take_step(step, state, failure, frozen, batch, key)
            window.add(metrics)
            del batch
            done = step + 1
            progress.update(metrics["total"])

            if done % t.log_every == 0 or done == last:
                seconds = progress.seconds_per_step()
                values = window.compute()
                _check_finite(failure, root)
                if is_writer and config.loss.area and "mask_area" in values:
                    area.check(done, values["mask_area"])
                values["bad_share"] = bad_samples.check(sum_over_processes(bad_samples.totals()))
                both = step >= t.backbone_from_step
                flops = total(experiment.objective.training_flops(t.global_batch_size, both))
                values |= _speed(seconds, flops, t.global_batch_size, mesh)
                writer.scalars(done, {f"train/{k}": v for k, v in values.items()})
                progress.show(values["total"], seconds)
                leave, asked = any_process(interrupt.requested), done
            scores = None
            if step and step % config.eval.every == 0:
                with progress.paused("the evaluation"), jax.transfer_guard("allow"):
                    scores = evaluate(done)
            if scores is not None or done % t.checkpoint_every == 0 or done == last:
                with progress.paused("saving"):
                    save(done, scores)
            # Several processes leave at one step: at the log at which they asked each other.
            if jax.process_count() == 1:
                leave = interrupt.requested
            if leave and done < last:
                with progress.paused("saving"):
                    save(done, wait=True)
                interrupted = True
                break
    params, fixed = gather_parameters((state.params, frozen), mesh)
    return Outcome(int(jax.device_get(state.step)), not interrupted, params, fixed)


def common_stop(done: int, asked: int, log_every: int) -> int:
    """Step of the next log at which processes ask each other, after the one of step `asked`."""
    return -(-max(done, asked + 1) // log_every) * log_every


def noise_key(seed: int, mesh: Mesh) -> jax.Array:
    """Root key of the mask noise, on every device; a step folds in its number."""
    key = jax.jit(
        lambda: jax.random.fold_in(jax.random.key(seed), 1), out_shardings=replicated(mesh)
    )
    return key()


def _check_finite(failure: Failure | None, root: Path) -> None:
    if failure is None or (step := int(jax.device_get(failure.step))) < 0:
        return
    terms = {name: float(value) for name, value in jax.device_get(failure.terms).items()}
    raise NonFiniteError(
        f"the loss or its gradient was not finite at step {step}: "
        + ", ".join(f"{name}={value:.5g}" for name, value in terms.items())
        + f". The run stops; checkpoints in {root} from before that step are good. A lower "
        "optim.base_lr or model.dtype=float32 often helps."
    )


def _speed(seconds: float | None, flops: float, batch: int, mesh: Mesh) -> dict[str, float]:
    """Images a second and MFU; `flops` are the method's for one image."""
    if seconds is None:
        return {}
    used = mfu(flops * batch, seconds, list(mesh.devices.flat))
    return {"images_per_second": batch / seconds} | ({} if used is None else {"mfu": used})


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
