"""Which frozen weights a run was trained on, and whether those that are there now are the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from tcl_jax.checkpoints.leaves import hash_leaves
from tcl_jax.errors import InputError
from tcl_jax.files import user_path
from tcl_jax.weights.load import Pretrained, Source, load_clip

Identity = Mapping[str, str]
"""`weights` (a name, or the whole path), `given` (the same as the config has it), `prefix`,
`activation`, `file_sha256` (of the file) and `arrays_sha256` (of the parameters as float32,
whatever file they came in)."""


def _load_clip(source: str, recorded: Identity) -> Pretrained:
    return load_clip(
        source, activation=recorded["activation"], prefix=recorded["prefix"], dtype=None
    )


LOADERS: dict[str, Callable[[str, Identity], Pretrained]] = {"clip": _load_clip}
"""By the entry of the parameter tree that is read."""


def identify(weights: Source, loaded: Pretrained) -> dict[str, str]:
    """What a run records of parameters that were loaded by `weights`."""
    path = user_path(weights)
    return {
        "weights": os.fspath(path.absolute() if path.exists() else weights),
        "given": os.fspath(weights),
        "prefix": loaded.origin["prefix"] or ".",
        "activation": loaded.config.activation,
        "file_sha256": loaded.origin["sha256"],
        "arrays_sha256": hash_leaves(loaded.params),
    }


def check_frozen(recorded: Mapping[str, Identity], present: Mapping[str, Identity]) -> None:
    """Compares the weights that a run was trained on with those that are there now.

    Args:
        recorded, present: by their entries of the parameter tree.

    Raises:
        InputError: they differ; the message describes both.
    """
    for name, then in recorded.items():
        now = present[name]
        if any(then[field] != now[field] for field in ("arrays_sha256", "activation")):
            raise InputError(
                f"the weights of {name!r} are not those that the run was trained on. Then: "
                f"{_describe(then)}. Now: {_describe(now)}. Put the former back in their place, or "
                "start a new run"
            )


def load_frozen(recorded: Mapping[str, Identity]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights that a run was trained on, in the dtypes of their files.

    Returns:
        Parameters, and where they are from, by their entries of the parameter tree.

    Raises:
        InputError: some are not there, cannot be read, or are others.
    """
    params, origins = {}, {}
    for name, record in recorded.items():
        there = user_path(record["weights"]).exists()
        source = record["weights" if there else "given"]
        try:
            loaded = LOADERS[name](source, record)
        except InputError as error:
            raise InputError(f"{error}. The run was trained on {_describe(record)}") from error
        check_frozen({name: record}, {name: identify(source, loaded)})
        params[name], origins[name] = loaded.params, loaded.origin
    return params, origins


def _describe(identity: Identity) -> str:
    return (
        f"{identity['weights']} (SHA-256 of the file {identity['file_sha256']}, of its arrays "
        f"{identity['arrays_sha256']}, {identity['activation']})"
    )
