"""ProxyCLIP from files: windows and labels, saving, exporting, by name, and what goes wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import export

from tcl_jax import Segmenter
from tcl_jax.errors import InputError
from tcl_jax.inference.engine import ImageTask, MaskEngine
from tcl_jax.inference.export import export_masks
from tcl_jax.inference.label_rule import LabelRule
from tcl_jax.inference.masks import MaskOptions
from tcl_jax.inference.model import Model, load_model, model_from_torch, save_model
from tcl_jax.inference.pretrained import load_pretrained
from tcl_jax.inference.windows import SlidingWindow
from tcl_jax.parallel.mesh import data_mesh
from tests.inference.test_backbone import weights_of, write
from tests.inference.test_dino import dino_of
from tests.reference import GOLDEN, load, relative_error

CLIP = GOLDEN / "clip_state_dict.npz"
COSINES = MaskOptions(scores="cosines")


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("dino") / "dino.pth", dino_of("proxyclip"))


@pytest.fixture(scope="module")
def model(dino: Path) -> Model:
    return model_from_torch(CLIP, method="proxyclip", second=dino, activation="quick_gelu")


def test_windows_and_labels_are_the_references(model: Model) -> None:
    golden = load("methods/proxyclip")
    image = np.moveaxis(golden["seg_a/image"][0], 0, -1)
    window, stride = int(golden["window"]), int(golden["stride"])
    sliding = SlidingWindow.over(image.shape[:2], window, stride, model.method.patch_size)
    engine = MaskEngine(model.method, data_mesh(jax.local_devices()[:1]), 2)
    task = ImageTask(0, sliding, image)
    ((_, cosines),) = engine(model.params, [task], golden["text"], COSINES)
    class_of = golden["query_idx"].tolist()
    classes = tuple(
        tuple(text for text, i in enumerate(class_of) if i == number) for number in {*class_of}
    )
    rule = LabelRule(classes, float(golden["logit_scale"]), float(golden["seg_a/prob_thd"]))
    labels = rule.labels(cosines, tuple(golden["seg_a/ori_shape"].tolist()))
    np.testing.assert_array_equal(labels, golden["seg_a/labels"])


def test_dense_features_of_one_image(dino: Path) -> None:
    golden = load("methods/proxyclip")
    segmenter = Segmenter.from_torch(CLIP, method="proxyclip", second=dino)
    image = np.moveaxis(golden["s64x96/image"][0], 0, -1)
    found = segmenter.dense_features(image)
    assert found.shape == (8, 12, 32) and found.dtype == np.float32
    assert relative_error(found.reshape(1, 96, 32), golden["s64x96/features"]) < 1e-5
    assert segmenter.dense_features(np.pad(image, ((0, 7), (0, 3), (0, 0)))).shape == (8, 12, 32)
    with pytest.raises(InputError, match="x: image of 64x7 pixels has not one whole patch of 8"):
        segmenter.dense_features(image[:, :7])


def test_sides_are_padded_to_multiples_of_56(model: Model) -> None:
    """As the reference pads a window of 100 x 90, with zeros around it."""
    image = np.random.default_rng(0).normal(size=(100, 90, 3)).astype(np.float32)
    padded = np.pad(image, ((6, 6), (11, 11), (0, 0)))
    texts = load("methods/proxyclip")["text"]
    found, whole = (Segmenter(model).masks_normalized(x, texts) for x in (image, padded))
    np.testing.assert_allclose(found, whole[6:-6, 11:-11], atol=1e-6)


def test_saved_exported_and_loaded_again(model: Model, tmp_path: Path) -> None:
    save_model(tmp_path / "model", model)
    again = load_model(tmp_path / "model")
    assert again.method == model.method and again.settings == model.settings
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    texts = load("methods/proxyclip")["text"]
    segmenter = Segmenter(again)
    assert segmenter.fingerprint == Segmenter(model).fingerprint
    made = export_masks(
        model.method, model.params, image_size=(60, 90), options=replace(COSINES, logit_scale=40.0),
        text_embeddings=texts, platforms=("cpu",),
    )  # fmt: skip
    # Any number of images: the program is for no size of a batch.
    exported = export.deserialize(made.serialized).call(np.stack([image] * 2))
    mean, std = model.method.pixel_statistics
    normalised = np.float32((image / 255 - mean) / std)
    expected = segmenter.masks_normalized(normalised, texts)
    np.testing.assert_allclose(exported[1], expected, atol=3e-6)


def test_by_name_with_any_encoder(dino: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    texts = load("methods/proxyclip")["text"]
    seen = {}
    for family in ("dinov3", "tips"):
        second = write(tmp_path / f"{family}.npz", weights_of(family))
        segmenter = Segmenter.from_pretrained("proxyclip", clip=CLIP, second=second)
        assert segmenter._method.describe()["second"] == family
        seen[family] = segmenter.masks(image, texts)
        assert np.isfinite(seen[family]).all()
    assert np.abs(seen["dinov3"] - seen["tips"]).max() > 1e-3
    model = load_pretrained("proxyclip", clip=CLIP, second=dino)
    assert model.origin["second"]["file"] == "dino.pth" and model.settings.stride == 21
    assert {"maskclip", "sclip", "proxyclip"} <= {*model.methods}
    assert model.with_method("maskclip").method.name == "maskclip"


def test_without_a_file_the_second_encoder_is_dino(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    write(tmp_path / "weights/dino_vitbase8_pretrain.pth", dino_of("proxyclip"))
    with pytest.raises(InputError, match="dino_vitbase8.*DINO of a size of its own.*not dino:B/8"):
        load_pretrained("proxyclip", clip=CLIP)


def test_a_prefix_is_of_either_file(dino: Path, tmp_path: Path) -> None:
    tensors = dino_of("proxyclip")
    both = {
        f"{start}.backbone.{k}": x for start in ("teacher", "student") for k, x in tensors.items()
    }
    second = write(tmp_path / "run.npz", both)
    found = model_from_torch(CLIP, method="proxyclip", second=second, prefix="teacher")
    assert found.origin["second"]["prefix"] == "teacher.backbone."
    clips = load("clip_state_dict")
    two = write(tmp_path / "clips.npz", {f"{x}.{k}": y for x in "ab" for k, y in clips.items()})
    assert model_from_torch(two, method="proxyclip", second=dino, prefix="a")
    with pytest.raises(InputError, match="prefix 'c' is of no model"):
        model_from_torch(CLIP, method="proxyclip", second=dino, prefix="c")


def test_what_does_not_go_together(dino: Path) -> None:
    for arguments, message in (
        ({"method": "proxyclip"}, "'proxyclip' needs another encoder.*second=.*'dino:B/8'"),
        ({"method": "sclip", "second": dino}, "dino.pth' belongs to method 'proxyclip'"),
        ({"second": dino}, "choose method='proxyclip' without tcl="),
        ({"method": "proxyclip", "second": dino, "tcl": "official"}, "without tcl="),
        ({"method": "proxyclip", "second": "dino:B/9"}, "'dino:B/9' do not exist.*dino:B/8"),
        ({"method": "proxyclip", "second": CLIP}, "clip_state_dict.npz.*no vision tower of DINO,"),
    ):
        with pytest.raises(InputError, match=message):
            model_from_torch(CLIP, **arguments)
