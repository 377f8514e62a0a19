"""Starting several processes, and letting them agree."""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils

from tcl_jax.errors import InputError


def start_processes(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Joins the other processes of the run; call it before anything else touches a device.

    Args:
        coordinator: `host:port` of process 0, or None for a run of one process.
        num_processes, process_id: how many there are and which this is.

    Raises:
        InputError: if only some of the three are given, or they contradict each other.
    """
    given = [coordinator is not None, num_processes is not None, process_id is not None]
    if not any(given):
        return
    if not all(given):
        raise InputError(
            "--coordinator, --num_processes and --process_id belong together: give all three, on "
            "every process, or none"
        )
    assert num_processes is not None and process_id is not None
    if not 0 <= process_id < num_processes:
        raise InputError(
            f"--process_id={process_id} is not one of the {num_processes} process(es); they are "
            f"numbered from 0 to {num_processes - 1}"
        )
    if jax.config.read("jax_platforms") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, num_processes, process_id)


def any_process(flag: bool) -> bool:
    """Whether the flag is set on at least one process; every process must call it."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def sum_over_processes(counts: np.ndarray) -> np.ndarray:
    """Sum of an integer array over all processes, on every process; all must call it."""
    if jax.process_count() == 1:
        return counts
    # Two halves of 32 bits: without x64 JAX would truncate counts of pixels.
    halves = np.stack([counts & 0xFFFFFFFF, counts >> 32]).astype(np.uint32)
    low, high = np.asarray(multihost_utils.process_allgather(halves)).astype(np.int64).sum(0)
    return low + (high << 32)
