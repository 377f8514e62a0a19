"""One global batch gives one answer, on any number of devices and processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import tiny_config

ROOT = Path(__file__).parent.parent.parent


def start(
    arguments: list[str], devices: int, module: str = "tests.parallel.worker"
) -> subprocess.Popen[str]:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        stderr=subprocess.PIPE,
        text=True,
    )


def process_arguments(processes: int) -> list[list[str]]:
    """Port, number and index of each process; nothing for a single one."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    return [[port, str(processes), str(i)] if processes > 1 else [] for i in range(processes)]


def wait(workers: list[subprocess.Popen[str]]) -> None:
    errors = [worker.communicate(timeout=300)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * len(workers), errors


def run(
    folder: Path, *, devices: int = 1, processes: int = 1, parts: int = 1
) -> dict[str, np.ndarray]:
    out, weights = folder / f"{devices}x{processes}.npz", str(folder / "clip.safetensors")
    workers = [
        start([weights, str(out), str(parts), *arguments], devices)
        for arguments in process_arguments(processes)
    ]
    wait(workers)
    with np.load(out) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    tiny_config(folder)
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, np.ndarray]:
    return run(folder)


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    """Loss and gradient within 1e-5; what follows from them as far as Adam lets it.

    Adam turns a rounding difference in a tiny gradient into a part of a step.
    """
    assert ours.keys() == theirs.keys()
    gradient = [name for name in theirs if name.startswith("gradient/")]
    difference = np.sqrt(sum(np.square(ours[n] - theirs[n]).sum() for n in gradient))
    assert difference <= 1e-5 * np.sqrt(sum(np.square(theirs[n]).sum() for n in gradient))
    for name, expected in theirs.items():
        if name.startswith("step"):
            tolerance = 1e-5 if name.startswith("step0/") else 1e-3
            np.testing.assert_allclose(ours[name], expected, rtol=tolerance, err_msg=name)
        elif name.startswith("final/"):
            np.testing.assert_allclose(ours[name], expected, atol=2e-4, err_msg=name)


@pytest.mark.slow
def test_four_devices_with_split_parameters_and_two_parts_of_a_batch_equal_one(
    folder: Path, alone: dict[str, np.ndarray]
) -> None:
    assert_same(run(folder, devices=4, parts=2), alone)


@pytest.mark.slow
def test_two_processes_equal_one(folder: Path, alone: dict[str, np.ndarray]) -> None:
    two = run(folder, processes=2)
    np.testing.assert_array_equal(two.pop("counts"), [2**41 + 1, 2])
    np.testing.assert_array_equal(alone["counts"], [2**40, 1])
    assert_same(two, {k: v for k, v in alone.items() if k != "counts"})


@pytest.mark.slow
def test_evaluation_counts_the_same_on_eight_devices_and_two_processes(tmp_path: Path) -> None:
    found = {}
    for devices, processes in ((1, 1), (8, 1), (2, 2)):
        name = f"{devices}x{processes}"
        arguments = [str(tmp_path / name), str(tmp_path / f"{name}_counts")]
        module = "tests.parallel.evaluation_worker"
        rest = process_arguments(processes)
        wait([start([*arguments, *more], devices, module) for more in rest])
        for index in range(processes):
            with np.load(f"{arguments[1]}.{index}.npz") as archive:
                found[name, index] = dict(archive)
            assert found[name, index].pop("devices") == devices * processes
        assert (tmp_path / name / "results.json").is_file()
    expected = found["1x1", 0]
    assert len(expected) == 4
    for counts in found.values():
        assert counts.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(counts[key], value, err_msg=key)
