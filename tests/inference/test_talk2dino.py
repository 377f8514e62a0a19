"""Talk2DINO from files: the authors' masks and label maps, and every kind of call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from tcl_jax import Backbone, Talk2DINO
from tcl_jax.errors import InputError
from tcl_jax.evaluation.benchmark import load_benchmark
from tcl_jax.evaluation.protocol import make_protocol
from tcl_jax.inference.engine import ImageTask, MaskEngine
from tcl_jax.inference.export import export_masks
from tcl_jax.inference.masks import MaskOptions
from tcl_jax.inference.model import load_model, save_model
from tcl_jax.inference.segmenter import Segmenter
from tcl_jax.inference.settings import InferenceSettings
from tcl_jax.inference.windows import SlidingWindow
from tcl_jax.models.talk2dino import head_features, patch_masks
from tcl_jax.models.talk2dino_method import Talk2DINO as Method
from tcl_jax.ops.images import normalize
from tcl_jax.parallel.mesh import local_mesh
from tests.reference import load
from tests.talk2dino_files import write_golden, write_talk2dino

GOLDEN = load("talk2dino")
IMAGE = np.ascontiguousarray(GOLDEN["70x70/image_bgr"][None, ..., ::-1])
TEXTS = GOLDEN["text/emb"]
Files = tuple[Path, Path, Path]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_talk2dino(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def model(files: Files) -> Talk2DINO:
    return Talk2DINO.from_file(*files)


def classes_first(masks: Any) -> np.ndarray:
    return np.moveaxis(np.asarray(masks), -1, 0)


def test_masks_and_what_heads_look_at(model: Talk2DINO) -> None:
    assert model.method.resize_dim == 70  # what the positions of this small tower are for
    for cleaning, pamr, atol in ((False, False, 1e-6), (True, True, 5e-6)):
        masks = model.masks(IMAGE, TEXTS, cleaning=cleaning, pamr=pamr)[0]
        expected = GOLDEN[f"70x70/mask_bg{cleaning:d}_pamr{pamr:d}"]
        np.testing.assert_allclose(classes_first(masks), expected, atol=atol)
    normalised = model.masks(np.asarray(normalize(jnp.asarray(IMAGE))), 3 * TEXTS)[0]
    np.testing.assert_allclose(classes_first(normalised), GOLDEN["70x70/mask_bg0_pamr0"], atol=1e-6)
    found = model.head_features(IMAGE)
    for array, name in (
        (found.patches.reshape(25, 128), "patch_feat"),
        (found.logits.reshape(2, 25), "attn_logits"),
        (found.disentangled[0], "disentangled"),
        (found.average[0], "avg_self_attn_out"),
    ):
        np.testing.assert_allclose(array, GOLDEN[f"70x70/{name}"], atol=2e-5, err_msg=name)


@pytest.mark.parametrize("antialias", [True, False])
def test_a_window_of_another_size_is_stretched(files: Files, antialias: bool) -> None:
    torch = pytest.importorskip("torch")
    resize = torch.nn.functional.interpolate
    model = Talk2DINO.from_file(*files[:2], antialias=antialias)
    window = np.random.default_rng(0).standard_normal((1, 63, 77, 3)).astype(np.float32)
    pixels = torch.tensor(np.moveaxis(window, -1, 1))
    square = resize(pixels, (70, 70), mode="bilinear", antialias=antialias).numpy()
    grid = patch_masks(model.head_features(np.moveaxis(square, 1, -1)), jnp.asarray(TEXTS))
    cells = torch.tensor(np.moveaxis(np.asarray(grid), -1, 1))
    expected = resize(cells, (63, 77), mode="bilinear", align_corners=True)[0].numpy()
    found = classes_first(model.masks(window, TEXTS)[0])
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "options", "background"),
    [
        ("voc_like", MaskOptions("pamr", cleaning=True), 0.55),
        ("nobg", MaskOptions("pamr"), None),
    ],
)
def test_label_maps_of_the_protocol(
    model: Talk2DINO, name: str, options: MaskOptions, background: float | None
) -> None:
    pixels = np.ascontiguousarray(GOLDEN["slide/image_bgr"][..., ::-1])
    settings, size = model.model.settings, pixels.shape[:2]
    sliding = SlidingWindow.over(size, settings.window, settings.stride, model.method.patch_size)
    assert sliding.columns.starts == (0, 35, 52)
    engine = MaskEngine(model.method, local_mesh())
    task = ImageTask(name, sliding, pixels)
    [(_, masks)] = engine(model.model.params, [task], TEXTS, options)
    scores = GOLDEN[f"slide/{name}/scores"]
    atol = 2.5e-4 if scores.dtype == np.float16 else 5e-6
    found = classes_first(masks.at(size))
    np.testing.assert_allclose(found, scores[-len(TEXTS) :].astype(np.float32), atol=atol)
    rows, columns = GOLDEN["slide/ori_shape"]
    labels = masks.labels((int(rows), int(columns)), background)
    assert np.count_nonzero(labels != GOLDEN[f"slide/{name}/label"]) <= 1


def test_the_authors_protocol_and_cleaning_by_benchmark(model: Talk2DINO) -> None:
    settings = InferenceSettings(70, 35, 0.55, refine="pamr", templates="subset")
    assert model.model.settings == settings
    protocol = make_protocol(model.model)
    cleaned = {
        name: protocol.options_of(load_benchmark(name)).cleaning
        for name in ("voc", "coco_object", "context", "voc20", "ade20k")
    }
    assert [name for name, clean in cleaned.items() if clean] == ["voc", "coco_object"]
    shapes = {"backbone/patch_kernel": (14, 14, 3, 1024), "projection/out/kernel": (1024, 1024)}
    large = Method("dinov2-reg", tuple(shapes.items()))
    assert (large.threshold, large.resize_dim, large.patch_size) == (0.54, 448, 1)


def test_it_is_kept_segments_and_is_exported(model: Talk2DINO, tmp_path: Path) -> None:
    names = ["a cat", "grass"]
    texts = model.embed_texts(names)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-6)
    one = model.embed_texts(names, templates="simple")
    clip = model.method.text_encoder.frozen
    tokens = clip.tokenizer()([f"a photo of a {name}." for name in names])
    features = clip.embed_texts(model.model.params, jnp.asarray(tokens))
    projected = np.asarray(model.project_text(features))
    np.testing.assert_allclose(
        one, projected / np.linalg.norm(projected, axis=1, keepdims=True), atol=1e-6
    )

    save_model(tmp_path / "model", model.model)
    loaded = load_model(tmp_path / "model")
    assert loaded.method == model.method and loaded.settings == model.model.settings
    segmenter = Segmenter(loaded)
    np.testing.assert_allclose(segmenter.embed_texts(names), texts, atol=1e-6)
    found = segmenter.masks(IMAGE[0], TEXTS, pamr=False)
    np.testing.assert_allclose(classes_first(found), GOLDEN["70x70/mask_bg0_pamr0"], atol=1e-6)
    program = export_masks(
        loaded.method, loaded.params, image_size=70, options=MaskOptions(), platforms=["cpu"]
    )
    masks = export.deserialize(program.serialized).call(IMAGE, TEXTS)
    np.testing.assert_allclose(classes_first(masks[0]), classes_first(found), atol=1e-6)


def test_dinov3_is_asked_before_its_rotary_embedding(tmp_path: Path) -> None:
    prefix = "w/visual_model.backbone."
    backbone = Backbone.from_file(
        write_golden(tmp_path / "v3.safetensors", "dinov3", prefix), heads=2
    )
    first = {k: x for k, x in backbone.params.items() if k not in ("blocks_1", "blocks_2")}
    image = jax.random.normal(jax.random.key(0), (1, 48, 32, 3))
    others = {**first, "rope_periods": 2 * first["rope_periods"]}
    found, turned = (head_features(backbone.vit, params, image) for params in (first, others))
    assert found.logits.shape == (1, 2, 3, 2)
    np.testing.assert_array_equal(found.logits, turned.logits)
    assert np.abs(found.patches - turned.patches).max() > 1e-3


def test_what_does_not_fit_is_named(model: Talk2DINO, files: Files, tmp_path: Path) -> None:
    projection, backbone, clip = files
    bare = Talk2DINO.from_file(projection, Backbone.from_file(backbone))
    with pytest.raises(InputError, match="clip="):
        bare.embed_texts(["a cat"])
    with pytest.raises(InputError, match="features.* 32"):
        bare.project_text(np.zeros((2, 512)))
    for images, message in (
        (IMAGE[0], "images has shape"),
        (IMAGE.astype(np.int32), "images is int32"),
        (IMAGE.astype(np.float32), "uint8"),
    ):
        with pytest.raises(InputError, match=message):
            bare.masks(images, TEXTS)
    with pytest.raises(InputError, match="text_embeddings"):
        bare.masks(IMAGE, TEXTS[:, :5])
    with pytest.raises(InputError, match="text_embeddings.*embed_texts"):
        bare.masks(IMAGE, ["a cat"])
    with pytest.raises(InputError, match="x: .*multiple of 14"):
        bare.head_features(IMAGE[:, 1:])
    with pytest.raises(InputError, match="resize_dim=100.*14"):
        Talk2DINO.from_file(projection, backbone, resize_dim=100)
    prefix = "w/visual_model.backbone."
    other = write_golden(tmp_path / "v3.safetensors", "dinov3", prefix)
    with pytest.raises(InputError, match="projection.safetensors.* 128.* 96"):
        Talk2DINO.from_file(projection, Backbone.from_file(other, heads=2))
    wide = write_golden(
        tmp_path / "wide.safetensors", "talk2dino",
        **{"linear_layer.weight": np.zeros((128, 16), np.float32)},
    )  # fmt: skip
    with pytest.raises(InputError, match="wide.safetensors.* 16 .*clip.safetensors.* 32"):
        Talk2DINO.from_file(wide, backbone, clip)
    with pytest.raises(InputError, match="dtype"):
        Talk2DINO(model.model, dtype="float16")
