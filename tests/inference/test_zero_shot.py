"""TIPS and dino.txt with their texts from files, against the authors' own modules."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from tcl_jax import Backbone, Segmenter
from tcl_jax.errors import InputError
from tcl_jax.inference.engine import ImageTask, MaskEngine
from tcl_jax.inference.export import export_masks
from tcl_jax.inference.masks import MaskOptions, make_masks
from tcl_jax.inference.model import Model, load_model, model_from_backbone, save_model
from tcl_jax.inference.settings import InferenceSettings, default_settings
from tcl_jax.inference.windows import SlidingWindow
from tcl_jax.models.flops import total
from tcl_jax.models.shapes import from_json, shapes_of
from tcl_jax.models.tips import TIPS
from tcl_jax.models.zero_shot import resize_to_patches
from tcl_jax.parallel.mesh import data_mesh
from tcl_jax.plan.traced_flops import traced_flops
from tcl_jax.weights.description import describe_file
from tests.inference.test_backbone import Tensors, image_of, weights_of, write
from tests.reference import load
from tests.tokenizer_files import train_pieces

CASES = {"tips": ("56x56", "70x42"), "dinotxt": ("64x64", "48x96")}


def texts_of(name: str) -> Tensors:
    """Tensors besides the vision tower's, as float32, by the authors' names."""
    start = "text/w/" if name == "tips" else "w/"
    golden = load("tips_text" if name == "tips" else "dinotxt")
    found = {k.removeprefix(start): x for k, x in golden.items() if k.startswith(start)}
    return {k: x.astype(np.float32) for k, x in found.items()}


def close(found: Any, wanted: np.ndarray, atol: float) -> None:
    np.testing.assert_allclose(np.asarray(found).reshape(wanted.shape), wanted, atol=atol, rtol=0)


def check(backbone: Backbone, name: str) -> None:
    """Texts and images of a backbone are those of the authors' module."""
    golden = load("tips_text" if name == "tips" else "dinotxt")
    wanted = golden["text/embedding" if name == "tips" else "text/features"]
    found = backbone.encode_text(golden["text/ids"])
    assert found.dtype == np.float32 and found.shape == wanted.shape
    close(found, wanted, 5e-6)
    for size in CASES[name]:
        aligned = backbone.align(image_of("dinov3" if name == "dinotxt" else name, size))
        if name == "tips":
            close(aligned.embedding, load("tips")[f"vision/{size}/cls"][:1], 2e-5)
            close(aligned.patches, golden[f"vision/{size}/value_spatial"], 2e-5)
        else:
            close(aligned.embedding, golden[f"vision/{size}/dinotxt_image"], 1e-5)
            close(aligned.patches, golden[f"vision/{size}/dinotxt_patch_tokens"], 1e-5)


def test_tips_from_two_files_or_one(tmp_path: Path) -> None:
    vision, texts = weights_of("tips"), texts_of("tips")
    one = write(tmp_path / "vision.npz", vision)
    backbone = Backbone.from_file(one, text=write(tmp_path / "text.npz", texts))
    assert backbone.family == "tips"
    check(backbone, "tips")
    both = {f"vision/w/{k}": x for k, x in vision.items()}
    both |= {f"text/w/{k}": x for k, x in texts.items()}
    check(Backbone.from_file(write(tmp_path / "both.safetensors", both)), "tips")
    for file, what in (("text.npz", "the text tower of TIPS"), ("vision.npz", "TIPSv2 of a size")):
        assert what in describe_file(str(tmp_path / file))
    ragged = image_of("tips", "70x42")[:, 3:63, 1:42]
    resized = resize_to_patches(jnp.asarray(ragged), 14)
    assert resized.shape == (1, 70, 42, 3)
    close(backbone.align(ragged).patches, np.asarray(backbone.align(resized).patches), 2e-5)
    # More padding changes nothing.
    ids = load("tips_text")["text/ids"]
    close(
        backbone.encode_text(np.pad(ids, ((0, 0), (0, 52)))),
        np.asarray(backbone.encode_text(ids)),
        1e-6,
    )


