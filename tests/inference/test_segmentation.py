"""The result of a segmentation: labels as the device would make them, areas, and its files."""

from __future__ import annotations

import doctest
import inspect
import json
import tracemalloc
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tcl_jax.errors import InputError, RunError
from tcl_jax.inference import segmentation as segmentation_module
from tcl_jax.inference import upsampling
from tcl_jax.inference.segmentation import Segmentation
from tcl_jax.inference.upsampling import upsample, upsampled_argmax, upsampled_bands
from tcl_jax.ops.resize import resize
from tcl_jax.pictures.palette import class_palette
from tests.reference import label_map

SIZES = [
    ((7, 9), (7, 9)),
    ((7, 9), (14, 27)),
    ((7, 9), (50, 33)),
    ((50, 33), (7, 9)),
    ((1, 1), (5, 6)),
    ((1, 40), (9, 3)),
    ((28, 28), (1, 1)),
    ((16, 12), (333, 1500)),
    ((5, 6), (1, 3000)),
    ((6, 5), (3000, 1)),
]


def smooth_scores(height: int, width: int, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    small = rng.random((3, 4, count)).astype(np.float32)
    return np.asarray(resize(jnp.asarray(small), (height, width), method="bicubic"))


def result_of(
    size: tuple[int, int] = (30, 40), count: int = 3, threshold: float | None = 0.5, **options
) -> Segmentation:
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    texts = tuple(f"thing {i}" for i in range(count))
    scores = smooth_scores(16, 20, count)
    return Segmentation(image=image, texts=texts, scores=scores, threshold=threshold, **options)


# --------------------------------------------------------------------------------------- upsampling


@pytest.mark.parametrize(("small", "large"), SIZES)
def test_upsampling_is_that_of_the_device(small, large, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(0).random((*small, 3), np.float32)
    expected = np.asarray(resize(jnp.asarray(scores), large))
    masks = upsample(scores, large)
    assert masks.dtype == np.float32
    np.testing.assert_allclose(masks, expected, atol=2e-6)
    monkeypatch.setattr(upsampling, "_BAND_VALUES", 1000)
    bands = list(upsampled_bands(scores, large))
    assert len(bands) > 1 or masks.size < 2000 or large[0] == 1
    np.testing.assert_array_equal(np.concatenate(bands), masks)


@pytest.mark.parametrize("threshold", [None, 0.6, 0.0, 2.0])
@pytest.mark.parametrize(("small", "large"), SIZES)
def test_labels_are_the_argmax_of_the_masks(
    small, large, threshold, monkeypatch: pytest.MonkeyPatch
) -> None:
    for count in (1, 7):
        scores = np.random.default_rng(count).random((*small, count), np.float32)
        masks = upsample(scores, large)
        expected = label_map(masks, threshold)
        labels = upsampled_argmax(scores, large, threshold)
        assert labels.dtype == np.uint16
        np.testing.assert_array_equal(labels, expected)
        monkeypatch.setattr(upsampling, "_TILE_PIXELS", large[0] * large[1] // 9 + 20)
        monkeypatch.setattr(upsampling, "_TILE_COLUMNS", 11)
        np.testing.assert_array_equal(upsampled_argmax(scores, large, threshold), expected)
        monkeypatch.undo()


@pytest.mark.parametrize("threshold", [None, 0.7])
def test_classes_that_cannot_win_are_left_out_rightly(threshold: float | None) -> None:
    scores = smooth_scores(40, 30, 60)
    masks = upsample(scores, (200, 1300))
    expected = label_map(masks, threshold)
    labels = upsampled_argmax(scores, (200, 1300), threshold)
    np.testing.assert_array_equal(labels, expected)
    assert len(np.unique(labels)) > 8


def test_equal_scores_go_to_the_first() -> None:
    scores = np.full((4, 4, 3), 0.5, np.float32)
    assert (upsampled_argmax(scores, (9, 9), 0.5) == 0).all()
    assert (upsampled_argmax(scores, (9, 9), 0.4) == 1).all()
    assert (upsampled_argmax(scores, (9, 9), None) == 0).all()
    scores[..., 2] = 0.6
    assert (upsampled_argmax(scores, (4, 4), 0.5) == 3).all()
    assert (upsampled_argmax(scores, (4, 4), None) == 2).all()


def test_memory_does_not_grow_with_the_number_of_classes() -> None:
    scores = smooth_scores(32, 32, 100)
    tracemalloc.start()
    upsampled_argmax(scores, (1500, 1500), 0.5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6  # all masks would be 900e6


# ------------------------------------------------------------------------------------------ content


def test_labels_names_and_fractions() -> None:
    result = result_of()
    assert result.names == ("background", "thing 0", "thing 1", "thing 2")
    assert result.labels.shape == (30, 40) and result.labels.dtype == np.uint16
    expected = label_map(result.masks, 0.5)
    np.testing.assert_array_equal(result.labels, expected)
    assert result.labels is result.labels
    for i, name in enumerate(result.names):
        assert result.fractions[name] == pytest.approx((expected == i).mean(), abs=1e-12)
    assert sum(result.fractions.values()) == pytest.approx(1)

    all_named = result_of(threshold=None)
    assert all_named.names == all_named.texts
    np.testing.assert_array_equal(all_named.labels, np.argmax(all_named.masks, -1))
    assert list(all_named.fractions) == ["thing 0", "thing 1", "thing 2"]


def test_fractions_of_parts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = result_of().fractions
    monkeypatch.setattr(segmentation_module, "_BAND_PIXELS", 77)
    assert result_of().fractions == expected


def test_masks_at_the_working_size_are_the_scores() -> None:
    result = result_of((16, 20))
    assert result.masks is result.scores
    assert result_of((31, 20)).masks.shape == (31, 20, 3)


def test_overlay_spares_the_background_only() -> None:
    result = result_of()
    tinted = result.overlay()
    background = result.labels == 0
    assert 0.05 < background.mean() < 0.95
    np.testing.assert_array_equal(tinted[background], result.image[background])
    expected = 0.4 * result.image + 0.6 * result.colors[result.labels]
    np.testing.assert_allclose(tinted[~background], expected[~background], atol=0.51)
    np.testing.assert_array_equal(result.overlay(0), result.image)
    all_named = result_of(threshold=None)
    np.testing.assert_array_equal(all_named.overlay(1), all_named.colors[all_named.labels])
    with pytest.raises(InputError, match=r"opacity=1\.5"):
        result.overlay(1.5)


def test_own_palette() -> None:
    palette = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    result = result_of(palette=palette)
    np.testing.assert_array_equal(result.colors, palette)
    np.testing.assert_array_equal(result_of().colors, class_palette(3, True))
    with pytest.raises(InputError, match="2 colours for 4 labels"):
        result_of(palette=palette[:2])


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (40, 4000), (3000, 3)])
def test_legend_overlay_of_any_size(size: tuple[int, int]) -> None:
    result = result_of(size, threshold=0.1)
    page = result.legend_overlay()
    assert page.dtype == np.uint8 and 480 <= page.shape[1] <= 2100 and page.shape[0] <= 2300
    shown = {tuple(color) for color in page.reshape(-1, 3).tolist()}
    for name, color in zip(result.names, result.colors.tolist(), strict=True):
        if name != "background":
            assert (tuple(color) in shown) == (result.fractions[name] > 0)


def test_representations() -> None:
    text = repr(result_of())
    assert text.startswith("Segmentation(30 x 40 pixels, background from 0.5: ")
    assert text.count("%") == 4
    many = repr(result_of(count=40, threshold=None))
    assert " more)" in many and "background" not in many and len(many) < 300
    odd = Segmentation(
        image=np.zeros((2, 2, 3), np.uint8),
        texts=("\u200f" + "x" * 500,),
        scores=np.ones((2, 2, 1), np.float32),
    )
    assert len(repr(odd).encode()) < 150
    assert result_of()._repr_png_().startswith(b"\x89PNG")
    assert doctest.testmod(segmentation_module).attempted >= 5
    assert doctest.testmod(segmentation_module).failed == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": ("a",)}, "1 texts and 2 scores"),
        ({"texts": (), "scores": np.zeros((2, 2, 0), np.float32)}, "0 texts"),
        ({"texts": ("a", "a")}, "'a' is given twice"),
        ({"texts": ("A", "a")}, "are the same to CLIP"),
        ({"texts": ("background", "a")}, "'background' is what pixels are called"),
        ({"scores": np.full((2, 2, 2), np.nan, np.float32)}, "not finite"),
        ({"scores": np.full((2, 2, 2), np.inf, np.float32)}, "not finite"),
        ({"image": np.zeros((0, 4, 3), np.uint8)}, "image of shape"),
        ({"scores": np.zeros((0, 2, 2), np.float32)}, "scores of"),
    ],
)
def test_parts_that_do_not_fit(changes, message: str) -> None:
    parts = {
        "image": np.zeros((4, 4, 3), np.uint8),
        "texts": ("a", "b"),
        "scores": np.zeros((2, 2, 2), np.float32),
        "threshold": 0.5,
    }
    assert Segmentation(**parts).labels.shape == (4, 4)
    with pytest.raises(InputError, match=message):
        Segmentation(**{**parts, **changes})


