"""The result of a segmentation: labels, areas, pictures and its files."""

from __future__ import annotations

import doctest
import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tcl_jax.errors import InputError, RunError
from tcl_jax.inference import segmentation as segmentation_module
from tcl_jax.inference.merging import SoftMasks
from tcl_jax.inference.segmentation import Segmentation
from tcl_jax.pictures.palette import class_palette
from tests.reference import label_map


def result_of(
    size: tuple[int, int] = (30, 40),
    count: int = 3,
    threshold: float | None = 0.5,
    palette: np.ndarray | None = None,
) -> Segmentation:
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    small = np.random.default_rng(0).random((3, 4, count), np.float32)
    texts = tuple(f"thing {i}" for i in range(count))
    return Segmentation(image, texts, SoftMasks.of_array(small).at((16, 20)), threshold, palette)


# ------------------------------------------------------------------------------------------ content


def test_labels_names_and_fractions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation_module, "_PART", 77)
    result = result_of()
    assert result.names == ("background", "thing 0", "thing 1", "thing 2")
    assert result.labels.shape == (30, 40) and result.labels.dtype == np.uint16
    expected = label_map(result.masks, 0.5)
    np.testing.assert_array_equal(result.labels, expected)
    assert result.labels is result.labels
    for i, name in enumerate(result.names):
        assert result.fractions[name] == pytest.approx((expected == i).mean(), abs=1e-12)
    assert result.scores.shape == (16, 20, 3) and result.masks.shape == (30, 40, 3)
    np.testing.assert_array_equal(result_of((16, 20)).masks, result.scores)

    all_named = result_of(threshold=None)
    assert all_named.names == all_named.texts
    np.testing.assert_array_equal(all_named.labels, np.argmax(all_named.masks, -1))
    assert list(all_named.fractions) == ["thing 0", "thing 1", "thing 2"]
    # A text may be called so where there is no class of it.
    one = Segmentation(all_named.image, ("background",), all_named.scores[..., :1])
    assert one.fractions == {"background": 1.0}


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
    np.testing.assert_array_equal(result_of(palette=palette).colors, palette)
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
    image, scores = np.zeros((2, 2, 3), np.uint8), np.ones((2, 2, 1), np.float32)
    assert len(repr(Segmentation(image, ("\u200f" + "x" * 500,), scores)).encode()) < 150
    assert result_of()._repr_png_().startswith(b"\x89PNG")
    assert doctest.testmod(segmentation_module) == (0, 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": ("a",)}, "1 texts and 2 scores"),
        ({"texts": (), "scores": np.zeros((2, 2, 0), np.float32)}, "0 texts"),
        ({"texts": ("a", "a")}, "'a' is given twice"),
        ({"texts": ("background", "a")}, "'background' is the name of the class"),
        ({"scores": np.full((2, 2, 2), np.nan, np.float32)}, "not finite"),
        ({"scores": np.full((2, 2, 2), np.inf, np.float32)}, "not finite"),
        ({"image": np.zeros((0, 4, 3), np.uint8)}, "image of shape"),
        ({"scores": np.zeros((0, 2, 2), np.float32)}, "scores of"),
    ],
)
def test_parts_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    parts = {
        "image": np.zeros((4, 4, 3), np.uint8),
        "texts": ("a", "b"),
        "scores": np.zeros((2, 2, 2), np.float32),
        "threshold": 0.5,
    }
    assert Segmentation(**parts).labels.shape == (4, 4)
    with pytest.raises(InputError, match=message):
        Segmentation(**{**parts, **changes})


# -------------------------------------------------------------------------------------------- files


def test_save(tmp_path: Path) -> None:
    result, folder = result_of(), tmp_path / "new/deep"
    stem = "a photo.of 日本.v2"
    paths = result.save(folder, stem, extra={"options": {"pamr": True}})
    endings = {"overlay": "_overlay.png", "labels": "_labels.png", "masks": "_masks.npz"}
    endings["json"] = ".json"
    assert paths == {kind: folder / f"{stem}{ending}" for kind, ending in endings.items()}
    assert sorted(paths.values()) == sorted(folder.iterdir())
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


def test_many_and_odd_texts(tmp_path: Path) -> None:
    texts = ("日本語", "a\nb", "a\u200f", "\"quoted\" 'name'", "x" * 5000, *map(str, range(295)))
    scores = np.zeros((20, 20, 300), np.float32)
    scores.reshape(-1, 300)[np.arange(300), np.arange(300)] = 1
    result = Segmentation(np.zeros((20, 20, 3), np.uint8), texts, scores, threshold=0.5)
    paths = result.save(tmp_path)
    with Image.open(paths["labels"]) as labels:
        assert labels.mode == "I;16" and result.labels.max() == 300
        np.testing.assert_array_equal(np.asarray(labels), result.labels)
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


def test_json_is_written_last_and_removed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = result_of()
    result.save(tmp_path)
    assert (tmp_path / "image.json").exists()

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SoftMasks, "bands", full)
    with pytest.raises(RunError, match="No space left"):
        result.save(tmp_path)
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
        ({"extra": {"texts": [], "masks": 1}}, "extra has masks, texts"),
        ({"extra": {"x": object()}}, "extra.*JSON"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        inspect.unwrap(Segmentation.save)(result_of(), tmp_path, **arguments)
    assert not list(tmp_path.iterdir())