def test_tips_s_texts_in_pytorch(tmp_path: Path) -> None:
    names: Tensors = {}
    for name, x in texts_of("tips").items():
        name = name.replace("/", ".").replace("token_emb.emb_var", "token_embedding.weight")
        name = name.replace("text_encoder_norm", "ln_final").replace("temperature_con", "temp")
        name = name.replace("transformer.encoderblock_", "transformer.resblocks.")
        for flax, torch in {
            "LayerNorm_0": "ln_1", "LayerNorm_1": "ln_2", "MlpBlock_0.Dense_0": "mlp.c_fc",
            "MlpBlock_0.Dense_1": "mlp.c_proj", "MultiHeadDotProductAttention_0": "attn",
            "attn.out.": "attn.out_proj.", ".scale": ".weight",
        }.items():  # fmt: skip
            name = name.replace(flax, torch)
        if name.endswith("kernel"):
            name = name.replace("kernel", "weight")
            x = x.reshape(96, -1).T if "out_proj" not in name else x.reshape(-1, 96).T
            x = x.reshape(96, -1) if ".c_proj" in name else x
        names[name] = x.ravel() if "attn" in name and name.endswith("bias") else x
    for i in range(3):
        block = f"transformer.resblocks.{i}.attn"
        for leaf in ("weight", "bias"):
            parts = [names.pop(f"{block}.{x}.{leaf}") for x in ("query", "key", "value")]
            names[f"{block}.in_proj_{leaf}"] = np.concatenate(parts)
        proj = f"transformer.resblocks.{i}.mlp.c_proj.weight"
        names[proj] = texts_of("tips")[f"transformer/encoderblock_{i}/MlpBlock_0/Dense_1/kernel"].T
    vision = write(tmp_path / "vision.npz", weights_of("tips"))
    check(Backbone.from_file(vision, text=write(tmp_path / "text.npz", names)), "tips")


def test_dinotxt_from_one_file_or_several(tmp_path: Path) -> None:
    vision, texts = weights_of("dinov3"), texts_of("dinotxt")
    backbone = Backbone.from_file(write(tmp_path / "all.safetensors", {**vision, **texts}))
    assert backbone.family == "dinotxt"
    check(backbone, "dinotxt")
    text = describe_file(str(tmp_path / "all.safetensors"))
    for what in ("DINOv3 of a size", "text tower of dino.txt", "vision head of dino.txt"):
        assert what in text
    golden = load("dinotxt")
    image = backbone.align(image_of("dinov3", "64x64")).embedding
    text = backbone.encode_text(golden["text/ids"])
    cosines = (image / np.linalg.norm(image)) @ (text.T / np.linalg.norm(text, axis=1))
    logits = np.exp(golden["w/logit_scale"].astype(np.float32)) * cosines
    close(logits, golden["image_logits_64x64"], 2e-5)
    # DINOv3's layout: a backbone without prefix, and a file with the head and the texts.
    own = {k.removeprefix("visual_model.backbone."): x for k, x in vision.items()}
    one, other = write(tmp_path / "a.pth", own), write(tmp_path / "b.pth", texts)
    check(Backbone.from_file(one, "dinotxt", text=other, text_heads=2), "dinotxt")
    # DINOv2's: a file each, under names of their own.
    head = {k.removeprefix("visual_model.head."): x for k, x in texts.items() if ".head.b" in k}
    head = {k.replace("blocks.", "block_list."): x for k, x in head.items()}
    head |= {f"ln_final.{k}": texts[f"visual_model.head.ln_final.{k}"] for k in ("weight", "bias")}
    tower = {k.removeprefix("text_model."): x for k, x in texts.items() if "text_model." in k}
    files = [write(tmp_path / "head.pth", head), write(tmp_path / "text.pth", tower)]
    check(Backbone.from_file(one, text=files), "dinotxt")
    # The text tower suffices for texts.
    backbone = Backbone.from_file(one, text=files[1])
    close(backbone.encode_text(golden["text/ids"]), golden["text/features"], 5e-6)
    with pytest.raises(InputError, match="no head tower"):
        backbone.align(image_of("dinov3", "64x64"))


def test_dinotxt_on_dinov2(tmp_path: Path) -> None:
    rng, width = np.random.default_rng(0), 128
    wider = {96: width, 192: 2 * width, 64: 192}
    text_wider = {64: 192, 192: 3 * 192, 256: 4 * 192}
    texts = {
        k: rng.normal(
            0, 0.1, [(text_wider if "model.b" in k else wider).get(n, n) for n in x.shape]
        )
        for k, x in texts_of("dinotxt").items()
        if "qkv" not in k or "text_model" in k
    }
    for i in (0, 1):
        shape = (3 * width, width)
        texts[f"visual_model.head.blocks.{i}.attn.qkv.weight"] = rng.normal(0, 0.1, shape)
    path = write(tmp_path / "all.npz", {**weights_of("dinov2-reg"), **texts})
    backbone = Backbone.from_file(path, family="dinotxt-v2")
    assert backbone.family == "dinotxt-v2" and backbone.patch_size == 14
    assert "heads=2, text_heads=3, patch" in repr(backbone)  # of 64 channels each
    aligned = backbone.align(image_of("dinov2-reg", "70x70"))
    assert aligned.embedding.shape == (1, 2 * width) and aligned.patches.shape == (1, 5, 5, width)