def test_background_may_be_a_text_where_there_is_no_class_of_it() -> None:
    scores = np.zeros((2, 2, 1), np.float32)
    image = np.zeros((4, 4, 3), np.uint8)
    assert Segmentation(image=image, texts=("background",), scores=scores).fractions == {
        "background": 1.0
    }


# -------------------------------------------------------------------------------------------- files


def test_save(tmp_path: Path) -> None:
    result = result_of()
    paths = result.save(tmp_path / "new/deep", "photo", extra={"options": {"pamr": True}})
    assert {kind: path.name for kind, path in paths.items()} == {
        "overlay": "photo_overlay.png",
        "labels": "photo_labels.png",
        "masks": "photo_masks.npz",
        "json": "photo.json",
    }
    assert sorted(paths.values()) == sorted((tmp_path / "new/deep").iterdir())
    with Image.open(paths["labels"]) as labels:
        assert labels.mode == "P"
        np.testing.assert_array_equal(np.asarray(labels), result.labels)
        colors = np.asarray(labels.convert("RGB"))
    np.testing.assert_array_equal(colors, result.colors[result.labels])
    with Image.open(paths["overlay"]) as page:
        np.testing.assert_array_equal(np.asarray(page), result.legend_overlay())
    with np.load(paths["masks"]) as saved:
        assert set(saved.files) == {"masks", "texts"}
        assert saved["masks"].dtype == np.float16
        np.testing.assert_array_equal(saved["masks"], result.masks.astype(np.float16))
        assert tuple(saved["texts"]) == result.texts
    record = json.loads(paths["json"].read_text())
    assert record["format_version"] == 1
    assert record["texts"] == list(result.texts) and record["names"] == list(result.names)
    assert record["threshold"] == 0.5 and record["options"] == {"pamr": True}
    assert record["size"] == {"height": 30, "width": 40}
    assert record["working_size"] == {"height": 16, "width": 20}
    assert record["fractions"] == pytest.approx(result.fractions)
    assert record["colors"][0] == "#000000"
    assert [bytes.fromhex(c[1:]) for c in record["colors"]] == [bytes(c) for c in result.colors]


