"""A tree of arrays as a flat dict by path, and what may not be stored or does not fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp


def name_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by path (`params/visual/proj`), in the order of the tree.

    Raises:
      ValueError: two leaves have the same path.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}
    if len(named) != len(leaves):
        raise ValueError("state: two leaves have the same path; names must not contain '/'.")
    return named


def hash_leaves(tree: Any) -> str:
    """SHA-256 in hexadecimal of arrays as float32, whatever file or dtype they came in."""
    digest = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for path, leaf in sorted(leaves, key=lambda entry: jax.tree_util.keystr(entry[0])):
        array = np.ascontiguousarray(leaf, np.float32)
        digest.update(f"{jax.tree_util.keystr(path)}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def check_storable(leaves: Mapping[str, Any]) -> None:
    """Refuses what would not come back as it was.

    Raises:
      ValueError: a leaf is not a jax.Array, is a PRNG key, or is empty; it is named.
    """
    for name, leaf in leaves.items():
        if not isinstance(leaf, jax.Array):
            raise ValueError(f"state leaf {name}: is a {type(leaf).__name__}, must be a jax.Array.")
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise ValueError(f"state leaf {name}: is a PRNG key; derive it from seed and step.")
        if leaf.size == 0:
            raise ValueError(f"state leaf {name}: is empty (shape {leaf.shape}); leave it out.")


def place_leaves(leaves: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Abstract leaves, those without a sharding on the first local device.

    Raises:
      ValueError: a leaf has no sharding and there are several processes.
    """
    placed = {}
    for name, leaf in leaves.items():
        sharding = leaf.sharding
        if sharding is None:
            if jax.process_count() > 1:
                raise ValueError(f"abstract_state leaf {name}: needs a sharding.")
            sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        placed[name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return placed


def described_state(path: Path) -> Mapping[str, Any]:
    """Shapes and dtypes of a step's state by name, without reading the arrays.

    Raises:
      OSError: the description is missing or unreadable.
    """
    stored: Mapping[str, Any] | None = ocp.checkpointables_metadata(path).metadata["state"]
    if stored is None:
        raise OSError("the description of its arrays is missing or unreadable")
    return stored


def find_mismatch(wanted: Mapping[str, Any], stored: Mapping[str, Any]) -> str | None:
    """Which leaves are missing, left over, or of another shape or dtype; None if all fit."""
    problems = [f"{name} is not in the checkpoint" for name in wanted.keys() - stored.keys()]
    problems += [f"{name} is in the checkpoint only" for name in stored.keys() - wanted.keys()]
    for name in wanted.keys() & stored.keys():
        have = f"{tuple(stored[name].shape)} {np.dtype(stored[name].dtype)}"
        want = f"{tuple(wanted[name].shape)} {np.dtype(wanted[name].dtype)}"
        if have != want:
            problems.append(f"{name} is {have} in the checkpoint, {want} is needed")
    if not problems:
        return None
    more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
    return "; ".join(sorted(problems)[:8]) + more


def check_json(name: str, value: Any) -> str:
    """The value as JSON.

    Raises:
      ValueError: it cannot be written as JSON; `name` says which it is.
    """
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: must be JSON-able: {error}.") from error