def test_what_does_not_fit(tmp_path: Path) -> None:
    vision, texts = weights_of("tips"), texts_of("tips")
    path = write(tmp_path / "vision.npz", vision)
    lacking = {k: x for k, x in texts.items() if "block_1/LayerNorm_0/scale" not in k}
    with pytest.raises(InputError, match=r"text.npz.*encoderblock_1.LayerNorm_0.scale"):
        Backbone.from_file(path, text=write(tmp_path / "text.npz", lacking))
    both = {**weights_of("dinov2-reg"), **texts_of("dinotxt")}
    with pytest.raises(InputError, match=r"both.npz.*patches of width 96.*128"):
        Backbone.from_file(write(tmp_path / "both.npz", both))
    with pytest.raises(InputError, match=r"text tower for TIPSv2.*vision.npz"):
        Backbone.from_file(path, text=path)
    with pytest.raises(InputError, match=r"^weights '.*none.npz' do not exist"):
        Backbone.from_file(path, text=tmp_path / "none.npz")
    clip = {"token_embedding.weight", "positional_embedding", "transformer.resblocks.0.ln_1.weight"}
    other = write(tmp_path / "clip.npz", dict.fromkeys(clip, np.zeros((9, 96), np.float32)))
    with pytest.raises(InputError, match=r"clip.npz.*no text tower for TIPSv2"):
        Backbone.from_file(path, text=other)
    with pytest.raises(InputError, match=r"clip.npz.*no vision tower of DINO, DINOv2"):
        Backbone.from_file(other)
    for name, what in (("tips", "text tower of TIPS"), ("dinotxt", "text tower of dino.txt and")):
        other = write(tmp_path / f"{name}.npz", texts_of(name))
        with pytest.raises(InputError, match=rf"{name}.npz.*holds the {what}.*text="):
            Backbone.from_file(other)
    with pytest.raises(InputError, match=r"vision.npz.*no text tower.*text="):
        Backbone.from_file(path).encode_text([[1]])
    backbone = Backbone.from_file(path, text=write(tmp_path / "text.npz", texts))
    for ids, message in (([1], "shape"), ([[1.0]], "float64"), ([[300]], "0 to 299")):
        with pytest.raises(InputError, match=message):
            backbone.encode_text(ids)
    with pytest.raises(InputError, match="x is .*20, 28, 3"):
        backbone.align(np.zeros((20, 28, 3), np.float32))
    both = {**weights_of("dinov3"), **texts_of("dinotxt")}
    backbone = Backbone.from_file(write(tmp_path / "both.npz", both))
    with pytest.raises(InputError, match="17 tokens.*context of 16"):
        backbone.encode_text(np.ones((1, 17), np.int32))


# --------------------------------------------------------------------------------------- segmenting


def model_of(name: str, folder: Path, **options: Any) -> Model:
    """The golden model."""
    vision, texts = weights_of("tips" if name == "tips" else "dinov3"), texts_of(name)
    file = write(folder / "vision.npz", vision)
    return model_from_backbone(file, text=write(folder / "text.npz", texts), **options)


@pytest.mark.parametrize(
    ("name", "case", "own_patches", "window", "stride"),
    [
        ("tips", "zeroshot", False, 56, 42),
        ("dinotxt", "zeroshot_head", False, 64, 32),
        ("dinotxt", "zeroshot", True, 64, 32),
    ],
)
def test_windows_and_labels_are_the_notebooks(
    tmp_path: Path, name: str, case: str, own_patches: bool, window: int, stride: int
) -> None:
    golden = load("tips_text" if name == "tips" else "dinotxt")
    model = model_of(name, tmp_path, own_patches=own_patches)
    image = golden["zeroshot/image"].astype(np.float32)
    image = image if name == "tips" else np.moveaxis(image, 0, -1)
    engine = MaskEngine(model.method, data_mesh(jax.local_devices()[:1]))
    sliding = SlidingWindow.over(image.shape[:2], window, stride, model.method.patch_size)
    tasks = [ImageTask(0, sliding, image)]
    [(_, masks)] = engine(model.params, tasks, golden[f"{case}/text"], MaskOptions())
    rows = slice(None, None, 4 if name == "tips" else 7)  # those that are kept
    found = np.moveaxis(masks.at(image.shape[:2])[rows], -1, 0)
    close(found, golden[f"{case}/probs"], 1e-6)
    label = golden[f"{case}/label"]
    assert np.count_nonzero(masks.labels(label.shape) != label) <= 1
    if name == "dinotxt":  # the whole image, which is no multiple of the patch
        whole = resize_to_patches(jnp.asarray(image[None]), 16)
        tokens = jax.jit(model.method.align)(model.params, whole).patches  # type: ignore[attr-defined]
        close(tokens, golden[f"{case}/whole_patch_tokens"], 2e-5)