def test_masks_of_each_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = result_of()
    paths = result.save(tmp_path, masks="working")
    with np.load(paths["masks"]) as saved:
        np.testing.assert_array_equal(saved["masks"], result.scores.astype(np.float16))
    # What an earlier call wrote must not be taken for this result's.
    full, reduced = 2 * 30 * 40 * 3, 2 * 8 * 10 * 3
    for bound, size in {full: (30, 40), full - 1: (16, 20), reduced: (8, 10)}.items():
        monkeypatch.setattr(segmentation_module, "AUTO_MASK_BYTES", bound)
        with np.load(result.save(tmp_path)["masks"]) as saved:
            assert saved["masks"].shape == (*size, 3)
        record = json.loads((tmp_path / "image.json").read_text())
        assert record["mask_size"] == {"height": size[0], "width": size[1]}
    assert "masks" not in result.save(tmp_path, masks="none")
    assert not (tmp_path / "image_masks.npz").exists()
    assert json.loads((tmp_path / "image.json").read_text())["masks"] == "none"


def test_more_labels_than_a_palette_has(tmp_path: Path) -> None:
    count = 300
    scores = np.zeros((20, 20, count), np.float32)
    scores.reshape(-1, count)[np.arange(300), np.arange(300)] = 1
    result = Segmentation(
        image=np.zeros((20, 20, 3), np.uint8),
        texts=tuple(map(str, range(count))),
        scores=scores,
        threshold=0.5,
    )
    paths = result.save(tmp_path)
    with Image.open(paths["labels"]) as labels:
        assert labels.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(labels), result.labels)
    assert result.labels.max() == 300


def test_odd_texts_and_stems_are_saved(tmp_path: Path) -> None:
    texts = ("日本語", "a\nb", "a\u200f", "\"quoted\" 'name'", "x" * 5000)
    result = Segmentation(
        image=np.zeros((8, 8, 3), np.uint8), texts=texts, scores=smooth_scores(8, 8, 5)
    )
    paths = result.save(tmp_path, "a photo.of 日本.v2")
    assert paths["json"].name == "a photo.of 日本.v2.json"
    assert tuple(json.loads(paths["json"].read_text())["texts"]) == texts
    with np.load(paths["masks"]) as saved:
        assert tuple(saved["texts"]) == texts


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "taken/image_labels.png").mkdir(parents=True)
    for folder in ("file", "file/deep", "taken"):
        with pytest.raises(InputError, match=rf"cannot be written to .*{folder}"):
            result_of().save(tmp_path / folder)
    assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob("*.json"))
    with pytest.raises(InputError, match="cannot be written"):
        result_of().save(tmp_path, "x" * 300)


def test_json_is_written_last_and_removed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result_of().save(tmp_path)
    assert (tmp_path / "image.json").exists()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segmentation_module, "upsampled_bands", full)
    with pytest.raises(RunError, match="No space left"):
        result_of().save(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"image_overlay.png", "image_labels.png", "image_masks.npz"}
    with np.load(tmp_path / "image_masks.npz") as earlier:
        assert earlier["masks"].shape == (30, 40, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"masks": "half"}, "masks='half' is unknown"),
        ({"stem": "a/b"}, "stem='a/b' must be a file name"),
        ({"stem": ""}, "stem='' must be"),
        ({"stem": ".."}, "stem='..' must be"),
        ({"stem": "a\0"}, "must be a file name"),
        ({"extra": {"texts": []}}, "extra has texts"),
        ({"extra": {"masks": 1}}, "extra has masks"),
        ({"extra": {"x": object()}}, "extra.*JSON"),
    ],
)
def test_bad_arguments_write_nothing(arguments, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        inspect.unwrap(Segmentation.save)(result_of(), tmp_path, **arguments)
    assert not list(tmp_path.iterdir())
