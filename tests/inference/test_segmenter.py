"""The public API: masks of the reference, the protocol's label maps, and every kind of call."""

from __future__ import annotations

import dataclasses
import doctest
import json
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import tcl_jax
from tcl_jax.errors import InputError
from tcl_jax.evaluation.protocol import make_protocol
from tcl_jax.inference import segmenter as segmenter_module
from tcl_jax.inference.model import load_model, model_from_torch, save_model
from tcl_jax.inference.segmenter import Segmenter, padded_count
from tcl_jax.inference.settings import InferenceSettings
from tcl_jax.ops.images import normalize
from tests.reference import GOLDEN, label_map, load, reference_torch_model, relative_error
from tests.tokenizer_files import write_tokenizer_file

SIZES = ("64x64", "70x90", "96x64")
WORDS = ["striped red", "plain blue", "dotted green"]


@pytest.fixture(scope="module")
def reference() -> Segmenter:
    """The reference model, read from its state dicts."""
    return Segmenter(reference_torch_model())


@pytest.fixture(scope="module")
def shapes() -> Segmenter:
    """The CLIP that ships."""
    return Segmenter.from_torch(clip="builtin:shapes_clip")


def write_safetensors(folder: Path) -> tuple[Path, Path]:
    paths = folder / "clip.safetensors", folder / "tcl.safetensors"
    for path, name in zip(paths, ("clip_state_dict", "tcl_state_dict"), strict=True):
        safetensors.numpy.save_file(load(name), path)
    return paths


def write_torch(folder: Path) -> tuple[Path, Path]:
    from tests.torch_files import save_state_dict, save_torchscript

    clip, tcl = folder / "ViT.pt", folder / "tcl.pth"
    save_torchscript(clip, load("clip_state_dict"), {"input_resolution": 64})
    save_state_dict(tcl, {"model": load("tcl_state_dict"), "epoch": 3})
    return clip, tcl


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_safetensors, write_torch])
def test_masks_match_reference_through_real_files(write: Any, tmp_path: Path) -> None:
    clip, tcl = write(tmp_path)
    segmenter = Segmenter.from_torch(clip=clip, tcl=tcl)
    golden = load("masks")
    for size in SIZES:
        image = np.moveaxis(golden[f"{size}/image"][0], 0, -1)
        for pamr, kp in ((0, 0.0), (1, 0.3)):
            masks = segmenter.masks_normalized(
                image, golden["text_emb"], pamr=bool(pamr), kp_weight=kp
            )
            expected = np.moveaxis(golden[f"{size}/mask_pamr{pamr}_kp{kp}"][0], 0, -1)
            assert relative_error(masks, expected) < 1e-4


def test_label_maps_of_the_protocol(reference: Segmenter) -> None:
    """Decode, resize, windows, PAMR, KP, merging, upsampling: all of it, pixel for pixel.

    tests/evaluation/test_run.py has all eight, by the evaluation's own way.
    """
    golden = load("eval/text_emb_and_pred")
    photo = GOLDEN / "eval/data/VOCdevkit/VOC2012/JPEGImages/voc_000001.jpg"
    image = np.ascontiguousarray(cv2.imread(str(photo))[..., ::-1])
    masks = reference.masks(image, golden["voc"], pamr=True, kp_weight=0.3)
    assert np.count_nonzero(label_map(masks, 0.4) != golden["voc/pred1"]) <= 5


def test_masks_are_those_of_the_window_at_the_images_size(reference: Segmenter) -> None:
    texts = load("masks")["text_emb"]
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    masks = reference.masks(image, texts, pamr=False)
    normalised = normalize(jnp.asarray(np.stack([image] * 2)))
    plain = reference.masks_normalized(normalised, texts, pamr=False)
    assert plain.shape == (2, 64, 64, 5)
    np.testing.assert_allclose(plain[1], masks, atol=1e-6)
    assert masks.dtype == np.float32 and masks.min() >= 0 and masks.max() <= 1
    small = reference.masks(image, texts, pamr=False, short_side=32)
    assert small.shape == masks.shape and np.abs(small - masks).max() > 1e-3


def test_windows_and_batches_of_them(reference: Segmenter) -> None:
    texts = load("masks")["text_emb"]
    rng = np.random.default_rng(0)
    square, wide = (rng.integers(0, 256, (64, side, 3), np.uint8) for side in (64, 200))
    masks = {
        (i, mode): reference.masks(image, texts, mode=mode, pamr=False)
        for i, image in enumerate((square, wide))
        for mode in ("slide", "whole")
    }
    np.testing.assert_array_equal(masks[0, "slide"], masks[0, "whole"])
    assert np.abs(masks[1, "slide"] - masks[1, "whole"]).max() > 1e-3
    batched = Segmenter(reference_torch_model(), batch_size=4).masks(wide, texts, pamr=False)
    np.testing.assert_allclose(batched, masks[1, "slide"], atol=1e-5)


