"""The directory of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tcl_jax.errors import InputError
from tcl_jax.files import user_path, why_unwritable
from tcl_jax.training.check import check_same_config


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
        for name in ("trained", "frozen", "begun_from"):  # no fields; a checkpoint says them
            stored.pop(name, None)
        check_same_config(settings, stored, workdir)
    return root
