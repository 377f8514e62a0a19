"""Backbones from files under their authors' names, against the authors' own modules."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tcl_jax import Backbone
from tcl_jax.errors import InputError
from tcl_jax.inference import backbone as module
from tcl_jax.models.backbone import backbone_features
from tcl_jax.models.layers import Transformer, mlp
from tcl_jax.weights import dinov2, tips
from tcl_jax.weights.mapping import Rule, to_params
from tests.reference import load
from tests.torch_files import save_state_dict

Tensors = dict[str, np.ndarray]
FILES = {"dinov2-reg": "dinov2", "dinov2": "dinov2", "dinov3": "dinov3", "tips": "tips"}
OWN = {"dinov3": "visual_model.backbone.", "tips": "vision/w/"}
CASES = [
    ("dinov2-reg", "70x70"), ("dinov2-reg", "98x56"), ("dinov2", "70x70"), ("dinov2", "98x56"),
    ("dinov3", "64x64"), ("dinov3", "48x96"), ("tips", "56x56"), ("tips", "70x42"),
]  # fmt: skip


def weights_of(family: str) -> Tensors:
    """A golden model's tensors as float32, by the authors' names."""
    golden = load(FILES[family])
    start = "vision/w/" if family == "tips" else "w/"
    tensors = {k.removeprefix(start): x for k, x in golden.items() if k.startswith(start)}
    if family == "dinov2":  # the same weights without registers
        del tensors["register_tokens"]
    return {k: x.astype(np.float32) for k, x in tensors.items()}


def image_of(family: str, size: str) -> np.ndarray:
    """[1, h, w, 3]."""
    golden = load(FILES[family])
    name = f"vision/{size}/image" if family in ("dinov3", "tips") else f"{size}/image"
    image = golden[name].astype(np.float32)
    return image[None] if family == "tips" else np.moveaxis(image, 1, -1)


def expected(family: str, size: str) -> Tensors:
    golden = load(FILES[family])
    if family == "tips":
        found, c = {k: golden[f"vision/{size}/{k}"][None] for k in ("cls", "spatial")}, 96
        return {**found, "registers": np.zeros((1, 0, c), np.float32)}
    start = {"dinov3": f"vision/{size}", "dinov2": f"noreg/{size}"}.get(family, size)
    found = {
        "cls": golden[f"{start}/x_norm_clstoken"],
        "spatial": golden[f"{start}/x_norm_patchtokens"],
    }
    registers = {"dinov3": "x_storage_tokens", "dinov2-reg": "x_norm_regtokens"}.get(family)
    none = np.zeros((1, 0, found["cls"].shape[-1]), np.float32)
    return {**found, "registers": golden[f"{start}/{registers}"] if registers else none}


def close(found: Any, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(np.asarray(found).reshape(wanted.shape), wanted, atol=2e-5, rtol=0)


def check(backbone: Backbone, family: str, size: str) -> None:
    """A backbone's features of a golden image are those of the authors' module."""
    wanted = expected(family, size)
    found = backbone.features(image_of(family, size))
    assert found.blocks == ()
    close(found.patches, wanted["spatial"])
    for name in ("cls", "registers"):
        assert getattr(found, name).shape == wanted[name].shape
        close(getattr(found, name), wanted[name])


def write(path: Path, tensors: Tensors) -> Path:
    """In the format of the name."""
    if path.suffix == ".npz":
        np.savez(path, **tensors)  # type: ignore[arg-type]  # a name might be that of an option
    elif path.suffix == ".pth":
        save_state_dict(path, tensors)
    else:
        safetensors.numpy.save_file({k: x.copy() for k, x in tensors.items()}, path)
    return path


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backbone]:
    """The golden models, each from another kind of file."""
    folder = tmp_path_factory.mktemp("backbones")
    files = {"dinov2-reg": "a.pth", "dinov2": "b.safetensors", "dinov3": "c.pth", "tips": "d.npz"}
    return {x: Backbone.from_file(write(folder / y, weights_of(x))) for x, y in files.items()}


@pytest.mark.parametrize(("family", "size"), CASES)
def test_features_are_the_references(
    backbones: dict[str, Backbone], family: str, size: str
) -> None:
    backbone = backbones[family]
    assert backbone.family == family
    assert backbone.patch_size == (16 if family == "dinov3" else 14)
    assert (backbone.pixel_statistics[0] == (0, 0, 0)) == (family == "tips")
    check(backbone, family, size)


def test_blocks_when_asked(backbones: dict[str, Backbone]) -> None:
    for family, size, last in (("dinov2-reg", "70x70", 3), ("tips", "56x56", 2)):
        golden = load(FILES[family])
        found = backbones[family].features(image_of(family, size), blocks=True)
        assert len(found.blocks) == last + 1
        start = "vision/" * (family == "tips") + size
        for block in (0, last):
            close(found.blocks[block], golden[f"{start}/block{block}"])


def test_masked_patches(backbones: dict[str, Backbone]) -> None:
    golden, image = load("dinov2"), image_of("dinov2-reg", "70x70")
    found = backbones["dinov2-reg"].features(image, mask=golden["masked/mask"])
    close(found.cls, golden["masked/x_norm_clstoken"])
    close(found.patches, golden["masked/x_norm_patchtokens"])
    with pytest.raises(InputError, match=r"mask has shape \(1, 5\).*\(1, 5, 5\)"):
        backbones["dinov2-reg"].features(image, mask=np.zeros((1, 5), bool))
    with pytest.raises(InputError, match="mask token"):
        backbones["tips"].features(image, mask=golden["masked/mask"])


def test_ragged_sides(backbones: dict[str, Backbone]) -> None:
    image = image_of("dinov3", "48x96")
    ragged = np.pad(image, ((0, 0), (0, 5), (0, 15), (0, 0)), constant_values=9.0)
    close(backbones["dinov3"].features(ragged).patches, expected("dinov3", "48x96")["spatial"])
    tips, image = backbones["tips"], image_of("tips", "70x42")[:, 5:65, 3:39]
    bordered = np.pad(image, ((0, 0), (5, 5), (3, 3), (0, 0)))
    close(tips.features(image).patches, np.asarray(tips.features(bordered).patches))
    with pytest.raises(InputError, match="71x70.*multiple of 14"):
        backbones["dinov2"].features(np.zeros((1, 71, 70, 3), np.float32))
    for family, shape in (("dinov3", (1, 15, 40, 3)), ("tips", (1, 0, 14, 3))):
        with pytest.raises(InputError, match=f"{shape[1]}, {shape[2]}, 3.: image of"):
            backbones[family].features(np.zeros(shape, np.float32))


def test_a_tower_without_class_token_and_registers(backbones: dict[str, Backbone]) -> None:
    tower = backbones["dinov2"]
    params = {k: x for k, x in tower.params.items() if k != "class_embedding"}
    params["positional_embedding"] = params["positional_embedding"][1:]
    image = jnp.asarray(image_of("dinov2", "70x70"))
    found = jax.jit(partial(backbone_features, tower.vit))(params, image)
    assert found.cls.shape == found.registers.shape == (1, 0, 128)
    assert found.patches.shape == (1, 5, 5, 128)


def test_arguments(backbones: dict[str, Backbone]) -> None:
    backbone = backbones["dinov2"]
    zeros = np.zeros((1, 70, 70, 3), np.float32)
    for x in (zeros[0], zeros.astype(np.uint8), zeros[:0]):
        with pytest.raises(InputError, match="x is .*pixel_statistics"):
            backbone.features(x)
    with pytest.raises(InputError, match="x: some values are not finite"):
        backbone.features(np.nan * zeros)
    with pytest.raises(InputError, match="dinov2 and come with no text tower"):
        backbone.encode_text(np.zeros((1, 77), np.int32))
    with pytest.raises(InputError, match="'dinov2:X/14' is unknown.*dinov2-reg:B/14"):
        Backbone.from_pretrained("dinov2:X/14")
    assert "width 128, heads=2, patch 14" in repr(backbone)


def test_a_program_is_compiled_once_per_shape(backbones: dict[str, Backbone]) -> None:
    before = module._features._cache_size()
    for seed in range(3):
        for side in (28, 42):
            x = np.random.default_rng(seed).standard_normal((1, side, 28, 3), np.float32)
            backbones["dinov2"].features(x)
    assert module._features._cache_size() == before + 2


def test_bfloat16_stays_near(tmp_path: Path, backbones: dict[str, Backbone]) -> None:
    for family, size in CASES[::2]:
        path = write(tmp_path / f"{family}.safetensors", weights_of(family))
        found = Backbone.from_file(path, dtype="bfloat16").features(image_of(family, size))
        exact = backbones[family].features(image_of(family, size))
        for one, other in ((found.cls, exact.cls), (found.patches, exact.patches)):
            assert one.dtype == jnp.float32
            assert jnp.linalg.norm(one - other) < 0.02 * jnp.linalg.norm(other)


# ------------------------------------------------------------------------------ names and variants


def to_hugging_face(tensors: Tensors, spelling: int) -> Tensors:
    """DINOv2's or DINOv3's tensors as `transformers` names them, in its version 4 or 5."""
    third = "storage_tokens" in tensors
    first = {
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.": f"embeddings.patch_embeddings.{'' if third else 'projection.'}",
        "storage_tokens": "embeddings.register_tokens",
        **{x: f"embeddings.{x}" for x in ("cls_token", "mask_token", "register_tokens")},
    }
    attention = (
        {x[0]: f"attention.{x}" for x in ("query", "key", "value")} | {"o": "output.dense"}
        if spelling == 4 and not third
        else {x: f"{x}_proj" for x in "qkvo"}
    )
    renamed = {}
    for name, x in tensors.items():
        if "rope" in name or "bias_mask" in name:
            continue
        block, number, leaf = [*name.split(".", 2), "", ""][:3]
        if block != "blocks":
            start = next((k for k in first if name.startswith(k)), None)
            name = name.replace(start, first[start]) if start else name
            name = name.replace("norm.", "norm." if third else "layernorm.")
            renamed[name] = x
            continue
        before = ("layer." if spelling == 4 else "model.layer.") if third else "encoder.layer."
        kind = leaf.rpartition(".")[2]
        if leaf.startswith("attn.qkv"):
            for q, part in zip("qkv", np.split(x, 3), strict=True):
                if not (third and q == "k" and kind == "bias"):
                    renamed[f"{before}{number}.attention.{attention[q]}.{kind}"] = part
            continue
        for ours, theirs in {
            "attn.proj": f"attention.{attention['o']}", "ls1.gamma": "layer_scale1.lambda1",
            "ls2.gamma": "layer_scale2.lambda1",
            **({"mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"} if third else {}),
        }.items():  # fmt: skip
            leaf = leaf.replace(ours, theirs)
        renamed[f"{before}{number}.{leaf}"] = x
    return renamed


@pytest.mark.parametrize("spelling", [4, 5])
@pytest.mark.parametrize(("family", "size"), CASES[1:6:2])
def test_hugging_face_s_names(tmp_path: Path, family: str, size: str, spelling: int) -> None:
    tensors = {k.removeprefix(OWN.get(family, "")): x for k, x in weights_of(family).items()}
    renamed = to_hugging_face(tensors, spelling)
    if spelling == 5:
        renamed = {f"model.{name}": x for name, x in renamed.items()} | {"head.weight": np.ones(3)}
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 2}))
    write(tmp_path / "model.safetensors", renamed)
    backbone = Backbone.from_file(tmp_path)
    assert backbone.family == family and backbone.origin["style"] == "huggingface"
    check(backbone, family, size)


def tips_in_pytorch() -> Tensors:
    """The golden model's tensors as TIPS in PyTorch names and lays them out."""
    flax, tokens = weights_of("tips"), "encoder/ToTokenSequence_0"
    leaves = (("kernel", "weight"), ("scale", "weight"), ("bias", "bias"))
    first, second = np.split(flax[f"{tokens}/cls"], 2, axis=1)
    grid = flax[f"{tokens}/posembed_input"].reshape(1, 16, 96)
    names = {
        "cls_token": 0.25 * first,  # the first class token has a position here
        "pos_embed": np.concatenate([0.75 * first, grid], axis=1),
        "register_tokens": second,
        "patch_embed.proj.weight": flax[f"{tokens}/embedding/kernel"].transpose(3, 2, 0, 1),
        "patch_embed.proj.bias": flax[f"{tokens}/embedding/bias"],
    }
    layers = {"encoder/encoder_norm": "norm"}
    for i in range(3):
        block, theirs = f"blocks.{i}", f"encoder/transformer/encoderblock_{i}"
        attention = f"{theirs}/MultiHeadDotProductAttention_0"
        layers |= {f"{theirs}/LayerNorm_{n}": f"{block}.norm{n + 1}" for n in (0, 1)}
        layers |= {f"{theirs}/MlpBlock_0/Dense_{n}": f"{block}.mlp.fc{n + 1}" for n in (0, 1)}
        layers[f"{attention}/out"] = f"{block}.attn.proj"
        for x in ("query", "key", "value"):  # of [d, h, k] and [h, k]
            flax[f"{attention}/{x}/kernel"] = flax[f"{attention}/{x}/kernel"].reshape(96, 96)
            flax[f"{attention}/{x}/bias"] = flax[f"{attention}/{x}/bias"].ravel()
        flax[f"{attention}/out/kernel"] = flax[f"{attention}/out/kernel"].reshape(96, 96)
        for leaf, ours in (("kernel", "weight"), ("bias", "bias")):
            parts = [flax[f"{attention}/{x}/{leaf}"].T for x in ("query", "key", "value")]
            names[f"{block}.attn.qkv.{ours}"] = np.concatenate(parts)
    for theirs, layer in layers.items():
        for leaf, ours in leaves:
            if (x := flax.get(f"{theirs}/{leaf}")) is not None:
                names[f"{layer}.{ours}"] = x.T
    return names


