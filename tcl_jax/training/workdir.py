"""The directory of a run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tcl_jax.errors import InputError, as_input_error
from tcl_jax.files import user_path, why_unwritable
from tcl_jax.training.build import Experiment, build_experiment
from tcl_jax.training.check import check_same_config
from tcl_jax.weights.identity import Identity


def open_workdir(workdir: str, settings: dict[str, Any]) -> Path:
    """Checks that a run with these settings may start or go on here; writes nothing.

    Raises:
        InputError: if it is not a writable directory, or holds a run with other settings.
    """
    if "://" in workdir:
        raise InputError(
            f"workdir {workdir!r} is an address, and a folder is needed; mount the bucket, as "
            "`launch/tpu_vm.sh` does with gcsfuse, and name a folder in it"
        )
    root = user_path(workdir).absolute()
    if why := why_unwritable(root, utf8=True):
        raise InputError(
            f"workdir {workdir!r}: {why}; choose another directory, or change its permissions"
        )
    path = root / "config.json"
    if path.exists():
        try:
            stored = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InputError(
                f"workdir {workdir!r}: {path} cannot be read ({error}); restore it, or start in a "
                "new workdir"
            ) from error
        with as_input_error(f"workdir {workdir!r}"):
            check_same_config(settings, stored)
    return root


def build_experiment_in(workdir: str, config: ConfigDict) -> Experiment:
    """`build_experiment` of a run that may go on in `workdir`.

    Where `model.weights` is the workdir of a CLIP, which may have been trained longer since, a run
    that goes on takes the file of it that it began with.

    Raises:
        InputError: as `build_experiment`.
    """
    given = config.model.weights
    if (file := _recorded_file(workdir, given)) is None:
        return build_experiment(config)
    config = config.copy_and_resolve_references()
    config.model.weights = str(file)
    experiment = build_experiment(config)

    def as_given(identities: Mapping[str, Identity]) -> dict[str, Identity]:
        return {
            name: {**one, "given": given} if one["given"] == str(file) else one
            for name, one in identities.items()
        }

    return dataclasses.replace(
        experiment,
        identities=as_given(experiment.identities),
        begun_from=as_given(experiment.begun_from),
    )


def _recorded_file(workdir: str, given: str) -> Path | None:
    """The file in the folder `given` that the run in `workdir` recorded; None if there is none."""
    try:
        stored = json.loads((user_path(workdir) / "config.json").read_text())
        recorded = [*stored["frozen"].values(), *stored["begun_from"].values()]
        names = [Path(one["weights"]).name for one in recorded if one["given"] == given]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None  # a new run, or what `open_workdir` refuses
    files = (user_path(given) / name for name in names)
    return next((file for file in files if file.is_file()), None)
