"""A finished model on disk: parameters without optimiser state, and a description of them.

    DIR/config.json      what the parameters are, for people and for `inference.Segmenter`
    DIR/params/          the arrays, an Orbax checkpoint; readable on any number of devices
    DIR/tokenizer.model  TIPS's tokenizer, where texts need it and it was there

The directory appears whole or not at all. What config.json says under `inference` may be edited:
it is how the model is used where nothing else is asked for.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from orbax.checkpoint import v1 as ocp

from tcl_jax.checkpoints.store import (
    CheckpointError,
    CheckpointWriteError,
    as_numpy,
    reading,
    silence_tracebacks,
)
from tcl_jax.errors import InputError, raise_machine_fault, why_unwritten
from tcl_jax.files import read_json, user_path, why_unwritable, write_json

FORMAT = "tcl_jax model"
VERSION = 1
_MAX_CONFIG = 16 * 2**20
_WRITE_BUFFER = 64 * 2**20
"""Bytes that Orbax may hold besides while it writes, or those of the largest array where these are
more, since it writes an array at once; unlimited, it doubles the memory."""


def check_absent(directory: str | os.PathLike[str]) -> Path:
    """The path of a file or directory that is still to be made; an empty directory may be there.

    Raises:
        InputError: if something else is there, or it cannot be made.
    """
    path = user_path(directory).absolute()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(
            f"output {str(directory)!r} is there already; choose another name, or delete it first"
        )
    if why := why_unwritable(path, utf8=True):
        raise InputError(
            f"output {str(directory)!r}: {why}; choose another place, or change its permissions"
        )
    return path


def write_model(
    directory: str | os.PathLike[str],
    params: Any,
    settings: Mapping[str, Any],
    files: Sequence[Path] = (),
) -> None:
    """Writes a model, whole or not at all.

    Args:
        directory: where; absent or empty.
        params: nested dict of arrays of any floating dtype, which is kept.
        settings: JSON-able description; `format` and `version` are added.
        files: others that go with it, under their names.

    Raises:
        InputError: if something is at `directory` already.
        CheckpointWriteError: if it cannot be written.
    """
    path = check_absent(directory)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    named = traverse_util.flatten_dict(params, sep="/")
    # Of NumPy's arrays Orbax would make a copy each, and so would JAX without the permission.
    flat = {name: jax.device_put(np.asarray(x), may_alias=True) for name, x in named.items()}
    silence_tracebacks()
    try:
        context = ocp.Context()
        largest = max((x.nbytes for x in flat.values()), default=0)
        context.memory.write_concurrent_bytes = max(_WRITE_BUFFER, largest) + 1
        part.mkdir(parents=True)
        with context:
            ocp.save_checkpointables(part / "params", {"params": flat})
        write_json(part / "config.json", {"format": FORMAT, "version": VERSION, **settings})
        for file in files:
            shutil.copyfile(file, part / file.name)
        if path.exists():
            path.rmdir()
        part.rename(path)
    except Exception as error:
        raise CheckpointWriteError(
            f"output {str(directory)!r} could not be written: {why_unwritten(error)} Nothing is "
            "left of it."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def is_model(directory: str | os.PathLike[str]) -> bool:
    """Whether a directory is laid out as `write_model` leaves it, be it damaged or not."""
    path = user_path(directory)
    return os.path.isfile(path / "config.json") and os.path.isdir(path / "params")


def read_model(directory: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters of a model, NumPy arrays in the dtypes they were written in, and its settings.

    Raises:
        CheckpointError: if it is not a model, of a later version, or damaged.
        RunError: if it cannot be read for a reason that is not the files'.
    """
    path = user_path(directory).absolute()
    try:
        settings = read_json(path / "config.json", _MAX_CONFIG)
    except FileNotFoundError:
        settings = None
    except (OSError, ValueError, RecursionError) as error:
        raise_machine_fault(f"{path / 'config.json'} cannot be read", error)
        raise CheckpointError(
            f"{path / 'config.json'}: cannot be read: {error}. Correct it, or convert it again."
        ) from error
    if not isinstance(settings, dict) or settings.get("format") != FORMAT:
        raise CheckpointError(f"{directory}: is not a model of tcl_jax (no config.json of one).")
    if settings.get("version") != VERSION:
        raise CheckpointError(
            f"{directory}: is a model of version {settings.get('version')!r}, and version "
            f"{VERSION} is read; install the tcl_jax that wrote it."
        )
    where = path / "params"
    with reading(where, "Copy or convert it again."):
        wanted = {"params": as_numpy(where, "params")}
        flat = ocp.load_checkpointables(where, wanted)["params"]
    return traverse_util.unflatten_dict(flat, sep="/"), settings
