"""Which CLIP a run was trained on, and whether the one that is there now is the same."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from absl import logging

from tcl_jax.checkpoints.leaves import hash_leaves
from tcl_jax.errors import InputError
from tcl_jax.files import user_path
from tcl_jax.weights.load import Pretrained, Source, load_configured

Identity = Mapping[str, str]
"""`weights` (a name, or the whole path), `file_sha256` (of the file), `arrays_sha256` (of the
parameters as float32, whatever file they came in), and `activation`."""


def identify_clip(weights: Source, clip: Pretrained) -> dict[str, str]:
    """What a run records of its CLIP, which was loaded by `weights`."""
    path = user_path(weights)
    return {
        "weights": os.fspath(path.absolute() if path.exists() else weights),
        "file_sha256": clip.origin["sha256"],
        "arrays_sha256": hash_leaves(clip.params),
        "activation": clip.config.activation,
    }


def check_clip(recorded: Identity | None, present: Identity) -> None:
    """Compares the CLIP that a run was trained on with the one that is there now.

    Args:
        recorded: None for a run that did not record it, which is told in the log.
        present: of the CLIP that was loaded.

    Raises:
        InputError: they differ; the message describes both.
    """
    if recorded is None:
        logging.warning(
            "this run is of a version that did not record its CLIP, so it cannot be told whether "
            "it was trained on the one that is there now, %s",
            _describe(present),
        )
    elif any(recorded[name] != present[name] for name in ("arrays_sha256", "activation")):
        raise InputError(
            f"the CLIP is not the one that the run was trained on. Then: {_describe(recorded)}. "
            f"Now: {_describe(present)}. Put the former back in its place, or start a new run"
        )


def load_same_clip(model: Mapping[str, Any], recorded: Identity | None) -> Pretrained:
    """The CLIP that a run was trained on, in the dtypes of its file.

    Args:
        model: that section of its config.
        recorded: as in `check_clip`.

    Raises:
        InputError: it is not there, cannot be read, or is another one.
    """
    try:
        clip = load_configured(model, dtype=None)
    except InputError as error:
        if recorded is None:
            raise
        raise InputError(f"{error}. The run was trained on {_describe(recorded)}") from error
    check_clip(recorded, identify_clip(model["weights"], clip))
    return clip


def _describe(clip: Identity) -> str:
    return (
        f"{clip['weights']} (SHA-256 of the file {clip['file_sha256']}, of its arrays "
        f"{clip['arrays_sha256']}, {clip['activation']})"
    )
