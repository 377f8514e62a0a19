"""Starting several processes, and letting them agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tcl_jax.errors import InputError, RunError
from tcl_jax.parallel.clusters import Cluster, find_cluster
from tcl_jax.parallel.mesh import find_devices

Result = TypeVar("Result")


def start_processes(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Joins the other processes of the run and finds its devices; call it before anything else.

    With no argument they are found by what started them: a TPU pod, SLURM, GKE or Open MPI (see
    `clusters.find_cluster`), or the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID (in an indexed Kubernetes job also JOB_COMPLETION_INDEX).

    Args:
        coordinator: `host:port` of process 0.
        num_processes, process_id: how many there are and which this is; 1 process alone means that
            nothing is looked for.

    Raises:
        InputError: if only some of the three are given, or they contradict each other.
        RunError: if the others could not be joined, or JAX has no device.
    """
    # It would take SIGTERM from those who end a run by it (errors.run_command, training.interrupt).
    jax.config.update("jax_enable_preemption_service", False)
    _join(coordinator, num_processes, process_id)
    if find_devices()[0].platform == "cpu" and jax.process_count() > 1:
        _connect()


def _join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    if num_processes == 1 and process_id in (None, 0):
        return
    if coordinator is None and num_processes is None and process_id is None:
        environment = os.environ
        coordinator = environment.get("JAX_COORDINATOR_ADDRESS")
        if coordinator is None:
            _join_cluster(find_cluster(environment))
            return
        num_processes = _number_from(environment, "JAX_NUM_PROCESSES")
        process_id = _number_from(environment, "JAX_PROCESS_ID", "JOB_COMPLETION_INDEX")
        if num_processes == 1:
            return
    if coordinator is None or num_processes is None or process_id is None:
        raise InputError(
            "--coordinator, --num_processes and --process_id (or JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID) belong together: give all three, on every "
            "process, or none"
        )
    if not 0 <= process_id < num_processes:
        raise InputError(
            f"--process_id={process_id} is not one of the {num_processes} process(es); they are "
            f"numbered from 0 to {num_processes - 1}"
        )
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"process {process_id} could not join the {num_processes} processes at {coordinator}: "
            f"{error}"
        ) from error


def _join_cluster(cluster: Cluster | None) -> None:
    if cluster is None:
        return
    try:
        jax.distributed.initialize(cluster_detection_method=cluster.method)
    except Exception as error:  # Each way of asking fails in its own way.
        count = "" if cluster.processes is None else f" of {cluster.processes} processes"
        raise RunError(
            f"this is a job{count} of {cluster.name}, but they could not be joined: {error}. Give "
            "--coordinator, --num_processes and --process_id on every process, or "
            "--num_processes=1 to run alone"
        ) from error


def _connect() -> None:
    """Exchanges something over all devices and over all processes, as no program has yet.

    XLA's CPU devices get connected by their first exchange and wait 30 seconds for each other: now,
    when all processes are at one place, rather than where each has compiled a program in its time.
    """
    mesh = Mesh(np.asarray(jax.devices()), "all")
    parts = NamedSharding(mesh, PartitionSpec("all"))
    ones = jax.make_array_from_callback((mesh.size,), parts, lambda _: np.ones(1, np.float32))
    jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))(ones).block_until_ready()
    any_process(False)


def _number_from(environment: Mapping[str, str], *names: str) -> int | None:
    for name in names:
        text = environment.get(name)
        if text is not None:
            if not text.isdecimal():
                raise InputError(f"{name}={text!r} in the environment is not a number")
            return int(text)
    return None


def any_process(flag: bool) -> bool:
    """Whether the flag is set on at least one process; every process must call it."""
    return flag if jax.process_count() == 1 else bool(_allgather(np.array([flag])).any())


def sum_over_processes(counts: np.ndarray) -> np.ndarray:
    """Sum of an int64 array over all processes, on every process; all must call it."""
    if jax.process_count() == 1:
        return counts
    # Two halves of 32 bits: without x64 JAX would truncate counts of pixels.
    halves = np.stack([counts & 0xFFFFFFFF, counts >> 32]).astype(np.uint32)
    low, high = _allgather(halves).astype(np.int64).sum(axis=0)
    return low + (high << 32)


def gather_texts(text: str) -> list[str]:
    """The text of every process, in their order, on every process; all must call it."""
    if jax.process_count() == 1:
        return [text]
    own = np.frombuffer(text.encode(), np.uint8)
    sizes = _allgather(np.array([own.size], np.int32))[:, 0]
    rows = _allgather(np.pad(own, (0, int(sizes.max()) - own.size)))
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def agree_on_problem(problem: str | None) -> str | None:
    """The problem of this process or of another, so that all take the same way."""
    if jax.process_count() == 1:
        return problem
    bad = _allgather(np.array([problem is not None]))[:, 0]
    if problem is None and bad.any():
        return f"process {int(bad.argmax())} could not read it; its log says why"
    return problem


def agreed(function: Callable[[], Result]) -> Result:
    """What a function returns, unless it fails on some process: then it fails on all.

    So that none waits for a process that has ended. Every process must call it.

    Raises:
        InputError, RunError: what the function raises here; or of the same kind, with the words of
            another process, where it is that one's.
    """
    if jax.process_count() == 1:
        return function()
    result, failure = None, None
    try:
        result = function()
    except (InputError, RunError) as error:
        failure = error
    told = gather_texts("" if failure is None else f"{isinstance(failure, InputError):d}{failure}")
    if failure is not None:
        raise failure
    for process, words in enumerate(told):
        if words:
            kind = InputError if words[0] == "1" else RunError
            raise kind(f"process {process} reports: {words[1:]}")
    return cast(Result, result)


def check_same(what: str, told: str, advice: str) -> None:
    """Refuses to go on where processes were given different things; every process must call it.

    Args:
        what: they see, in words.
        told: by this process; short, as it is part of the message.
        advice: what is to be done about a difference, a sentence.

    Raises:
        InputError: on all processes, with what a process that differs tells, and what process 0.
    """
    texts = gather_texts(told)
    for process, text in enumerate(texts):
        if text != texts[0]:
            raise InputError(
                f"process {process} sees other {what} than process 0: {text} there, {texts[0]} "
                f"here. {advice}"
            )


def _allgather(row: np.ndarray) -> np.ndarray:
    with jax.transfer_guard("allow"):
        return np.asarray(multihost_utils.process_allgather(row))
