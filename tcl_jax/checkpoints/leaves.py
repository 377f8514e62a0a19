"""A hash of a tree of arrays."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import numpy as np


def hash_leaves(tree: Any) -> str:
    """SHA-256 in hexadecimal of arrays as float32, whatever file or dtype they came in."""
    digest = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for path, leaf in sorted(leaves, key=lambda entry: jax.tree_util.keystr(entry[0])):
        array = np.ascontiguousarray(leaf, np.float32)
        digest.update(f"{jax.tree_util.keystr(path)}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()