def test_tips_in_pytorch(tmp_path: Path) -> None:
    names = tips_in_pytorch()
    path = write(tmp_path / "tips.npz", names)
    backbone = Backbone.from_file(path, heads=2)
    assert backbone.family == "tips"
    check(backbone, "tips", "70x42")
    ones = {f"blocks.{i}.ls{n}.gamma": np.ones(96, np.float32) for i in range(3) for n in (1, 2)}
    other = write(tmp_path / "b.npz", names | ones)
    check(Backbone.from_file(other, heads=2), "tips", "56x56")
    with pytest.raises(InputError, match=r"tips.npz.*width of 96.*heads="):
        Backbone.from_file(path)
    # With LayerScale the names could be either's.
    chosen = Backbone.from_file(other, family="dinov2-reg", heads=2)
    assert chosen.family == "dinov2-reg" and chosen.features(np.zeros((1, 56, 56, 3), np.float32))
    halves = {k: x / 2 for k, x in ones.items()}  # TIPS has none that does anything
    other = write(tmp_path / "b.npz", names | halves)
    assert Backbone.from_file(other, heads=2).family == "dinov2-reg"


def test_swiglu() -> None:
    """Fused as in DINOv2, in three as in DINOv3, and in Flax."""
    for name, start in (("dinov2", "swiglu/"), ("tips", "swiglu/w/")):
        golden = load(name)
        w = {k.removeprefix(start): np.float32(x) for k, x in golden.items() if start in k}
        if name == "dinov2":
            tensors = {f"b.mlp.{k}": x for k, x in w.items()}
            split = {f"b.mlp.w{i + 1}.{leaf}": part for leaf in ("weight", "bias")
                     for i, part in enumerate(np.split(w[f"w12.{leaf}"], 2))}  # fmt: skip
            kinds = [tensors, split | {k: x for k, x in tensors.items() if ".w3." in k}]
        else:
            kinds = [{f"b.FFNSwiGluFused_0.{k.replace('/', '.')}": x for k, x in w.items()}]
        block = dinov2.block if name == "dinov2" else tips.block
        layer = {"kernel": np.empty((48, 128)), "bias": np.empty(128)}
        back = {"kernel": np.empty((128, 48)), "bias": np.empty(48)}
        template = {"mlp": {"gate": layer, "c_fc": layer, "c_proj": back}}
        for kind in kinds:
            rules: list[Rule] = [x for x in block(kind, "b", ()) if x.path[0] == "mlp"]
            params = jax.tree.map(jnp.asarray, to_params(rules, kind, template))
            x = jnp.asarray(golden["swiglu/x"], jnp.float32)
            close(mlp(Transformer(), params["mlp"], x), golden["swiglu/y"])


