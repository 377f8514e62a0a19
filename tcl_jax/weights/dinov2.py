"""Names of DINOv2's tensors, with registers and without, and of DINO's, also at Hugging Face.

Blocks of DINOv3, of dino.txt's vision head and of TIPS in PyTorch have the same names, with some of
their tensors absent or split in another way, so their rules are here, too.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import numpy as np

from tcl_jax.models.families import Sizes
from tcl_jax.weights import mapping
from tcl_jax.weights.mapping import (
    Rule,
    StateDict,
    all_blocks,
    block_numbers,
    layer_norm,
    linear,
)

PATCHES = "patch_embed.proj.weight"
OTHERS = (
    "head.weight", "fc_norm.weight", "dist_token", "decoder_embed.weight", "classifier.weight",
    "decoder.decoder_embed.weight",
)  # fmt: skip
"""What plain ViTs of timm, MAE and Hugging Face may have besides DINO's names, and no DINO has."""
BLOCKS = "blocks."

HUGGING_FACE_BLOCK = {
    **{f".attention.attention.{theirs}.": f".attn.{theirs[0]}."
       for theirs in ("query", "key", "value")},
    **{f".attention.{x}_proj.": f".attn.{x}." for x in "qkv"},
    ".attention.output.dense.": ".attn.proj.",
    ".attention.o_proj.": ".attn.proj.",
    ".layer_scale1.lambda1": ".ls1.gamma",
    ".layer_scale2.lambda1": ".ls2.gamma",
    ".mlp.gate_proj.": ".mlp.w1.",
    ".mlp.up_proj.": ".mlp.w2.",  # of DINOv3 also where nothing is gated
    ".mlp.down_proj.": ".mlp.w3.",
}  # fmt: skip
"""Parts of `transformers`' names in blocks, of its version 4 and of version 5, and the authors'."""

HUGGING_FACE = {
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "embeddings.": "",
    "encoder.layer.": BLOCKS,
    "layernorm.": "norm.",
    ".mlp.weights_in.": ".mlp.w12.",
    ".mlp.weights_out.": ".mlp.w3.",
    **HUGGING_FACE_BLOCK,
    "layers.": BLOCKS,  # from here on of `ViTModel`; these in memory of version 5
    ".layernorm_before.": ".norm1.",
    ".layernorm_after.": ".norm2.",
    ".intermediate.dense.": ".mlp.fc1.",
    ".output.dense.": ".mlp.fc2.",
}
"""The same of `Dinov2Model`, `Dinov2WithRegistersModel` and DINO's `ViTModel`, to be replaced in
this order."""


def find_other(names: Collection[str], prefix: str) -> str:
    """Which of `OTHERS` tells that a plain ViT is no DINO; "" if none does.

    Args:
        names: all of its file.
        prefix: of DINO's names among them.
    """
    around = (prefix, prefix.removesuffix("vit."))  # Hugging Face's tower in a larger model
    return next((x for x in OTHERS if any(f"{at}{x}" in names for at in around)), "")


def join(*tensors: np.ndarray) -> np.ndarray:
    """One after the other along the first axis."""
    return np.concatenate(tensors)


