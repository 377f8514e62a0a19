"""The tiny reference model and how its arrays are compared."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision

from tcl_jax.inference.model import Model, model_from_torch
from tcl_jax.models.attention import Attention
from tcl_jax.models.tcl import TCL
from tcl_jax.weights.clip import clip_params, infer_clip_config
from tcl_jax.weights.readers import open_weights
from tcl_jax.weights.tcl import tcl_params

GOLDEN = Path(__file__).parent / "golden"
FEATURE_LAYER = 3


def load(name: str) -> dict[str, np.ndarray]:
    """Arrays of tests/golden/NAME.npz."""
    with np.load(GOLDEN / f"{name}.npz") as archive:
        return dict(archive)


def arrays(name: str) -> dict[str, jax.Array]:
    """`load` as JAX arrays, token ids as int32."""
    return {k: jnp.asarray(v) for k, v in load(name).items() if v.dtype.kind in "fi"}


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a weight file by name."""
    with open_weights(path) as file:
        return dict(file)


def label_map(masks: np.ndarray, background: float | None) -> np.ndarray:
    """Class per pixel [h, w] of scores [h, w, n]; a `background` scores the same everywhere."""
    if background is not None:
        masks = np.insert(masks, 0, background, axis=-1)
    return masks.argmax(axis=-1)


def relative_error(actual: Any, expected: np.ndarray) -> float:
    """max |a - b| / max |b|; infinite where shapes differ."""
    actual = np.asarray(actual, np.float64)
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return float("inf")
    scale = np.abs(expected).max()
    return float(np.abs(actual - expected).max() / (scale or 1.0))


def reference_model() -> tuple[TCL, dict[str, Any], dict[str, Any]]:
    """The tiny TCL, its learned parameters, and its CLIP's."""
    model, *params = _reference_model()
    return model, *jax.tree.map(lambda x: x, params)  # dicts of its own


@functools.cache
def _reference_model() -> tuple[TCL, dict[str, Any], dict[str, Any]]:
    clip_state = load("clip_state_dict")
    config = infer_clip_config(clip_state)
    learned = tcl_params(load("tcl_state_dict"), config, FEATURE_LAYER)
    clip = clip_params(clip_state, config)
    model = TCL(config, FEATURE_LAYER)
    return model, jax.tree.map(jnp.asarray, learned), jax.tree.map(jnp.asarray, clip)


@functools.cache
def reference_torch_model() -> Model:
    """The same, as a user reads it from files."""
    return model_from_torch(
        GOLDEN / "clip_state_dict.npz", GOLDEN / "tcl_state_dict.npz", activation="quick_gelu"
    )


def attention_weights(attention: Attention, query: jax.Array, key: jax.Array) -> jax.Array:
    """[b, heads, l, l] of an attention: what it makes of values that tell the tokens."""
    batch, length, heads, _ = query.shape
    own = jnp.broadcast_to(jnp.eye(length)[:, None], (batch, length, heads, length))
    return jnp.moveaxis(attention(query, key, own), 2, 1)


def nchw_to_nhwc(x: Any) -> jax.Array:
    """PyTorch's image layout to ours."""
    return jnp.asarray(np.moveaxis(np.asarray(x), -3, -1))


def products(jaxpr: Any) -> Iterator[tuple[tuple[tuple[int, ...], ...], bool]]:
    """Shapes of the factors of every product of float32, and whether it is in full precision."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            factors = [variable.aval for variable in equation.invars]
            highest = (Precision.HIGHEST, Precision.HIGHEST)
            exact = equation.params["precision"] in (highest, Precision.HIGHEST)
            if all(factor.dtype == jnp.float32 for factor in factors):
                yield tuple(factor.shape for factor in factors), exact
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from products(inner)