def test_tips_with_swiglu_in_both_forms(tmp_path: Path) -> None:
    rng, flax, torch = np.random.default_rng(0), weights_of("tips"), tips_in_pytorch()
    flax = {k: x for k, x in flax.items() if "MlpBlock" not in k}
    torch = {k: x for k, x in torch.items() if ".mlp." not in k}
    for i in range(3):
        parts = {}
        for n, shape in enumerate(((96, 256), (96, 256), (256, 96))):
            kernel, bias = (rng.normal(0, 0.1, x).astype(np.float32) for x in (shape, shape[1]))
            parts |= {f"Dense_{n}/kernel": kernel, f"Dense_{n}/bias": bias}
            dense = f"encoder/transformer/encoderblock_{i}/FFNSwiGluFused_0/Dense_{n}"
            flax |= {f"{dense}/kernel": kernel, f"{dense}/bias": bias}
        for leaf, ours in (("kernel", "weight"), ("bias", "bias")):
            fused = np.concatenate([parts[f"Dense_{n}/{leaf}"] for n in (0, 1)], axis=-1)
            torch[f"blocks.{i}.mlp.w12.{ours}"] = fused.T
            torch[f"blocks.{i}.mlp.w3.{ours}"] = parts[f"Dense_2/{leaf}"].T
    one = Backbone.from_file(write(tmp_path / "flax.npz", flax))
    other = Backbone.from_file(write(tmp_path / "torch.npz", torch), heads=2)
    image = image_of("tips", "70x42")
    close(one.features(image).patches, np.asarray(other.features(image).patches))