def join_query_value(query: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The fused bias of three of which the key has none."""
    return join(query, np.zeros_like(query), value)


def without_key(bias: np.ndarray) -> np.ndarray:
    """A fused bias of three with zeros for the key, whatever was there."""
    return join_query_value(*np.split(bias, 3)[::2])


def block(
    names: Collection[str], name: str, path: tuple[str, ...], *, key_bias: bool = True
) -> list[Rule]:
    """One block.

    Args:
        names: of all tensors of the tower. What a block may lack, or have in another form, is
            told by what any of its blocks has.
        name: of the block, without the last dot.
    """
    before = name.rpartition(".")[0]  # of all its blocks

    def there(leaf: str) -> bool:
        return any(x.startswith(before) and x.endswith(f".{leaf}") for x in names)

    kernel, bias = (*path, "attn", "in_proj", "kernel"), (*path, "attn", "in_proj", "bias")
    fused, (q, k, v) = f"{name}.attn.qkv", (f"{name}.attn.{x}" for x in "qkv")
    rules = [
        *layer_norm(f"{name}.norm1", (*path, "ln_1")),
        *linear(f"{name}.attn.proj", (*path, "attn", "out_proj")),
        *layer_norm(f"{name}.norm2", (*path, "ln_2")),
    ]
    if there("attn.qkv.weight"):
        rules.append(Rule(f"{fused}.weight", kernel, (1, 0)))
        if there("attn.qkv.bias"):
            rules.append(Rule(f"{fused}.bias", bias, combine=None if key_bias else without_key))
    else:
        rules.append(Rule(f"{q}.weight", kernel, (1, 0), (f"{k}.weight", f"{v}.weight"), join))
        if there("attn.q.bias"):
            more = [f"{x}.bias" for x in ((k, v) if key_bias else (v,))]
            combine = join if key_bias else join_query_value
            rules.append(Rule(f"{q}.bias", bias, None, tuple(more), combine))
    if there("ls1.gamma"):
        rules += [Rule(f"{name}.ls{i}.gamma", (*path, f"ls_{i}")) for i in (1, 2)]
    mlp = f"{name}.mlp"
    gate, hidden, out = ((*path, "mlp", layer) for layer in ("gate", "c_fc", "c_proj"))
    if there("mlp.w12.weight"):  # SwiGLU, whose first half goes through the activation function
        rules += [
            Rule(f"{mlp}.w12.{kind}", (*layer, leaf), axes, combine=half)
            for layer, half in (
                (gate, lambda x: np.split(x, 2)[0]), (hidden, lambda x: np.split(x, 2)[1]),
            )
            for kind, leaf, axes in (("weight", "kernel", (1, 0)), ("bias", "bias", None))
        ]  # fmt: skip
        return rules + linear(f"{mlp}.w3", out)
    layers = {"w1": gate} if there("mlp.w1.weight") else {}
    first, second = ("w2", "w3") if there("mlp.w2.weight") else ("fc1", "fc2")
    layers |= {first: hidden, second: out}
    return rules + [rule for x, layer in layers.items() for rule in linear(f"{mlp}.{x}", layer)]


def tower(names: Collection[str], *, key_bias: bool = True) -> list[Rule]:
    """Blocks, patches, mask token and the norm at the end."""
    rules = [
        Rule(PATCHES, ("patch_kernel",), (2, 3, 1, 0)),
        Rule("patch_embed.proj.bias", ("patch_bias",)),
        *layer_norm("norm", ("ln_post",)),
    ]
    if "mask_token" in names:
        rules.append(Rule("mask_token", ("mask_token",)))
    return rules + all_blocks(names, BLOCKS, partial(block, names, key_bias=key_bias))


def sizes(specs: Mapping[str, Any], registers: str = "register_tokens") -> Sizes:
    """What the shapes of a tower's tensors say.

    Args:
        specs: anything with a `.shape` by name.
        registers: their name.

    Raises:
        KeyError, IndexError, ValueError: if a tensor that tells a size is missing, has too few
            axes, or positions are not those of a square grid.
    """
    kernel = specs[PATCHES].shape
    names = [f"{BLOCKS}0.mlp.{layer}.weight" for layer in ("w12", "w1", "w2", "fc1")]
    first = next((name for name in names if name in specs), names[-1])
    fused, gated = first == names[0], first in names[:2]
    positions = specs["pos_embed"].shape[-2] if "pos_embed" in specs else 0
    if positions and math.isqrt(positions - 1) ** 2 != positions - 1:
        raise ValueError(
            f"the {positions} of pos_embed are not of a class token and a square grid of patches"
        )
    return Sizes(
        width=kernel[0],
        depth=len(block_numbers(specs, BLOCKS)),
        hidden=specs[first].shape[0] // (2 if fused else 1),
        patch=kernel[-1],
        registers=specs[registers].shape[-2] if registers in specs else 0,
        positions=positions,
        gated=gated,
    )


def to_params(
    tensors: StateDict, found: Sizes, heads: int, dtype: Any = np.float32
) -> dict[str, Any]:
    """Parameters of the tower of `models.vit` from the authors' names; see `mapping.to_params`.

    Args:
        tensors: by the authors' names, or those of Hugging Face with `HUGGING_FACE` replaced.
        dtype: of the parameters; None keeps each tensor's own.
    """
    rules = [
        *tower(tensors),
        Rule("cls_token", ("class_embedding",)),
        Rule("pos_embed", ("positional_embedding",)),
    ]
    if "register_tokens" in tensors:
        rules.append(Rule("register_tokens", ("register_tokens",)))
    return mapping.to_params(rules, tensors, found.shapes(heads), dtype)
