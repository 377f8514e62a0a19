"""CLIP-DINOiser from files: the authors' label maps, what is kept, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from tcl_jax import convert
from tcl_jax.errors import InputError
from tcl_jax.inference.engine import ImageTask, MaskEngine
from tcl_jax.inference.export import export_masks
from tcl_jax.inference.masks import MaskOptions, grid_masks
from tcl_jax.inference.model import load_model, model_from_torch, save_model
from tcl_jax.inference.pretrained import load_pretrained
from tcl_jax.inference.segmenter import Segmenter
from tcl_jax.inference.windows import SlidingWindow
from tcl_jax.ops.images import normalize
from tcl_jax.parallel.mesh import local_mesh
from tcl_jax.weights.description import describe_file
from tests.clip_dinoiser_files import CLIP, GOLDEN, HEAD, golden_model, golden_pixels, write_head
from tests.reference import read_state_dict, relative_error
from tests.released_files import WRITERS

TEXTS = GOLDEN["class_embeddings"]
NAME = "clip_dinoiser"


@pytest.mark.parametrize("name", ["seg_a", "seg_c"])
def test_label_maps_of_windows(name: str) -> None:
    model, pixels = golden_model(), np.asarray(golden_pixels(f"{name}/image01")[0])
    sliding = SlidingWindow.over(pixels.shape[:2], 64, 32, model.method.patch_size)
    engine = MaskEngine(model.method, local_mesh())
    options = MaskOptions(
        scores="probabilities", logit_scale=100.0, cleaning=bool(GOLDEN[f"{name}/apply_background"])
    )
    [(_, found)] = engine(model.params, [ImageTask(name, sliding, pixels)], TEXTS, options)
    rows, columns = (int(side) for side in GOLDEN[f"{name}/ori_shape"])
    np.testing.assert_array_equal(found.labels((rows, columns)), GOLDEN[f"{name}/labels"])
    if (probs := GOLDEN.get(f"{name}/probs")) is not None:
        assert relative_error(np.moveaxis(found.at((rows, columns)), -1, 0), probs) < 3e-5


def test_one_program_for_all_sizes_of_as_many_patches() -> None:
    """Windows are filled up with black before, which is what the method itself does."""
    method, params = golden_model().method, golden_model().params
    engine, options = MaskEngine(method, local_mesh()), MaskOptions(cleaning=True)
    plainly = jax.jit(grid_masks, static_argnums=(0, 4))
    before = plainly._cache_size()  # which other tests of this function have filled
    rng = np.random.default_rng(0)
    for height, width in ((64, 112), (64, 99), (57, 97)):
        pixels = rng.integers(1, 256, (height, width, 3), np.uint8)
        sliding = SlidingWindow.over((height, width), width, 1, method.patch_size)
        [(_, found)] = engine(params, [ImageTask(0, sliding, pixels)], TEXTS, options)
        image = normalize(jnp.asarray(pixels[None]), method.pixel_statistics)
        expected = plainly(method, params, image, jnp.asarray(TEXTS), options)
        np.testing.assert_allclose(found.grids, expected, atol=1e-5)
    assert engine._compiled._cache_size() == 1
    assert plainly._cache_size() == before + 3


def test_dense_features_of_an_image_of_any_size(tmp_path: Path) -> None:
    segmenter = Segmenter.from_torch(CLIP, method=NAME, head=write_head(tmp_path / "last.pt"))
    found = segmenter.dense_features(golden_pixels("s60x90/image01")[0])
    assert relative_error(found, np.moveaxis(GOLDEN["s60x90/pooled"][0], 0, -1)) < 1e-5


def test_the_head_finds_the_background_of_a_photo(tmp_path: Path) -> None:
    segmenter = Segmenter.from_pretrained(NAME, **WRITERS[NAME](tmp_path))
    image = np.uint8(255 * np.moveaxis(GOLDEN["seg_a/image01"][0], 0, -1))
    for words in (["cat"], ["cat", "dog"]):
        found = segmenter.segment(image, words, threshold=0.01)
        assert 0.1 < np.mean(found.labels == 0) < 0.9
        everywhere = segmenter.segment(image, words, background=False)
        assert everywhere.scores.sum(axis=-1).min() > 0.99


def test_kept_exported_and_given_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = golden_model()
    save_model(tmp_path / "model", model)
    loaded = load_model(tmp_path / "model")
    assert loaded.method == model.method and loaded.settings == model.settings
    assert Segmenter(loaded).fingerprint == Segmenter(model).fingerprint
    assert {"maskclip", NAME} <= {*loaded.methods}
    assert {*loaded.with_method("maskclip").params} == {"clip"}

    image = np.random.default_rng(0).integers(0, 256, (1, 30, 50, 3), np.uint8)
    program = export_masks(
        model.method, model.params, image_size=(30, 50), options=MaskOptions(cleaning=True)
    )
    called = export.deserialize(program.serialized).call(image, TEXTS)
    task = ImageTask(0, SlidingWindow.over((30, 50), 50, 1, 1), image[0])
    engine = MaskEngine(model.method, local_mesh())
    [(_, masks)] = engine(model.params, [task], TEXTS, MaskOptions(cleaning=True))
    np.testing.assert_allclose(called[0], masks.at((30, 50)), atol=2e-5)

    convert.run(["export-torch", str(tmp_path / "model"), str(tmp_path / "head.safetensors")])
    written = read_state_dict(tmp_path / "head.safetensors")
    assert written.keys() == HEAD.keys()
    for key, tensor in written.items():
        np.testing.assert_array_equal(tensor, HEAD[key])
    convert.run(["inspect", str(tmp_path / "head.safetensors")])
    assert "CLIP-DINOiser's head of 24 channels, for a CLIP of width 128" in capsys.readouterr().out


def test_a_head_of_every_format(tmp_path: Path) -> None:
    expected = golden_model().params["head"]["projection"]["kernel"]
    np.savez(tmp_path / "head.npz", **HEAD)
    torch = write_head(tmp_path / "last.pt")
    for path, prefix in ((torch, "model_state_dict."), (tmp_path / "head.npz", "")):
        model = load_pretrained(NAME, clip=CLIP, head=path)
        assert model.method == golden_model().method  # of LAION's activation, as nothing tells it
        assert model.origin["head"]["prefix"] == prefix
        np.testing.assert_array_equal(model.params["head"]["projection"]["kernel"], expected)


def test_what_does_not_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weight, background = HEAD["obj_proj.weight"], HEAD["bkg_decoder.weight"]
    for name, changes, message in (
        ("narrow", {"obj_proj.weight": weight[:, :64]}, "blocks are 64 wide.*given are 128"),
        ("flat", {"obj_proj.weight": weight[0]}, "3x3 convolution"),
        ("other", {"bkg_decoder.weight": background[:, :5]}, "bkg_decoder.weight.*shape"),
        ("short", {"obj_proj.bias": HEAD["obj_proj.bias"][:9]}, "obj_proj.bias.*shape"),
    ):
        path = write_head(tmp_path / f"{name}.pt", {**HEAD, **changes})
        with pytest.raises(InputError, match=f"{name}.pt.*{message}"):
            model_from_torch(CLIP, method=NAME, head=path)
        describe_file(str(path))  # without an error
    lacking = write_head(tmp_path / "lacking.pt", {"obj_proj.weight": weight})
    with pytest.raises(InputError, match=r"lacking.pt.*lacks 3 of 4 tensors"):
        model_from_torch(CLIP, method=NAME, head=lacking)
    with pytest.raises(InputError, match=r"clip_state_dict.npz.*not a head.*obj_proj.weight"):
        model_from_torch(CLIP, method=NAME, head=CLIP)
    with pytest.raises(InputError, match=r"absent.pt.*do not exist.*'official'"):
        model_from_torch(CLIP, method=NAME, head="absent.pt")
    for given, message in (
        ({"method": NAME}, "needs a head beside CLIP.*'official'"),
        ({"head": lacking}, "belongs to method 'clip_dinoiser'"),
        ({"head": lacking, "method": "maskclip"}, "belongs to method 'clip_dinoiser'"),
        ({"head": lacking, "method": NAME, "tcl": "official"}, "without tcl="),
    ):
        with pytest.raises(InputError, match=message):
            model_from_torch(CLIP, **given)
    model_from_torch(
        CLIP, method=NAME, head=write_head(tmp_path / "last.pt"), activation="quick_gelu"
    )
    assert "masks are wrong with another CLIP than a head was trained on" in caplog.text
