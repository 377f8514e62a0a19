"""Finding the other processes of a job, and joining them for real."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from tcl_jax.errors import InputError, RunError
from tcl_jax.parallel.clusters import TPU_DEVICES, Cluster, find_cluster
from tcl_jax.parallel.processes import start_processes
from tests.devices import process_arguments

ROOT = Path(__file__).parent.parent.parent
NAMES = ("SLURM", "OMPI", "JAX_COORDINATOR", "JAX_NUM", "JAX_PROCESS", "TPU", "MEGASCALE", "JOB_")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(NAMES):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}, Cluster("SLURM", "slurm", 4)),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, None),  # the batch script
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, Cluster("Open MPI", "mpi4py", 2)),
        (
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.0.0.1:7"},
            Cluster("Open MPI", "ompi", 2),
        ),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b,c,d"}, Cluster("TPU pod on GKE", "gketpu", 4)),
        (
            {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"},
            Cluster("TPU pod on GKE", "gketpu", 2),
        ),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"}, None),
    ],
)
def test_environment_of_a_job(
    environment: dict[str, str], expected: Cluster | None, tmp_path: Path
) -> None:
    assert find_cluster(environment, tmp_path) == expected


@pytest.mark.parametrize("device", TPU_DEVICES)
def test_machine_with_a_tpu_asks_for_others(device: str, tmp_path: Path) -> None:
    file = tmp_path / device.lstrip("/")
    file.parent.mkdir(parents=True)
    file.touch()
    assert find_cluster({}, tmp_path) == Cluster("Cloud TPU", "gcetpu", None)
    assert find_cluster({"JAX_PLATFORMS": "cpu"}, tmp_path) is None
    assert find_cluster({"TPU_SKIP_MDS_QUERY": "1"}, tmp_path) is None


def joined(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *given, **named: calls.append((given, named))
    )
    return calls


def test_variables_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = joined(monkeypatch)
    start_processes(None, None, None)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:7")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "3")
    with pytest.raises(InputError, match="JAX_PROCESS_ID"):
        start_processes(None, None, None)
    assert calls == []
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    start_processes(None, None, None)
    monkeypatch.setenv("JAX_PROCESS_ID", "2")
    start_processes(None, None, None)
    assert calls == [(("host:7", 3, 1), {}), (("host:7", 3, 2), {})]
    monkeypatch.setenv("JAX_PROCESS_ID", "second")
    with pytest.raises(InputError, match="JAX_PROCESS_ID='second'"):
        start_processes(None, None, None)


def test_flags_go_before_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = joined(monkeypatch)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    start_processes("host:7", 2, 0)
    start_processes(None, 1, None)
    start_processes(None, None, None)
    assert calls == [(("host:7", 2, 0), {}), ((), {"cluster_detection_method": "slurm"})]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("localhost:1", None, None), "belong together"),
        (("localhost:1", 2, 2), "--process_id=2 is not one of the 2"),
    ],
)
def test_flags_that_contradict_each_other(given: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        start_processes(*given)


def test_failure_names_the_cluster_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")  # no mpi4py here
    with pytest.raises(RunError, match=r"job of 2 processes of Open MPI.*--num_processes=1"):
        start_processes(None, None, None)


JOIN = """
import jax, numpy as np
from tcl_jax.errors import InputError, run_command
from tcl_jax.parallel.mesh import data_mesh, gather_parameters, put_parameters
from tcl_jax.parallel.processes import gather_texts, raise_on_all_processes, start_processes
start_processes(None, None, None)
mesh = data_mesh()
full = {"kernel": np.arange(128 * 256, dtype=np.float32).reshape(128, 256), "gate": np.float32(1)}
state = put_parameters(full, mesh, sharded=True)
assert state["kernel"].addressable_shards[0].data.shape == (128, 128)
whole = gather_parameters(state, mesh)
np.testing.assert_array_equal(whole["kernel"].addressable_shards[0].data, full["kernel"])
print(gather_texts(f"{jax.process_index()} of {jax.process_count()}"))

def one_fails():
    if jax.process_index() == 1:
        raise InputError("no such file")

run_command(lambda: raise_on_all_processes(one_fails))
"""


@pytest.mark.slow
def test_processes_of_slurm_share_parameters_and_fail_together() -> None:
    port = int(process_arguments(2)[0][0])
    shared = {
        "JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_PORT": str(port), "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1", "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
    }  # fmt: skip
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", JOIN],
            cwd=ROOT,
            env=os.environ | shared | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    outputs = [worker.communicate(timeout=200) for worker in workers]
    assert [worker.returncode for worker in workers] == [2] * 2, outputs
    assert "error: process 1 reports: no such file" in outputs[0][1]
    assert "error: no such file" in outputs[1][1]
    expected = str([f"{i} of 2" for i in range(2)])
    assert [out.splitlines()[-1] for out, _ in outputs] == [expected] * 2