def test_compiled_once_per_padded_shape_and_text_count() -> None:
    segmenter = Segmenter(reference_torch_model(), batch_size=1)
    texts = load("masks")["text_emb"]
    for height, width in [(64, 64), (70, 90), (200, 90), (65, 300), (33, 47)]:
        image = np.zeros((height, width, 3), np.uint8)
        for count in (5, 4, 3):
            assert segmenter.masks(image, texts[:count], pamr=False).shape[-1] == count
    assert segmenter._engine._compiled._cache_size() == 2  # 4 and 8 texts, windows of 64 x 64
    assert [padded_count(n) for n in (1, 2, 3, 4, 5, 8, 9, 150)] == [1, 2, 4, 4, 8, 8, 16, 152]


@pytest.mark.parametrize("method", ["maskclip", "sclip"])
def test_memory_does_not_grow_with_the_image_times_the_texts(method: str) -> None:
    shapes = Segmenter.from_torch("builtin:shapes_clip", method=method)
    texts = [f"thing {i}" for i in range(400)]
    image = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)
    shapes.embed_texts(texts, "identity")
    tracemalloc.start()
    result = shapes.segment(image, texts, pamr=False, templates="identity")
    assert result.labels.shape == (600, 800)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 400 * 600 * 800 / 10


def test_checkpoint_gives_the_same_masks(reference: Segmenter, tmp_path: Path) -> None:
    model = reference_torch_model()
    save_model(tmp_path / "model", model)
    loaded = load_model(tmp_path / "model")
    assert loaded.method == model.method and loaded.settings == model.settings
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b, strict=True), loaded.params, model.params
    )
    texts = load("masks")["text_emb"]
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    np.testing.assert_array_equal(
        Segmenter.from_checkpoint(tmp_path / "model").masks(image, texts),
        reference.masks(image, texts),
    )


def test_embeddings_follow_the_templates(shapes: Segmenter) -> None:
    plain = shapes.embed_texts(WORDS, templates="identity")
    assert plain.shape == (3, 64) and plain.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(plain, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(shapes.embed_texts(WORDS, ["{}"]), plain, atol=1e-6)
    custom = shapes.embed_texts(WORDS)
    np.testing.assert_array_equal(shapes.embed_texts(WORDS, "custom"), custom)
    assert np.abs(custom - plain).max() > 1e-3
    many = [f"{n} red" for n in range(11)]
    one_by_one = np.concatenate([shapes.embed_texts([text]) for text in many])
    fresh = Segmenter.from_torch(clip="builtin:shapes_clip").embed_texts(many)
    np.testing.assert_allclose(fresh, one_by_one, atol=1e-5)


def test_segment(shapes: Segmenter, tmp_path: Path) -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    image[10:40, 20:50] = (214, 32, 40)
    path = tmp_path / "red.png"
    Image.fromarray(image).save(path)
    result = shapes.segment(path, WORDS)
    assert result.names == ("background", *WORDS)
    assert result.labels.shape == (48, 64) and result.masks.shape == (48, 64, 3)
    assert result.threshold == 0.4
    assert shapes.segment(image, WORDS, pamr=False).threshold == 0.5
    assert shapes.segment(image, WORDS, threshold=0.0).threshold == 0.0
    assert (shapes.segment(image, WORDS, threshold=1.0).labels == 0).all()
    everything = shapes.segment(image, WORDS, background=False)
    assert everything.names == tuple(WORDS) and everything.threshold is None
    np.testing.assert_array_equal(everything.labels, np.argmax(everything.masks, axis=-1))
    np.testing.assert_array_equal(
        shapes.segment(Image.fromarray(image), WORDS).labels, result.labels
    )
    np.testing.assert_array_equal(shapes.segment(image / 255, WORDS).labels, result.labels)


def test_synonyms_show_one_thing(shapes: Segmenter) -> None:
    """On the patches the largest of their masks, as when benchmarks are judged."""
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    red, blue, green = np.moveaxis(shapes.segment(image, WORDS, pamr=False).scores, -1, 0)
    result = shapes.segment(image, [[WORDS[0], WORDS[2]], WORDS[1]], pamr=False)
    assert result.names == ("background", WORDS[0], WORDS[1])
    np.testing.assert_allclose(result.scores[..., 1], blue, atol=1e-6)
    best, largest = result.scores[..., 0], np.maximum(red, green)
    assert (red > green).any() and (green > red).any() and (best >= largest - 1e-6).all()
    np.testing.assert_allclose(best.max(), largest.max(), atol=1e-6)
    with pytest.raises(InputError, match="'plain blue' is given twice"):
        shapes.segment(image, [["blue", "plain blue"], "plain blue"])


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (700, 2)])
@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_odd_sizes(shapes: Segmenter, size: tuple[int, int], mode: str) -> None:
    image = np.full((*size, 3), 90, np.uint8)
    assert shapes.segment(image, WORDS[:1], mode=mode, pamr=False).labels.shape == size


def test_hundred_megapixels(shapes: Segmenter) -> None:
    result = shapes.segment(np.zeros((10_000, 10_000, 3), np.uint8), WORDS[:2], pamr=False)
    assert result.labels.shape == (10_000, 10_000)


