"""launch/gke_jobset.yaml, launch/Dockerfile and what they start."""

from __future__ import annotations

import fnmatch
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tcl_jax import main
from tcl_jax.config_flags import read_config
from tcl_jax.parallel.clusters import Cluster, find_cluster

ROOT = Path(__file__).parent.parent.parent
JOBSETS: dict[str, Any] = {
    document["metadata"]["labels"]["accelerator"]: document
    for document in yaml.safe_load_all((ROOT / "launch" / "gke_jobset.yaml").read_text())
}
DOCKERFILE = (ROOT / "launch" / "Dockerfile").read_text()
EVENTS = re.findall(r"^([A-Z]+) (.*)", DOCKERFILE.replace("\\\n", " "), re.MULTILINE)


def job(accelerator: str) -> dict[str, Any]:
    (replicated,) = JOBSETS[accelerator]["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1
    spec: dict[str, Any] = replicated["template"]["spec"]
    return spec


def container(accelerator: str) -> dict[str, Any]:
    (only,) = job(accelerator)["template"]["spec"]["containers"]
    found: dict[str, Any] = only
    return found


@pytest.mark.parametrize("accelerator", ["tpu", "gpu"])
def test_all_pods_run_at_once_and_start_again_together(accelerator: str) -> None:
    spec, jobset = job(accelerator), JOBSETS[accelerator]
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert spec["completions"] == spec["parallelism"] and spec["backoffLimit"] == 0
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    evicted, bad_input = spec["podFailurePolicy"]["rules"]
    assert evicted["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert bad_input["onExitCodes"]["values"] == [2]
    # What Kubernetes says of a job, by the rule that matched.
    policy = {
        next(
            i
            for i in (0, 1)
            for pattern in rule["onJobFailureMessagePatterns"]
            if re.search(pattern, f"Pod default/{i} matching FailJob rule at index {i}")
        ): rule["action"]
        for rule in jobset["spec"]["failurePolicy"]["rules"]
        if rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    }
    assert policy == {0: "RestartJobSetAndIgnoreMaxRestarts", 1: "FailJobSet"}


def test_hosts_have_the_chips_of_the_topology() -> None:
    spec, resources = job("tpu"), container("tpu")["resources"]
    topology = spec["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = math.prod(int(side) for side in topology.split("x"))
    assert chips == spec["completions"] * resources["limits"]["google.com/tpu"]
    assert resources["limits"] == resources["requests"]


@pytest.mark.parametrize("accelerator", ["tpu", "gpu"])
def test_command_and_its_flags_exist(accelerator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command = container(accelerator)["command"]
    assert (ROOT / command[1]).is_file() and command[2:] == ["python", "-m", main.__name__]
    config, workdir, *overrides = container(accelerator)["args"]
    read = read_config(config.removeprefix("--config="), overrides, "main")
    assert read is not None and read.data.shards
    mount = container(accelerator)["volumeMounts"][0]["mountPath"]
    assert workdir.startswith(f"--workdir={mount}/")
    assert all(path.startswith(mount) for path in (*read.data.shards, read.eval.data))
    claims = {volume["name"]: volume for volume in job(accelerator)["template"]["spec"]["volumes"]}
    mounted = {mount["name"] for mount in container(accelerator)["volumeMounts"]}
    assert mounted == claims.keys()


def test_hosts_of_a_tpu_find_each_other(tmp_path: Path) -> None:
    """By the variables that GKE sets; none of them is given."""
    hosts = job("tpu")["completions"]
    names = ",".join(f"tcl-tpu-host-0-{i}.tcl-tpu" for i in range(hosts))
    assert "env" not in container("tpu")
    cluster = find_cluster({"TPU_WORKER_HOSTNAMES": names, "TPU_WORKER_ID": "0"}, tmp_path)
    assert cluster == Cluster("TPU pod on GKE", "gketpu", hosts)


def test_gpu_nodes_are_told_where_the_first_is() -> None:
    """With Kubernetes' JOB_COMPLETION_INDEX all that `start_processes` asks for."""
    environment = {entry["name"]: entry["value"] for entry in container("gpu")["env"]}
    (replicated,) = JOBSETS["gpu"]["spec"]["replicatedJobs"]
    name = JOBSETS["gpu"]["metadata"]["name"]
    port = container("gpu")["ports"][0]["containerPort"]
    assert environment == {
        "JAX_COORDINATOR_ADDRESS": f"{name}-{replicated['name']}-0-0.{name}:{port}",
        "JAX_NUM_PROCESSES": str(job("gpu")["completions"]),
    }
    source = (ROOT / "tcl_jax" / "parallel" / "processes.py").read_text()
    assert all(f'"{variable}"' in source for variable in (*environment, "JOB_COMPLETION_INDEX"))


UNTIL_DONE = ["bash", str(ROOT / "launch" / "until_done.sh"), "bash", "-c"]


@pytest.mark.parametrize("code", [0, 1, 2])
def test_undisturbed_the_exit_code_is_the_command_s(code: int) -> None:
    assert subprocess.run([*UNTIL_DONE, f"exit {code}"]).returncode == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_saved_and_ended_is_not_done(number: signal.Signals) -> None:
    wait = "echo ready; for ((i = 0; i < 1500; i++)); do sleep 0.02; done"
    body = f"trap 'sleep 0.3; echo saved; exit 0' TERM; {wait}"
    process = subprocess.Popen([*UNTIL_DONE, body], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    process.send_signal(number)  # a second does not hurry it
    assert process.communicate()[0] == "saved\n"
    assert process.returncode == 143


def arguments_of(instruction: str) -> list[str]:
    return [arguments for name, arguments in EVENTS if name == instruction]


def test_image_has_a_python_that_is_supported() -> None:
    (base,) = arguments_of("FROM")
    version = re.fullmatch(r"python:3\.(\d+)-slim", base)
    bounds = re.search(r'python_requires=">=3\.(\d+),<3\.(\d+)"', (ROOT / "setup.py").read_text())
    assert version and bounds and int(bounds[1]) <= int(version[1]) < int(bounds[2])


def test_what_is_copied_is_there_and_not_ignored() -> None:
    sources = [source for line in arguments_of("COPY") for source in line.split()[:-1]]
    assert {"configs", "launch", "tcl_jax", "setup.py"} <= set(sources)
    assert all((ROOT / source).exists() for source in sources)
    rules = (ROOT / ".dockerignore").read_text().split("\n")
    kept = {rule[1:] for rule in rules if rule.startswith("!")}
    assert "*" in rules and kept == set(sources)
    assert any(fnmatch.fnmatch("tcl_jax/__pycache__", rule) for rule in rules)


def test_entry_point_runs_a_command() -> None:
    entry, default = (json.loads(arguments_of(name)[0]) for name in ("ENTRYPOINT", "CMD"))
    command = [sys.executable, *entry[1:], *default]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert entry[0] == "python" and "--" in done.stdout and done.stderr == ""
