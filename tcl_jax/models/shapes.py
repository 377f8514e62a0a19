"""Sizes of towers as the shapes of their parameters, which a model directory keeps as JSON.

Whatever settings do not say of a tower follows from these (see `layers` and `vit`), so that no
table of widths and depths stands beside them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Key

from tcl_jax.models.vit import rope_periods

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Pairs of a name and a shape, sorted. Names are paths joined by "/"; the blocks of a tower, which
are alike, are one: "text/blocks*12/ln_1/norm/scale"."""

_BLOCK = re.compile(r"(?<![^/])blocks_(\d+)(?=/)")
_BLOCKS = re.compile(r"(?<![^/])blocks\*(\d+)(?=/)")


def shapes_of(params: Any) -> Shapes:
    """Shapes of a tree of arrays, or of anything with a `.shape`.

    Raises:
        ValueError: if the blocks of a tower are not alike.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    depths: dict[str, set[int]] = {}
    for name in flat:
        if found := _BLOCK.search(name):
            depths.setdefault(name[: found.start()], set()).add(int(found[1]))
    shapes: dict[str, tuple[int, ...]] = {}
    for name, x in flat.items():
        if found := _BLOCK.search(name):
            depth = len(depths[name[: found.start()]])
            name = f"{name[: found.start()]}blocks*{depth}{name[found.end() :]}"
        if shapes.setdefault(name, tuple(x.shape)) != tuple(x.shape):
            raise ValueError(f"{name} has the shapes {shapes[name]} and {tuple(x.shape)}")
    result = tuple(sorted(shapes.items()))
    if {name for name, _ in expand(result)} != {*flat}:
        raise ValueError(f"some of the blocks of {', '.join(depths)} lack what others have")
    return result


def expand(shapes: Shapes) -> Shapes:
    """The same with every block by itself."""
    every: list[tuple[str, tuple[int, ...]]] = []
    for name, shape in shapes:
        found = _BLOCKS.search(name)
        numbers = range(int(found[1])) if found else [0]
        every += [(_BLOCKS.sub(f"blocks_{i}", name), shape) for i in numbers]
    return tuple(every)


def shape_of(shapes: Shapes, ending: str) -> tuple[int, ...]:
    """Shape of the one parameter whose name ends so."""
    (shape,) = [x for name, x in shapes if f"/{name}".endswith(f"/{ending}")]
    return shape


def count_prefix(shapes: Shapes, tower: str) -> int:
    """Number of a vision tower's tokens that are no patches: class tokens and registers."""
    first = [f"/{tower}/{name}" for name in ("class_embedding", "register_tokens")]
    return sum(math.prod(x[:-1]) for name, x in shapes if f"/{name}".endswith((*first,)))


def init_params(key: Key[Array, ""], shapes: Shapes) -> dict[str, Any]:
    """Random parameters of these shapes, float32: kernels by LeCun's rule, norms the identity."""
    every = expand(shapes)
    drawn = {
        name: _init(key, name, shape)
        for key, (name, shape) in zip(jax.random.split(key, len(every)), every, strict=True)
    }
    return traverse_util.unflatten_dict(drawn, sep="/")


def _init(key: Key[Array, ""], name: str, shape: tuple[int, ...]) -> jax.Array:
    leaf = name.rsplit("/", 1)[-1]
    if leaf in ("scale", "ls_1", "ls_2"):
        return jnp.ones(shape)
    if leaf.endswith("bias"):
        return jnp.zeros(shape)
    if leaf == "rope_periods":
        return jnp.asarray(rope_periods(shape[0]))
    inputs = shape[0] if "in_proj" in name else math.prod(shape[:-1])
    return jax.random.normal(key, shape) * (inputs**-0.5 if leaf.endswith("kernel") else 0.02)


def to_json(shapes: Shapes) -> dict[str, list[int]]:
    """Lists by name."""
    return {name: list(shape) for name, shape in shapes}


def from_json(fields: Mapping[str, Sequence[int]]) -> Shapes:
    """Inverse of `to_json`."""
    return tuple(sorted((name, tuple(shape)) for name, shape in fields.items()))