def test_settings_of_a_model_are_its_defaults() -> None:
    model = reference_torch_model()
    settings = InferenceSettings(64, 32, threshold=0.7, refine="none", kp_weight=0.0)
    model = dataclasses.replace(model, settings=settings)
    own = Segmenter(model)
    for refine, score in (("none", 0.7), ("pamr", 0.4)):  # 0.7 is of masks without PAMR
        assert settings.background_score(model.method, refine) == score
        assert make_protocol(model, refine=refine).threshold == score
    assert make_protocol(model, refine="pamr", threshold=0.7).threshold == 0.7
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    texts = load("masks")["text_emb"]
    np.testing.assert_array_equal(
        own.masks(image, texts), own.masks(image, texts, pamr=False, kp_weight=0.0)
    )
    assert np.abs(own.masks(image, texts) - own.masks(image, texts, kp_weight=0.3)).max() > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": []}, "is empty"),
        ({"texts": "a cat"}, "single string 'a cat'"),
        ({"texts": ["a", "a", "b"]}, "texts: 'a' is given twice"),
        ({"texts": ["cut " * 90 + "a", "cut " * 90 + "b"]}, "are the same to"),
        ({"texts": ["a"], "threshold": 2.0}, "threshold=2.0 must be between"),
        ({"texts": ["a"], "kp_weight": -1.0}, "kp_weight=-1.0 must be between"),
        ({"texts": ["a"], "mode": "sideways"}, "mode='sideways' is unknown"),
        ({"texts": ["a"], "short_side": 0}, "short_side=0 must be"),
        ({"texts": ["a"], "templates": "nonsense"}, "'nonsense': no such set"),
        ({"texts": ["a"], "templates": ["no place"]}, "has no {}"),
    ],
)
def test_bad_arguments(shapes: Segmenter, arguments: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        shapes.segment(np.zeros((8, 8, 3), np.uint8), **arguments)


def test_a_vocabulary_of_ones_own(tmp_path: Path) -> None:
    ids = write_tokenizer_file(tmp_path)("a cat")["input_ids"]
    clip = GOLDEN / "clip_state_dict.npz"
    segmenter = Segmenter.from_torch(clip, tokenizer_file=str(tmp_path / "tokenizer.json"))
    model = model_from_torch(clip)
    params = jax.tree.map(jnp.float32, model.params["clip"])
    feature = model.method.text_encoder.embed_texts(params, jnp.array([ids]))
    found = segmenter.embed_texts(["a cat"], ["{}"])
    assert relative_error(found, feature / np.linalg.norm(feature)) < 1e-5


def test_bad_arrays(shapes: Segmenter) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(InputError, match=r"\(2, 5\); this model needs \[n, 64\]"):
        shapes.masks(image, np.zeros((2, 5), np.float32))
    with pytest.raises(InputError, match="x has shape"):
        shapes.masks_normalized(np.zeros((8, 8), np.float32), shapes.embed_texts(["a"]))
    spoilt = np.full((8, 8, 3), np.nan, np.float32)
    with pytest.raises(InputError, match="x: some values are not finite"):
        shapes.masks_normalized(spoilt, np.ones((1, 64)))
    with pytest.raises(InputError, match="x: some values are not finite"):
        shapes.dense_features(spoilt)
    with pytest.raises(InputError, match="not finite"):
        shapes.masks(image, np.full((1, 64), np.nan, np.float32))
    with pytest.raises(InputError, match="vocabulary of 600"):
        Segmenter.from_torch(GOLDEN / "clip_state_dict.npz").embed_texts(["a"])
    with pytest.raises(InputError, match="dtype='float8'"):
        Segmenter.from_torch(clip="builtin:shapes_clip", dtype="float8")
    with pytest.raises(InputError, match="batch_size=0"):
        Segmenter.from_torch(clip="builtin:shapes_clip", batch_size=0)


def test_checkpoints_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'.*nowhere' is not there"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds neither"):
        load_model(tmp_path)
    (tmp_path / "clip.pt").write_bytes(b"x")
    with pytest.raises(InputError, match="is a file; .*--clip"):
        load_model(tmp_path / "clip.pt")
    model = model_from_torch("builtin:shapes_clip")
    save_model(tmp_path / "model", model)
    config = tmp_path / "model/config.json"
    content = json.loads(config.read_text())
    del content["clip"]["patch_size"]
    config.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"config\.json"):
        load_model(tmp_path / "model")


def test_clip_and_tcl_that_do_not_fit() -> None:
    with pytest.raises(InputError, match=r"tcl_state_dict\.npz.*the blocks \[3\]|does not fit"):
        Segmenter.from_torch("builtin:shapes_clip", GOLDEN / "tcl_state_dict.npz")
    with pytest.raises(InputError, match=r"clip_state_dict\.npz.*not a TCL checkpoint"):
        Segmenter.from_torch(GOLDEN / "clip_state_dict.npz", GOLDEN / "clip_state_dict.npz")


def test_public_name_and_examples() -> None:
    assert tcl_jax.Segmenter is Segmenter
    assert "maskclip" in repr(Segmenter.from_torch(clip="builtin:shapes_clip"))
    results = doctest.testmod(segmenter_module)
    assert results.attempted >= 6 and results.failed == 0
