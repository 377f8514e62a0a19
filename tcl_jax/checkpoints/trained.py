"""The learned parameters of a run, without its optimiser."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from flax import traverse_util
from orbax.checkpoint import v1 as ocp

from tcl_jax.checkpoints.store import CheckpointError, as_numpy, reading, step_path
from tcl_jax.files import user_path

_PREFIX = "params/"


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run has learned.

    Attributes:
        step: updates made.
        params: nested dict of float32 NumPy arrays.
        config: the run's config, as a nested dict.
    """

    step: int
    params: dict[str, Any]
    config: dict[str, Any]


def find_store(path: str | os.PathLike[str]) -> tuple[Path, int | None] | None:
    """The checkpoint directory of a run and the step that a path names, if it names one.

    Args:
        path: a run's workdir, its `checkpoints` folder, or one step in it, which need not be there.

    Returns:
        Directory of the store and the step (None: the newest), or None if it is none of these.
    """
    path = user_path(path).absolute()
    if (path / "checkpoints").is_dir():
        return path / "checkpoints", None
    if path.name == "checkpoints" and path.is_dir():
        return path, None
    if path.parent.name == "checkpoints" and path.name.isdecimal() and path.parent.is_dir():
        return path.parent, int(path.name)
    return None


def read_trained(path: str | os.PathLike[str]) -> Trained:
    """Reads the parameters of a run at a path as of `find_store`, and nothing of the optimiser.

    Raises:
        CheckpointError: if it is no run, or the step is not there or damaged.
        RunError: if it cannot be read for a reason that is not the files'.
    """
    found = find_store(path)
    if found is None:
        raise CheckpointError(f"{path}: holds no run (there is no checkpoints folder in it).")
    directory, step = found
    steps = sorted(found.step for found in ocp.path.step.standard_name_format().find_all(directory))
    where = step_path(directory, steps, step)
    with reading(where):
        wanted = {"state": as_numpy(where, "state", _PREFIX), "info": None}
        items = ocp.load_checkpointables(where, wanted)
    leaves = {name.removeprefix(_PREFIX): x for name, x in items["state"].items()}
    params = traverse_util.unflatten_dict(leaves, sep="/")
    return Trained(int(where.name), params, items["info"]["config"])
