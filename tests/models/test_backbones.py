"""The one vision transformer as other families have it, against the authors' own modules.

Each golden model is the first block of a tiny random one, under the names of its family.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.models.layers import Transformer, mlp
from tcl_jax.models.vit import (
    ViT,
    bicubic_antialias,
    bicubic_offset,
    bilinear_antialias,
    encode,
    resize_positions,
    rotary_embedding,
)
from tests.reference import load, nchw_to_nhwc

HEADS = 2


def golden_of(family: str) -> tuple[dict[str, jax.Array], dict[str, np.ndarray]]:
    """Weights as float32 by name, and the arrays."""
    golden = {k.removeprefix(f"{family}/"): x for k, x in load("backbones").items() if family in k}
    weights = {
        k.removeprefix("w/"): jnp.asarray(x, jnp.float32)
        for k, x in golden.items()
        if k.startswith("w/")
    }
    return weights, golden


def torch_dense(w: Any, name: str) -> dict[str, jax.Array]:
    return {"kernel": w[f"{name}.weight"].T, "bias": w[f"{name}.bias"]}


def torch_params(w: Any, registers: str) -> dict[str, Any]:
    """DINOv2's or DINOv3's, of one block."""
    norms = {
        i: {"norm": {"scale": w[f"blocks.0.norm{i}.weight"], "bias": w[f"blocks.0.norm{i}.bias"]}}
        for i in (1, 2)
    }
    qkv, out = torch_dense(w, "blocks.0.attn.qkv"), torch_dense(w, "blocks.0.attn.proj")
    qkv = {key: x.reshape(*x.shape[:-1], 3, HEADS, -1) for key, x in qkv.items()}
    if "blocks.0.attn.qkv.bias_mask" in w:
        qkv["bias"] = qkv["bias"].at[1].set(0)  # DINOv3 has none of keys
    out["kernel"] = out["kernel"].reshape(HEADS, -1, out["kernel"].shape[-1])
    return {
        "patch_kernel": w["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "patch_bias": w["patch_embed.proj.bias"],
        "class_embedding": w["cls_token"][0, 0],
        "register_tokens": w[registers][0],
        "blocks_0": {
            "ln_1": norms[1],
            "attn": {"in_proj": qkv, "out_proj": out},
            "ls_1": w["blocks.0.ls1.gamma"],
            "ln_2": norms[2],
            "mlp": {
                "c_fc": torch_dense(w, "blocks.0.mlp.fc1"),
                "c_proj": torch_dense(w, "blocks.0.mlp.fc2"),
            },
            "ls_2": w["blocks.0.ls2.gamma"],
        },
    }


def close(found: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("size", ["70x70", "98x56"])
def test_dinov2_with_registers(size: str) -> None:
    w, golden = golden_of("dinov2")
    params = {**torch_params(w, "register_tokens"), "positional_embedding": w["pos_embed"][0]}
    vit, image = ViT(eps=1e-6, resample=bicubic_antialias), nchw_to_nhwc(golden[f"{size}/image"])
    features = jax.jit(partial(encode, vit))(params, image.astype(jnp.float32))
    close(features.after(1), golden[f"{size}/block0"])
    assert features.patches(features.after(1)).shape == (1, *features.grid, 128)


@pytest.mark.parametrize(
    ("name", "resample"),
    [("98x56/pos_embed", bicubic_antialias), ("noreg/98x56/pos_embed", bicubic_offset)],
)
def test_dinov2_s_positions_at_another_grid(name: str, resample: Any) -> None:
    w, golden = golden_of("dinov2")
    close(resize_positions(w["pos_embed"][0], (7, 4), resample), golden[name][0])


def test_dinov2_s_swiglu() -> None:
    w, golden = golden_of("dinov2/swiglu")
    w = {k: jnp.asarray(x, jnp.float32) for k, x in golden.items()}
    fused = torch_dense(w, "w12")
    gate, plain = (
        {name: jnp.split(x, 2, axis=-1)[i] for name, x in fused.items()} for i in range(2)
    )
    params = {"gate": gate, "c_fc": plain, "c_proj": torch_dense(w, "w3")}
    close(mlp(Transformer(), params, w["x"]), golden["y"])


def test_dinov3_with_rotary_embedding() -> None:
    w, golden = golden_of("dinov3")
    params = {**torch_params(w, "storage_tokens"), "rope_periods": w["rope_embed.periods"]}
    image = nchw_to_nhwc(golden["64x64/image"]).astype(jnp.float32)
    cropped = jnp.pad(image, ((0, 0), (0, 5), (0, 15), (0, 0)), constant_values=9.0)
    features = jax.jit(partial(encode, ViT(eps=1e-5, ragged="crop")))(params, cropped)
    close(features.after(1), golden["64x64/block0"])
    # Of a vector with ones in its first half alone, cosines are left there and sines in the other.
    halves = jnp.concatenate([jnp.ones((1, 1 + 18, 1, 24)), jnp.zeros((1, 1 + 18, 1, 24))], -1)
    turned = rotary_embedding(w["rope_embed.periods"], (3, 6), prefix=1)(halves)
    np.testing.assert_array_equal(turned[:, :1], halves[:, :1])
    close(turned[0, 1:, 0, :24], golden["48x96/rope_cos"][:, :24])
    close(turned[0, 1:, 0, 24:], golden["48x96/rope_sin"][:, :24])


def test_tips_tokens() -> None:
    """Two class tokens without position, antialiased bilinear positions, and padding."""
    w, golden = golden_of("tips")
    params = {
        "patch_kernel": w["ToTokenSequence_0/embedding/kernel"],
        "patch_bias": w["ToTokenSequence_0/embedding/bias"],
        "register_tokens": w["ToTokenSequence_0/cls"][0],
        "positional_embedding": w["ToTokenSequence_0/posembed_input"].reshape(-1, 96),
    }
    run = jax.jit(partial(encode, ViT(resample=bilinear_antialias, ragged="pad")))
    for size in ("56x56", "70x42"):
        image = jnp.asarray(golden[f"{size}/image"], jnp.float32)[None]
        close(run(params, image).tokens[0], golden[f"{size}/tokens_in"])
    inner = image[:, 5:65, 3:39]
    bordered = jnp.pad(inner, ((0, 0), (5, 5), (3, 3), (0, 0)))
    np.testing.assert_array_equal(run(params, inner).tokens, run(params, bordered).tokens)