def test_what_dinov3_s_files_may_lack(tmp_path: Path) -> None:
    """Periods, which are then computed, and the mask of the keys' bias, which may be NaN."""
    tensors = weights_of("dinov3")
    for name in list(tensors):
        if name.endswith("periods"):
            del tensors[name]
        elif name.endswith("bias_mask"):
            tensors[name] = np.full_like(tensors[name], np.nan)
        elif name.endswith("qkv.bias"):
            tensors[name][96:192] = np.nan
    path = write(tmp_path / "a.safetensors", tensors)
    check(Backbone.from_file(path, heads=2), "dinov3", "48x96")
    none = {k: x for k, x in tensors.items() if "qkv.bias" not in k}
    zero = {k: 0 * np.nan_to_num(x) if "qkv.bias" in k else x for k, x in tensors.items()}
    one, other = (
        Backbone.from_file(write(tmp_path / "b.safetensors", x), heads=2).features(
            image_of("dinov3", "48x96")
        )
        for x in (none, zero)
    )
    close(one.patches, np.asarray(other.patches))


# -------------------------------------------------------------------------------- what goes wrong


def test_files_that_hold_none(tmp_path: Path) -> None:
    tensors = weights_of("dinov2-reg")
    with pytest.raises(InputError, match="'nothing.pth' do not exist.*dinov2-reg:B/14"):
        Backbone.from_file("nothing.pth")
    for lacking, message in {
        "patch_embed.proj.weight": "no vision tower",
        "blocks.2.norm1.bias": "a.npz.*lacks 1 of .*blocks.2.norm1.bias",
        "norm.weight": "norm.weight",
        "pos_embed": "no vision tower",
    }.items():
        path = write(tmp_path / "a.npz", {k: x for k, x in tensors.items() if k != lacking})
        with pytest.raises(InputError, match=message):
            Backbone.from_file(path)
    path = write(tmp_path / "b.npz", {**tensors, "blocks.1.mlp.fc1.bias": np.zeros(7)})
    with pytest.raises(InputError, match=r"b.npz.*blocks.1.mlp.fc1.bias.*\(7,\)"):
        Backbone.from_file(path)
    path = write(tmp_path / "c.npz", tensors)
    with pytest.raises(InputError, match="c.npz.*no dinov3, but DINOv2 with registers.*family="):
        Backbone.from_file(path, family="dinov3")
    with pytest.raises(InputError, match="family='vit' is unknown.*dinov2-reg"):
        Backbone.from_file(path, family="vit")
    with pytest.raises(InputError, match="128 is not that of 3 attention heads"):
        Backbone.from_file(path, heads=3)
    path = write(tmp_path / "d.npz", tensors | {"pos_embed": tensors["pos_embed"][:, :24]})
    with pytest.raises(InputError, match="d.npz.*24 of pos_embed.*square"):
        Backbone.from_file(path)
    flax = weights_of("tips")
    name = "encoder/ToTokenSequence_0/posembed_input"
    path = write(tmp_path / "e.npz", flax | {name: flax[name][:, :3]})
    with pytest.raises(InputError, match="e.npz.*3x4 patches.*square"):
        Backbone.from_file(path)
    path = write(tmp_path / "f.npz", flax)
    with pytest.raises(InputError, match="f.npz.*heads=4.*of 2"):
        Backbone.from_file(path, heads=4)


def test_of_several_a_prefix_chooses(tmp_path: Path) -> None:
    tensors = weights_of("dinov2-reg")
    both = {f"teacher.backbone.{k}": x for k, x in tensors.items()}
    both |= {f"student.module.backbone.{k}": 2 * x for k, x in tensors.items()}
    path = write(tmp_path / "both.pth", both)
    with pytest.raises(InputError, match="2 backbones.*student.*teacher"):
        Backbone.from_file(path)
    check(Backbone.from_file(path, prefix="teacher"), "dinov2-reg", "70x70")
