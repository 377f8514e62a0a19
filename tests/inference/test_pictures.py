"""Pictures: colours where they belong, sizes as said, files whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tcl_jax.inference.pictures import comparison_grid, enlarge, overlay, save_png

PALETTE = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)


def test_overlay_tints_classes_and_spares_the_background() -> None:
    image = np.full((2, 2, 3), 100, np.uint8)
    tinted = overlay(image, np.array([[0, 1], [2, 0]]), PALETTE, opacity=0.5)
    np.testing.assert_array_equal(tinted[0, 0], [100, 100, 100])
    np.testing.assert_array_equal(tinted[0, 1], [178, 50, 50])
    np.testing.assert_array_equal(tinted[1, 0], [50, 50, 178])
    np.testing.assert_array_equal(overlay(image, np.zeros((2, 2), int), PALETTE), image)


def test_enlarge_repeats_pixels() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    big = enlarge(image, 3)
    assert big.shape == (6, 6, 3)
    np.testing.assert_array_equal(big[::3, ::3], image)


def test_grid_shows_every_cell_and_the_legend() -> None:
    cells = {f"column {c}": [np.full((8, 8, 3), 40 * c + s, np.uint8) for s in range(3)]
             for c in range(1, 4)}  # fmt: skip
    legend = {"a red thing": (250, 1, 2), "a blue thing": (3, 4, 250)}
    page = comparison_grid(cells, legend, columns_of_scenes=2, enlarge_by=2, note="a note")
    flat = {tuple(p) for p in page.reshape(-1, 3).tolist()}
    for pictures in cells.values():
        for picture in pictures:
            assert tuple(picture[0, 0].tolist()) in flat
    assert set(legend.values()) <= flat
    assert page.dtype == np.uint8 and (page[0] == 255).all() and (page[-1] == 255).all()


def test_save_png_is_whole_or_absent(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    save_png(tmp_path / "new/picture.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new/picture.png")), image)
    with pytest.raises(TypeError):
        save_png(tmp_path / "bad.png", np.zeros((2, 2, 9), np.uint8))
    assert [p.name for p in tmp_path.iterdir()] == ["new"]
