"""The checkpoints of a run, through Orbax's Checkpointer: asynchronous, atomic and pruned.

A step is a directory of its number: `state`, the arrays by their path (`params/visual/proj`), and
`info`, the config of the run and the position of each process in its data. Orbax gives it that name
once it is whole, and deletes what its preservation policies do not keep after that. Methods are
collective: all processes call them, in the same order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging as python_logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from orbax.checkpoint import v1 as ocp

from tcl_jax.errors import InputError, RunError, first_cause, raise_machine_fault, why_unwritten
from tcl_jax.files import why_unwritable
from tcl_jax.parallel.processes import gather_texts, raise_on_all_processes

RUN_ADVICE = "Restore it from a copy, or delete it to go on from the step before it."


class CheckpointError(InputError):
    """A checkpoint or model is damaged, foreign or absent; names the directory and what to do."""


class CheckpointWriteError(RunError):
    """A checkpoint or model could not be written, as on a full disk."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """One step read back.

    Attributes:
        state: as `abstract_state`, with jax.Array leaves in the shardings asked for.
        data_state: what this process gave to `save`, through JSON (tuples are lists now); of
            another number of processes what all of them gave, or None, with a warning, if they
            differed.
        config: what was given to `save`, likewise.
    """

    step: int
    state: Any
    data_state: Any
    config: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run; a context manager that waits for the write under way.

    Args:
        directory: where the steps are; made if absent. All processes must see the same one.
        keep_latest: how many of the newest steps to keep, at least 1.
        keep_best: how many of the best steps by `best_metric` to keep besides.
        best_metric: name in `metrics` of the number to rank by, higher is better; None: no ranking.

    Raises:
        CheckpointError: the directory is a file, cannot be made, or cannot be written.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep_latest: int = 2,
        keep_best: int = 1,
        best_metric: str | None = None,
    ) -> None:
        self.directory = Path(directory).absolute()
        if why := why_unwritable(self.directory, utf8=True):
            raise CheckpointError(f"{self.directory}: {why}; choose another directory.")
        silence_tracebacks()
        policies = ocp.training.preservation_policies
        kept: list[Any] = [policies.LatestN(keep_latest)]
        if best_metric is not None:
            best = policies.BestN(
                get_metric_fn=lambda metrics: metrics.get(best_metric, -math.inf),
                n=keep_best,
                keep_checkpoints_without_metrics=False,
            )
            kept.append(best)
        self._checkpointer = ocp.training.Checkpointer(
            self.directory,
            context=_context(),
            preservation_policy=policies.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
        )
        self._best_metric, self._writing = best_metric, 0

    def steps(self) -> list[int]:
        """Complete steps, ascending; waits for the write under way, which may raise its error."""
        self.wait()
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def latest_step(self) -> int | None:
        """The newest complete step, None if there is none."""
        return max(self.steps(), default=None)

    def save(
        self,
        step: int,
        state: Any,
        *,
        data_state: Any,
        config: dict[str, Any],
        metrics: Mapping[str, float] | None = None,
        wait: bool = False,
    ) -> None:
        """Begins to write a step and returns once the arrays may be donated or deleted.

        A write that is still under way is waited for first. A step that is there already is not
        written again, as a step has one state only.

        Args:
            step: its number, at least 0.
            state: tree of jax.Array (no PRNG keys, no empty arrays).
            data_state: JSON-able position of the data iterator of this process.
            config: JSON-able settings of the run.
            metrics: scores, to rank by `best_metric`; what is not finite never ranks.
            wait: return only when the step is complete on disk.

        Raises:
            CheckpointWriteError: this write, or the one before it, failed.
        """
        if step not in self.steps():
            # Process 0 writes all positions: Orbax does not wait for JSON of other processes.
            positions = [json.loads(text) for text in gather_texts(json.dumps(data_state))]
            finite = {name: x for name, x in (metrics or {}).items() if math.isfinite(x)}
            if self._best_metric is not None and self._best_metric not in finite:
                finite = {}  # Orbax would rank a step of other scores as the worst, and keep it
            info = {"config": config, "data_states": positions}
            self._writing = step
            with self._explaining_writes(), jax.transfer_guard("allow"):
                self._checkpointer.save_checkpointables_async(
                    step,
                    {"state": _by_path(state), "info": info},
                    metrics=finite or None,
                    force=True,
                )
        if wait:
            self.wait()

    def wait(self) -> None:
        """Returns once the write under way is complete, or raises its CheckpointWriteError."""
        with self._explaining_writes():
            self._checkpointer.wait()

    @contextlib.contextmanager
    def _explaining_writes(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise CheckpointWriteError(
                f"{self.directory}: step {self._writing} could not be written: "
                f"{why_unwritten(error)} The steps before it are as they were."
            ) from error

    def restore(self, abstract_state: Any) -> Restored:
        """Reads the newest step into the shardings of a tree of jax.ShapeDtypeStruct.

        Raises:
            CheckpointError: there is none; it is damaged; or leaves, shapes or dtypes differ,
                which are then named.
            RunError: it cannot be read for a reason that is not the files'.
        """
        path = step_path(self.directory, self.steps())
        wanted = _by_path(abstract_state)

        def read() -> dict[str, Any]:
            with reading(path):
                if mismatch := _mismatch(wanted, stored_arrays(path, "state")):
                    raise CheckpointError(f"{path}: does not fit the model: {mismatch}.")
                items = ocp.load_checkpointables(path, {"state": wanted, "info": None})
                return {**items["info"], "state": items["state"]}

        saved = raise_on_all_processes(read)
        data_states = saved["data_states"]
        data_state = data_states[jax.process_index() % len(data_states)]
        if (n := len(data_states)) != jax.process_count() and data_states != [data_state] * n:
            data_state, count = None, f"{n} processes, there are {jax.process_count()} now"
            logging.warning("%s: saved by %s: data positions left out.", path, count)
        leaves = [saved["state"][name] for name in wanted]
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)
        return Restored(int(path.name), state, data_state, saved["config"])

    def __enter__(self) -> CheckpointStore:
        """Returns itself."""
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Waits and closes; an error of the body is not hidden behind one of the last write."""
        try:
            with self._explaining_writes():
                self._checkpointer.close()
        except CheckpointWriteError as failure:
            if error is None:
                raise
            logging.error("%s", failure)