@pytest.mark.parametrize("name", ["tips", "dinotxt"])
def test_classes_of_several_templates(tmp_path: Path, name: str) -> None:
    golden = load("tips_text" if name == "tips" else "dinotxt")
    method, params = (model := model_of(name, tmp_path)).method, model.params
    found = method.text_encoder.embed_classes(
        method.text_params(params), jnp.asarray(golden["text/ids"])[None, :3]
    )
    close(found, golden["text/template_average_rows012"], 1e-6)


def test_the_authors_protocol(tmp_path: Path) -> None:
    own = InferenceSettings(448, 336, 0.0, refine="none", resize="pillow")
    model = model_of("tips", tmp_path)
    shapes = model.method.describe()["shapes"]
    shapes["tips/vision/positional_embedding"] = [1024, 96]
    tips = TIPS(from_json(shapes))
    assert default_settings(tips) == own and own.background_score(tips, "pamr") == 0.0
    assert model.settings == own.with_window(56)  # that of the tiny one
    expected = InferenceSettings(384, 192, 0.0, "none", templates="full", short_side=512,
                                 resize="pillow")  # fmt: skip
    assert model_of("dinotxt", tmp_path).settings == expected


def test_it_segments_is_kept_and_exported(tmp_path: Path) -> None:
    model = model_of("dinotxt", tmp_path, own_patches=True)
    settings = dataclasses.replace(model.settings, short_side=40, window=32, stride=16)
    segmenter = Segmenter(dataclasses.replace(model, settings=settings))
    image = np.random.default_rng(0).integers(0, 256, (45, 63, 3), np.uint8)
    texts = load("dinotxt")["zeroshot/text"][:3]
    masks = segmenter.masks(image, texts)  # of texts padded to 4
    assert masks.shape == (45, 63, 3)
    np.testing.assert_allclose(masks.sum(-1), 1, atol=1e-5)

    save_model(tmp_path / "model", model)
    loaded = load_model(tmp_path / "model")
    assert loaded.method == model.method and loaded.settings == model.settings
    assert Segmenter(loaded).fingerprint == Segmenter(model).fingerprint
    normal = np.float32((image / 255 - model.method.pixel_statistics[0]) / 0.225)
    whole = segmenter.masks_normalized(normal, texts)
    found = jax.jit(partial(make_masks, model.method))(model.params, normal[None], texts)
    close(found, whole, 1e-6)
    exported = export_masks(model.method, model.params, image_size=(45, 63), options=MaskOptions())
    program = export.deserialize(exported.serialized)
    assert program.call(image[None], texts).shape == (1, 45, 63, 3)
    with pytest.raises(InputError, match=r"needs TCL's weights.*choose one of dinotxt$"):
        model.with_method("tcl")
    with pytest.raises(InputError, match="own_patches"):
        model_of("tips", tmp_path, own_patches=True)


def test_tips_with_its_tokenizer(tmp_path: Path) -> None:
    """Random weights of the tokenizer's vocabulary, and PAMR."""
    file = tmp_path / "tokenizer.model"
    size = train_pieces(file)
    shapes = model_of("tips", tmp_path).method.describe()["shapes"]
    shapes["tips/text/token_embedding"][0] = size
    method = TIPS(shapes=from_json(shapes), folder=str(tmp_path))
    params = jax.jit(method.init)(jax.random.key(0))
    assert shapes_of(params) == method.shapes
    segmenter = Segmenter(Model(method, params, default_settings(method)))
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    result = segmenter.segment(image, ["cat", ["dog", "many dogs"]], pamr=True)
    assert result.names == ("background", "cat", "dog")
    assert {*np.unique(result.labels)} <= {1, 2}  # there is no background
    given = Segmenter(Model(TIPS(method.shapes), params, segmenter.settings),
                      tokenizer_file=str(file)).embed_texts(["cat"])  # fmt: skip
    close(given, segmenter.embed_texts(["cat"]), 1e-6)


@pytest.mark.parametrize("name", ["tips", "dinotxt"])
def test_flops_are_those_of_the_traced_program(tmp_path: Path, name: str) -> None:
    model, side = model_of(name, tmp_path), {"tips": 56, "dinotxt": 64}[name]
    image = jnp.zeros((1, side, side, 3))
    texts = jnp.zeros((3, model.method.embed_dim))
    masks = jax.jit(partial(model.method.masks, options=MaskOptions()))
    traced = masks.trace(model.params, image, texts)
    formula = total(model.method.flops(side, 3, MaskOptions()))
    found = traced_flops(traced.jaxpr)
    # What the program computes of queries and keys of TIPS's last block nobody needs.
    assert formula == pytest.approx(found, rel=0.15 if name == "tips" else 0.03)
