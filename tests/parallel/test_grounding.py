"""The losses of all pairs over a mesh: one answer, and little that crosses it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.ops.test_grounding import SIZE
from tests.parallel.grounding_worker import COUNT
from tests.parallel.test_same_answer import process_arguments, start, wait
from tests.reference import relative_error

MODULE = "tests.parallel.grounding_worker"


@pytest.mark.slow
def test_losses_and_gradients_are_the_same_on_eight_devices_and_two_processes(
    tmp_path: Path,
) -> None:
    found = {}
    for devices, processes in ((1, 1), (8, 1), (2, 2)):
        out = tmp_path / f"{devices}x{processes}.npz"
        rest = process_arguments(processes)
        wait([start([str(out), *more], devices, MODULE) for more in rest])
        with np.load(out) as archive:
            found[devices, processes] = dict(archive)
        assert found[devices, processes]["devices"] == devices * processes
    alone = found.pop((1, 1))
    assert alone.pop("largest_collective") == 0
    alone.pop("devices")
    assert len(alone) == 10
    for place, several in found.items():
        # The texts, gathered; neither strips [n, n] nor anything of pixels.
        assert several["largest_collective"] == COUNT * SIZE
        for name, expected in alone.items():
            assert relative_error(several[name], expected) < 1e-5, (place, name)
