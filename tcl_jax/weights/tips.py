"""Names of the tensors of TIPS's vision tower, in Flax and in PyTorch.

Names of the Flax files are joined by "/"; here they have dots, as all names do (`backbones`). Both
are read as the same model: the GELU is the tanh approximation of the Flax code, with which the
weights were probably trained, also for PyTorch's files, whose own code has the exact one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import numpy as np

from tcl_jax.models.families import Sizes
from tcl_jax.weights import dinov2, mapping
from tcl_jax.weights.mapping import Rule, StateDict, all_blocks, block_numbers

TOKENS = "encoder.ToTokenSequence_0"
PATCHES = f"{TOKENS}.embedding.kernel"
BLOCKS = "encoder.transformer.encoderblock_"


def dense(name: str, path: tuple[str, ...]) -> list[Rule]:
    """Kernel and bias of a dense layer in Flax."""
    return [Rule(f"{name}.{leaf}", (*path, leaf)) for leaf in ("kernel", "bias")]


def layer_norm(name: str, path: tuple[str, ...]) -> list[Rule]:
    """Scale and bias of a LayerNorm in Flax."""
    return [Rule(f"{name}.{leaf}", (*path, "norm", leaf)) for leaf in ("scale", "bias")]


def block(names: Collection[str], name: str, path: tuple[str, ...]) -> list[Rule]:
    """One block of either tower in Flax; `names` are all of the tower."""
    attention = f"{name}.MultiHeadDotProductAttention_0"
    rules = [
        *layer_norm(f"{name}.LayerNorm_0", (*path, "ln_1")),
        *dense(f"{attention}.out", (*path, "attn", "out_proj")),
        *layer_norm(f"{name}.LayerNorm_1", (*path, "ln_2")),
    ]
    for leaf, axis in (("kernel", 1), ("bias", 0)):  # kernels [d, h, k] as [d, 3 * h, k]
        query, *more = (f"{attention}.{x}.{leaf}" for x in ("query", "key", "value"))
        place, join = (*path, "attn", "in_proj", leaf), partial(_join, axis=axis)
        rules.append(Rule(query, place, None, tuple(more), join))
    gated = any(x.startswith(f"{name}.FFNSwiGluFused_0.") for x in names)
    mlp = f"{name}.FFNSwiGluFused_0" if gated else f"{name}.MlpBlock_0"
    layers = ("gate", "c_fc", "c_proj") if gated else ("c_fc", "c_proj")
    for i, layer in enumerate(layers):
        rules += dense(f"{mlp}.Dense_{i}", (*path, "mlp", layer))
    return rules


def _join(*tensors: np.ndarray, axis: int) -> np.ndarray:
    return np.concatenate(tensors, axis)


def sizes(specs: Mapping[str, Any]) -> Sizes:
    """What the shapes of a vision tower's tensors in Flax say; see `dinov2.sizes`."""
    kernel = specs[PATCHES].shape
    heads, size = specs[f"{BLOCKS}0.MultiHeadDotProductAttention_0.query.kernel"].shape[1:]
    gated = f"{BLOCKS}0.FFNSwiGluFused_0.Dense_0.kernel"
    plain = f"{BLOCKS}0.MlpBlock_0.Dense_0.kernel"
    rows, columns = specs[f"{TOKENS}.posembed_input"].shape[-3:-1]
    if rows != columns:
        raise ValueError(f"positions of {rows}x{columns} patches are not of a square grid")
    return Sizes(
        width=kernel[-1],
        depth=len(block_numbers(specs, BLOCKS)),
        hidden=specs[gated if gated in specs else plain].shape[-1],
        patch=kernel[0],
        classes=specs[f"{TOKENS}.cls"].shape[-2],
        positions=rows * columns,
        heads=heads,
        head_size=size,
        gated=gated in specs,
    )


def to_params(
    tensors: StateDict, found: Sizes, heads: int, dtype: Any = np.float32
) -> dict[str, Any]:
    """Parameters of the tower of `models.vit` from the names in Flax; see `dinov2.to_params`."""
    rules = [
        Rule(PATCHES, ("patch_kernel",)),
        Rule(f"{TOKENS}.embedding.bias", ("patch_bias",)),
        Rule(f"{TOKENS}.cls", ("class_embedding",)),
        Rule(
            f"{TOKENS}.posembed_input", ("positional_embedding",),
            combine=lambda x: x.reshape(-1, x.shape[-1]),  # [1, s, s, d] as [s * s, d]
        ),
        *layer_norm("encoder.encoder_norm", ("ln_post",)),
        *all_blocks(tensors, BLOCKS, partial(block, tensors)),
    ]  # fmt: skip
    return mapping.to_params(rules, tensors, found.shapes(heads), dtype)


def torch_sizes(specs: Mapping[str, Any]) -> Sizes:
    """The same of the names in PyTorch."""
    found = dinov2.sizes(specs)
    return dataclasses.replace(found, classes=2, registers=0, positions=found.positions - 1)


def torch_to_params(
    tensors: StateDict, found: Sizes, heads: int, dtype: Any = np.float32
) -> dict[str, Any]:
    """The same of the names in PyTorch."""
    rules = [
        *dinov2.tower(tensors),
        # Both class tokens [2, d], of which PyTorch's first has a position of its own.
        Rule(
            "cls_token", ("class_embedding",), None, ("pos_embed", "register_tokens"),
            lambda first, positions, second: dinov2.join(first[0] + positions[0, :1], second[0]),
        ),
        Rule("pos_embed", ("positional_embedding",), combine=lambda x: x[:, 1:]),
    ]  # fmt: skip
    return mapping.to_params(rules, tensors, found.shapes(heads), dtype)
