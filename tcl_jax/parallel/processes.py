"""Starting the processes of a run, and what they exchange on the host."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from typing import TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from tcl_jax.errors import InputError, RunError
from tcl_jax.parallel.clusters import Cluster, find_cluster
from tcl_jax.parallel.mesh import batch_sharded, data_mesh, find_devices, replicated

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
    try:
        devices = find_devices()
    except RunError:
        if jax.distributed.is_initialized():
            check_host_name()
        raise
    if devices[0].platform == "cpu" and jax.process_count() > 1:
        _connect()


def check_host_name() -> None:
    """Raises a RunError if this machine's name has no address, which XLA's CPU devices want."""
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        raise RunError(
            f"this machine's host name {name} does not resolve ({error.strerror}), so that its "
            "processes cannot connect: add it to /etc/hosts, behind the machine's address, or "
            "behind 127.0.0.1 if all processes are on this machine"
        ) from error


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
    except Exception as error:  # which one depends on the cluster
        count = "" if cluster.processes is None else f" of {cluster.processes} processes"
        raise RunError(
            f"this is a job{count} of {cluster.name}, but they could not be joined: {error}. Give "
            "--coordinator, --num_processes and --process_id on every process, or "
            "--num_processes=1 to run alone"
        ) from error


def _connect() -> None:
    """Runs a first collective over all devices, and one over all processes.

    The first collective connects XLA's CPU devices, which wait at most 30 seconds for each other.
    Here all processes come at once; after each has compiled a program of its own, they might not.
    """
    mesh = data_mesh()
    ones = jax.make_array_from_callback(
        (mesh.size,), batch_sharded(mesh), lambda _: np.ones(1, np.float32)
    )
    jax.jit(jnp.sum, out_shardings=replicated(mesh))(ones).block_until_ready()
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


def max_over_processes(values: np.ndarray) -> np.ndarray:
    """Largest of float32 values over all processes, on every process; all must call it."""
    return values if jax.process_count() == 1 else _allgather(values).max(axis=0)


def gather_texts(text: str) -> list[str]:
    """The text of every process, in their order, on every process; all must call it."""
    if jax.process_count() == 1:
        return [text]
    own = np.frombuffer(text.encode(errors="surrogatepass"), np.uint8)
    sizes = _allgather(np.array([own.size], np.int32))[:, 0]
    rows = _allgather(np.pad(own, (0, int(sizes.max()) - own.size)))
    return [
        row[:size].tobytes().decode(errors="surrogatepass")
        for row, size in zip(rows, sizes, strict=True)
    ]


def raise_on_all_processes(function: Callable[[], Result]) -> Result:
    """What a function returns, unless it raises on some process: then it raises on all.

    So that none waits for a process that has ended. Every process must call it.

    Raises:
        Whatever the function raises here; else InputError or RunError with the message of another
            process.
    """
    if jax.process_count() == 1:
        return function()
    result, failure = None, cast(Exception | None, None)
    try:
        result = function()
    except Exception as error:
        failure = error
    message = "" if failure is None else f"{isinstance(failure, InputError):d}{failure}"
    messages = gather_texts(message)
    if failure is not None:
        raise failure
    for process, message in enumerate(messages):
        if message:
            kind = InputError if message[0] == "1" else RunError
            raise kind(f"process {process} reports: {message[1:]}")
    return cast(Result, result)


def check_same(what: str, value: str, advice: str) -> None:
    """Raises on all processes if a value differs between them; every process must call it.

    Args:
        what: the value is, in words.
        value: of this process; short, as it is part of the message.
        advice: what is to be done about a difference, a sentence.

    Raises:
        InputError: with the value of a process that differs, and that of process 0.
    """
    texts = gather_texts(value)
    for process, text in enumerate(texts):
        if text != texts[0]:
            raise InputError(
                f"process {process} sees other {what} than process 0: {text} there, {texts[0]} "
                f"here. {advice}"
            )


def _allgather(row: np.ndarray) -> np.ndarray:
    with jax.transfer_guard("allow"):
        return np.asarray(multihost_utils.process_allgather(row))
