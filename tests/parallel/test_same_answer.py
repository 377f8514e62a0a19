"""One global batch gives one answer, on any number of devices and processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.data.shards import write_photos
from tests.devices import process_arguments
from tests.parallel.worker import compute
from tests.tiny import tiny_config

ROOT = Path(__file__).parent.parent.parent
Found = dict[str, np.ndarray]


def start(weights: str, folder: Path) -> list[subprocess.Popen[str]]:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    command = [sys.executable, "-m", "tests.parallel.worker", weights, str(folder)]
    return [
        subprocess.Popen(
            [*command, *arguments],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
            stderr=subprocess.PIPE,
            text=True,
        )
        for arguments in process_arguments(processes=2)
    ]


def read(folder: Path, name: str, index: int = 0) -> Found:
    with np.load(folder / f"{name}.{index}.npz") as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one device found in `alone`, and two processes of four in `eight`.

    The eight split the parameters among them and take the batch in two parts.
    """
    root = tmp_path_factory.mktemp("parallel")
    weights = tiny_config(root).model.weights
    write_photos(root / "held_out.tar", 21)
    workers = start(weights, root / "eight")
    compute(weights, root / "alone", parts=1)
    errors = [worker.communicate(timeout=500)[1] for worker in workers]
    assert not any(worker.returncode for worker in workers), errors
    return root


@pytest.mark.slow
def test_training_is_the_same(root: Path) -> None:
    """Loss and gradient within 1e-5; what follows from them as far as Adam lets it.

    Adam turns a rounding difference in a tiny gradient into a part of a step.
    """
    ours, theirs = read(root / "eight", "training"), read(root / "alone", "training")
    np.testing.assert_array_equal(theirs.pop("counts"), [2**40, 1])
    np.testing.assert_array_equal(ours.pop("counts"), [2**41 + 1, 2])
    assert ours.keys() == theirs.keys()
    gradient = [name for name in theirs if name.startswith("gradient/")]
    difference = np.sqrt(sum(np.square(ours[n] - theirs[n]).sum() for n in gradient))
    assert difference <= 1e-5 * np.sqrt(sum(np.square(theirs[n]).sum() for n in gradient))
    for name, value in theirs.items():
        if name.startswith("step"):
            tolerance = 1e-5 if name.startswith("step0/") else 1e-3
            np.testing.assert_allclose(ours[name], value, rtol=tolerance, err_msg=name)
        elif name.startswith("final/"):
            np.testing.assert_allclose(ours[name], value, atol=2e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_evaluation_counts_the_same(root: Path, index: int) -> None:
    ours = read(root / "eight", "evaluation", index)
    theirs = read(root / "alone", "evaluation")
    assert ours.keys() == theirs.keys() and len(theirs) == 6
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


@pytest.mark.slow
def test_held_out_pairs_score_the_same(root: Path) -> None:
    for index in range(2):
        assert read(root / "eight", "pairs", index) == read(root / "alone", "pairs")
    ours, theirs = (
        json.loads((root / name / "pairs.json").read_text()) for name in ("eight", "alone")
    )
    assert ours["pairs"] == 21 and 0 < ours["threshold"] < 1
    assert ours.pop("threshold") == pytest.approx(theirs.pop("threshold"), abs=2e-3)
    assert ours == theirs