def step_path(directory: Path, steps: list[int], step: int | None = None) -> Path:
    """Where a step is, or without one the newest of those that are there.

    Raises:
        CheckpointError: there is none, or not this one.
    """
    if not steps:
        raise CheckpointError(f"{directory}: holds no complete checkpoint.")
    if step is not None and step not in steps:
        raise CheckpointError(f"{directory}: no step {step}; the steps are {steps}.")
    return directory / str(max(steps) if step is None else step)


@contextlib.contextmanager
def reading(path: Path, advice: str = RUN_ADVICE) -> Iterator[None]:
    """For a body in which Orbax reads a checkpoint: tells whose fault an error is.

    Raises:
        CheckpointError: the checkpoint is damaged or a foreign one; `advice` says what to do.
        RunError: it cannot be read for a reason that is not the files'.
    """
    try:
        context = _context()
        # Each process reads by itself: none waits at a barrier of Orbax's for one that fails.
        context.multiprocessing.active_processes = {jax.process_index()}
        context.multiprocessing.primary_host = jax.process_index()
        with context, jax.transfer_guard("allow"):
            yield
    except CheckpointError:
        raise
    except Exception as error:
        raise_machine_fault(f"{path} cannot be read", error)
        why = first_cause(error).rstrip(".")
        raise CheckpointError(
            f"{path}: is damaged or no checkpoint of tcl_jax: {why}. {advice}"
        ) from error


def stored_arrays(path: Path, name: str) -> Mapping[str, Any]:
    """Shapes and dtypes by path of the arrays in a part of a checkpoint, of which none is read."""
    stored: Mapping[str, Any] | None = ocp.checkpointables_metadata(path).metadata.get(name)
    if stored is None:
        raise OSError(f"the description of its arrays in {name!r} is missing or unreadable")
    return stored


def as_numpy(path: Path, name: str, prefix: str = "") -> dict[str, np.ndarray]:
    """What to ask Orbax for, so that arrays come as NumPy's, whatever devices they were on."""
    stored = stored_arrays(path, name)
    return {x: np.empty(y.shape, y.dtype) for x, y in stored.items() if x.startswith(prefix)}


def silence_tracebacks() -> None:
    """Keeps Orbax's threads from logging the traceback of an error that is raised here besides."""
    logging.get_absl_logger().addFilter(_is_no_traceback_of_orbax)


def _is_no_traceback_of_orbax(record: python_logging.LogRecord) -> bool:
    return record.exc_info is None or "orbax" not in record.pathname


def _context() -> ocp.Context:
    context = ocp.Context()
    registry = ocp.handlers.local_registry()
    # By name, since a dict of numbers would otherwise be taken for a tree of scalars.
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="info")
    context.checkpointables.registry = registry
    context.pytree.loading.partial_load = True  # a reader may want but some of the arrays
    return context


def _by_path(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}


def _mismatch(wanted: Mapping[str, Any], stored: Mapping[str, Any]) -> str:
    """Which leaves are missing, left over, or of another shape or dtype; "" if all fit."""

    def describe(leaf: Any) -> str:
        return "absent" if leaf is None else f"{tuple(leaf.shape)} {np.dtype(leaf.dtype)}"

    problems = []
    for name in sorted(wanted.keys() | stored.keys()):
        have, want = describe(stored.get(name)), describe(wanted.get(name))
        if have != want:
            problems.append(f"{name} is {have} in the checkpoint and {want} in the model")
    more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
    return "; ".join(problems[:8]) + more
