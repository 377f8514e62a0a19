"""Whether this process is one of several that a cluster started, by the environment it set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")
"""Where a machine shows its TPU."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What started this process.

    Attributes:
        name: as its users call it.
        method: `cluster_detection_method` of `jax.distributed.initialize`.
        processes: how many it started; None where only its servers know.
    """

    name: str
    method: str
    processes: int | None


def find_cluster(environment: Mapping[str, str], root: Path = Path("/")) -> Cluster | None:
    """The cluster whose process this is, if it has others or may have.

    A job of one process is none, nor is what runs in a SLURM batch script outside of `srun`.

    Args:
        root: of the file system, where `TPU_DEVICES` are looked for.
    """
    steps = min(_number(environment, "SLURM_NTASKS"), _number(environment, "SLURM_STEP_NUM_TASKS"))
    if steps > 1:
        return Cluster("SLURM", "slurm", steps)
    ranks = _number(environment, "OMPI_COMM_WORLD_SIZE")
    if ranks > 1:
        # The environment of Open MPI 5 lacks the address of process 0; MPI itself has it.
        method = "ompi" if "OMPI_MCA_orte_hnp_uri" in environment else "mpi4py"
        return Cluster("Open MPI", method, ranks)
    if environment.get("JAX_PLATFORMS", "tpu").split(",")[0] not in ("", "tpu"):
        return None
    hosts = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES", ""))
    slices = _number(environment, "MEGASCALE_NUM_SLICES")
    if "," in hosts or (hosts and slices > 1):
        return Cluster("TPU pod on GKE", "gketpu", (hosts.count(",") + 1) * max(slices, 1))
    if hosts or environment.get("TPU_SKIP_MDS_QUERY"):
        return None
    if any((root / device.lstrip("/")).exists() for device in TPU_DEVICES):
        return Cluster("Cloud TPU", "gcetpu", None)
    return None


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    return int(text) if text.isdecimal() else 0
