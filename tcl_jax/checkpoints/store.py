"""Checkpoints: asynchronous, atomic, checked on the way back in.

A store is one directory with one sub-directory per step, written by Orbax. A step counts only once
its commit file is there: a process killed while writing leaves a directory without it, and a step
is deleted by removing that file first, so that no half-present step is ever listed. After the
commit the size and CRC-32 of every file are written next to them; zarr chunks carry no checksum
of their own, and without this a flipped bit would come back as a wrong weight.

The state is stored as a flat dict from the path of a leaf (`params/visual/proj`) to the array.
Each method that reads or writes a step is collective: all processes call it, in the same order.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import jax
from absl import logging
from orbax.checkpoint import v1 as ocp

from tcl_jax.checkpoints.checksums import find_damage, has_checksums, write_checksums
from tcl_jax.checkpoints.leaves import (
    check_json,
    check_storable,
    described_state,
    find_mismatch,
    name_leaves,
    place_leaves,
)
from tcl_jax.errors import RunError, first_cause, why_unwritten
from tcl_jax.files import write_json
from tcl_jax.parallel.processes import agree_on_problem, gather_texts

_COMMIT = "commit_success.txt"
_METRICS = "metrics.json"
_STEP_NAME = re.compile(r"0|[1-9][0-9]*")
_T = TypeVar("_T")
# Each thread of Orbax logs the traceback of an error that is raised here besides.
logging.get_absl_logger().addFilter(lambda record: "_SignalingThread" not in str(record.msg))


class CheckpointError(ValueError):
    """A store or a step of it cannot be opened, read or written; names the directory and why."""


class CheckpointWriteError(CheckpointError, RunError):
    """A step or a model could not be written, as on a full disk; names the directory and why."""


class CheckpointReadError(CheckpointError, RunError):
    """Intact files cannot be read, for lack of memory, say; names the directory and why."""


class CheckpointMismatchError(CheckpointError):
    """A readable step holds other leaves, shapes or dtypes than asked for; names each of them."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """One step read back.

    Attributes:
      step: the step it was saved at.
      state: as `abstract_state`, with jax.Array leaves in the shardings asked for.
      data_state: what this process gave to `save`, through JSON (tuples are lists now); of another
        number of processes what all of them gave, or None, with a warning, if they differed.
      config: what was given to `save`, likewise.
    """

    step: int
    state: Any
    data_state: Any
    config: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run; a context manager that waits for the write under way.

    Args:
      directory: where the steps are; made if absent, unless `read_only`. All processes must see the
        same one.
      keep_latest: how many of the newest steps to keep, at least 1.
      keep_best: how many of the best steps by `best_metric` to keep besides.
      best_metric: name in `metrics` of the number to rank by, higher is better; None: no ranking.
      read_only: only for reading, by each process on its own: makes no directory, and `save` is
        refused.

    Raises:
      CheckpointError: the directory is a file, cannot be made, or cannot be written.
      ValueError: `keep_latest` below 1 or `keep_best` below 0.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep_latest: int = 2,
        keep_best: int = 1,
        best_metric: str | None = None,
        read_only: bool = False,
    ) -> None:
        if keep_latest < 1 or keep_best < 0:
            raise ValueError(
                f"keep_latest={keep_latest}, keep_best={keep_best}: keep_latest must be at least 1 "
                "(the step to resume from) and keep_best at least 0."
            )
        self.directory = Path(directory).absolute()
        self._keep_latest, self._keep_best = keep_latest, keep_best
        self._best_metric, self._read_only = best_metric, read_only
        self._open_directory()
        registry = ocp.handlers.local_registry()
        # By name, since a dict of numbers would otherwise be taken for a tree of scalars.
        registry.add(ocp.handlers.JsonHandler, checkpointable_name="info")
        self._context = ocp.Context()
        self._context.checkpointables.registry = registry
        self._context.pytree.loading.partial_load = True  # `restore` compares the leaves itself
        self._steps = set(self._scan())
        self._damaged: set[int] = set()
        self._sound: set[Path] = set()
        self._metrics = self._read_metrics()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: tuple[int, set[int], concurrent.futures.Future[None]] | None = None

    # ----------------------------------------------------------------------------- what there is

    def steps(self) -> list[int]:
        """Complete steps, ascending; waits for the write under way, which may raise its error."""
        self.wait()
        return sorted(self._steps - self._damaged)

    def latest_step(self) -> int | None:
        """The newest complete step, None if there is none."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step with the highest `best_metric` (the newer of equals), None if none has it."""
        return next(iter(self._ranked(self.steps())), None)

    # ------------------------------------------------------------------------------------- saving

    def save(
        self,
        step: int,
        state: Any,
        *,
        data_state: Any,
        config: dict[str, Any],
        metrics: dict[str, float] | None = None,
        wait: bool = False,
    ) -> bool:
        """Starts to write a step; returns once the arrays are on the host.

        The arrays of `state` may be donated or deleted as soon as this returns. A write still
        under way is waited for first. Steps that are no longer to be kept go once the new one is
        complete. A step that is there already is not written again, as a step has one state only;
        `metrics` given now are recorded for it, so that one may save, evaluate and save again.

        Args:
          step: number of the step, at least 0.
          state: tree of jax.Array (no PRNG keys, no empty arrays).
          data_state: JSON-able position of the data iterator of this process.
          config: JSON-able settings of the run.
          metrics: scores of this step, to rank by `best_metric`; what is not finite never ranks.
          wait: return only when the step is complete on disk.

        Returns:
          True if a write was started, False if the step was there already.

        Raises:
          CheckpointWriteError: this write, or the one before it, failed.
          CheckpointError: the store is read-only.
          ValueError: a leaf, `data_state` or `config` cannot be stored; it is named.
        """
        if self._read_only:
            raise CheckpointError(f"{self.directory}: opened with read_only=True; cannot save.")
        if step < 0:
            raise ValueError(f"step {step}: must be at least 0.")
        self.wait()
        if metrics:
            self._record_metrics(step, metrics)
        if step in self._steps and step not in self._damaged:
            return False
        leaves = name_leaves(state)
        check_storable(leaves)
        # Process 0 writes all positions: Orbax does not wait for JSON of other processes.
        positions = gather_texts(check_json("data_state", data_state))
        info = {
            "config": json.loads(check_json("config", config)),
            "data_states": [json.loads(position) for position in positions],
        }
        if step in self._damaged:
            self._uncommit([step])
        try:
            with self._context, jax.transfer_guard("allow"):
                response = ocp.save_checkpointables_async(
                    self._path(step), {"state": leaves, "info": info}, overwrite=True
                )
        except Exception as error:
            raise self._write_error(step, error) from error
        kept = self._kept((self._steps - self._damaged) | {step})
        self._pending = step, kept, self._thread.submit(self._finish, step, response, kept)
        if wait:
            self.wait()
        return True

    def wait(self) -> None:
        """Returns once the write under way is complete, or raises its CheckpointWriteError."""
        if self._pending is None:
            return
        step, kept, future = self._pending
        try:
            future.result()
        except Exception as error:
            self._pending = None
            self._steps.discard(step)
            raise self._write_error(step, error) from error
        self._pending, self._steps, self._damaged = None, kept, set()

    def close(self) -> None:
        """Waits for the write under way and ends the thread; the store is not used afterwards."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def __enter__(self) -> CheckpointStore:
        """Returns itself."""
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Closes; an error of the body is not hidden behind one of the last write."""
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            logging.error("%s", failure)

    # ------------------------------------------------------------------------------------ reading

    def restore(self, abstract_state: Any, step: int | None = None) -> Restored:
        """Reads a step into the given shardings.

        Without `step` the newest is read; if it is damaged, the one before it, with a warning
        that names the damaged one, which is no longer kept once another step is saved.

        Args:
          abstract_state: tree of jax.ShapeDtypeStruct with shardings (a leaf without one goes to
            the first local device, if there is one process only).
          step: the step to read; damage is then an error.

        Returns:
          The step, its state, and what was saved with it.

        Raises:
          CheckpointMismatchError: leaves, shapes or dtypes differ; names them, with both shapes.
          CheckpointError: no such step, or nothing readable; names the directory and the reason.
          CheckpointReadError: a step with sound files cannot be read, no reason to drop it.
        """
        wanted = place_leaves(name_leaves(abstract_state))

        def read(path: Path) -> tuple[dict[str, jax.Array], dict[str, Any]]:
            if mismatch := find_mismatch(wanted, described_state(path)):
                raise CheckpointMismatchError(f"{path}: does not fit the model: {mismatch}.")
            items = ocp.load_checkpointables(path, {"state": wanted, "info": None})
            return items["state"], items["info"]

        found, (leaves, info) = self.first_readable(step, read)
        data_states = info["data_states"]
        data_state = data_states[jax.process_index() % len(data_states)]
        if (n := len(data_states)) != jax.process_count() and data_states != [data_state] * n:
            data_state, count = None, f"{n} processes, there are {jax.process_count()} now"
            logging.warning("%s: saved by %s: data positions left out.", self._path(found), count)
        state = jax.tree.unflatten(
            jax.tree.structure(abstract_state), [leaves[name] for name in wanted]
        )
        return Restored(found, state, data_state, info["config"])

    def first_readable(self, step: int | None, read: Callable[[Path], _T]) -> tuple[int, _T]:
        """What `read` makes of `step`, or of the newest sound step; errors as in `restore`."""
        if not (there := self.steps()):
            raise CheckpointError(f"{self.directory}: holds no complete checkpoint.")
        if step is not None and step not in there:
            raise CheckpointError(f"{self.directory}: no step {step}; the steps are {there}.")
        reasons = []
        for candidate in reversed(there) if step is None else [step]:
            path = self._path(candidate)
            problem, fault = self._find_damage(path)
            if fault := self._agreed_problem(fault):
                raise CheckpointReadError(f"{path}: cannot be read: {fault}.")
            problem = self._agreed_problem(problem)
            if problem is None:
                self._sound.add(path)
                try:
                    with self._context, jax.transfer_guard("allow"):
                        result = read(path)
                except CheckpointMismatchError:
                    raise
                except Exception as error:
                    problem = first_cause(error)
                problem = self._agreed_problem(problem)
                if problem is None:
                    return candidate, result
                if has_checksums(path):
                    raise CheckpointReadError(f"{path}: is intact but cannot be read: {problem}.")
            self._damaged.add(candidate)
            reasons.append(f"step {candidate}: {problem}")
            if step is None:
                logging.warning("%s is damaged and left out: %s", path, problem)
        raise CheckpointError(
            f"{self.directory}: no readable checkpoint ({'; '.join(reasons)}). Restore the "
            "directory from a copy, or start over in an empty one."
        )

    # ---------------------------------------------------------------------------- the directory

    def _find_damage(self, path: Path) -> tuple[str | None, str | None]:
        """What is wrong with a step, and why that could not be told."""
        if path in self._sound:
            return None, None
        shares = 1 if self._read_only else jax.process_count()
        try:
            return find_damage(path, share=jax.process_index() % shares, shares=shares), None
        except OSError as error:
            return None, first_cause(error)

    def _agreed_problem(self, problem: str | None) -> str | None:
        return problem if self._read_only else agree_on_problem(problem)

    def _path(self, step: int) -> Path:
        return self.directory / str(step)

    def _open_directory(self) -> None:
        where = self.directory
        try:
            if where.exists() and not where.is_dir():
                raise CheckpointError(f"{where}: is a file; a directory is needed.")
            if self._read_only:
                return
            where.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{where}: cannot be opened as a directory: {error}.") from error
        if not os.access(where, os.W_OK | os.X_OK):
            raise CheckpointError(f"{where}: is not writable; choose another directory.")

    def _scan(self) -> list[int]:
        try:
            names = [p.name for p in self.directory.iterdir()] if self.directory.exists() else []
        except OSError as error:
            raise CheckpointError(f"{self.directory}: cannot be listed: {error}.") from error
        steps = [int(name) for name in names if _STEP_NAME.fullmatch(name)]
        return [step for step in steps if (self._path(step) / _COMMIT).exists()]

    def _write_error(self, step: int, error: Exception) -> CheckpointWriteError:
        told = f"{self.directory}: step {step} could not be written: {why_unwritten(error)}"
        return CheckpointWriteError(f"{told} The steps before it are as they were.")

    def _uncommit(self, steps: Iterable[int]) -> None:
        if jax.process_index() == 0:
            for step in steps:
                (self._path(step) / _COMMIT).unlink(missing_ok=True)

    def _finish(self, step: int, response: ocp.AsyncResponse[Any], kept: set[int]) -> None:
        response.result()
        if jax.process_index() != 0:
            return
        try:
            write_checksums(self._path(step))
            self._uncommit(self._steps - kept)
            for child in self.directory.iterdir():
                # No write is under way now, so whatever is not committed is of a killed process.
                half = _STEP_NAME.fullmatch(child.name) and not (child / _COMMIT).exists()
                if half or ".orbax-checkpoint-tmp" in child.name or child.name.endswith(".part"):
                    shutil.rmtree(child) if child.is_dir() else child.unlink()
        except OSError as error:
            logging.warning("%s: could not be tidied: %s", self.directory, error)

    # ----------------------------------------------------------------------------------- metrics

    def _ranked(self, steps: Iterable[int]) -> list[int]:
        if self._best_metric is None:
            return []
        metrics = {s: self._metrics.get(s, {}) for s in steps}
        score = {s: m[self._best_metric] for s, m in metrics.items() if self._best_metric in m}
        return sorted(score, key=lambda s: (score[s], s), reverse=True)

    def _kept(self, steps: set[int]) -> set[int]:
        latest = sorted(steps)[-self._keep_latest :]
        return {*latest, *self._ranked(steps)[: self._keep_best]}

    def _record_metrics(self, step: int, metrics: dict[str, float]) -> None:
        finite = {k: float(v) for k, v in metrics.items() if math.isfinite(v)}
        known = {**self._metrics.get(step, {}), **finite}
        self._metrics = {s: m for s, m in self._metrics.items() if s in self._steps}
        self._metrics[step] = known
        if jax.process_index() == 0:
            try:
                write_json(self.directory / _METRICS, self._metrics)
            except OSError as error:
                raise self._write_error(step, error) from error

    def _read_metrics(self) -> dict[int, dict[str, float]]:
        path = self.directory / _METRICS
        try:
            return {int(s): m for s, m in json.loads(path.read_text()).items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as error:
            logging.warning("%s: unreadable, so no step counts as the best: %s", path, error)
            return {}
