"""Pictures: colours where they belong, sizes as said, files whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tcl_jax.pictures.grid import titled_grid
from tcl_jax.pictures.legend import LegendEntry, legend_page
from tcl_jax.pictures.lettering import text_width, wrap
from tcl_jax.pictures.overlays import overlay, save_png, shrink
from tcl_jax.pictures.palette import class_palette

PALETTE = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)


def test_overlay_tints_classes_and_spares_the_background() -> None:
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (9, 11, 3), np.uint8), rng.integers(0, 3, (9, 11))
    mixed = np.rint(0.75 * image + 0.25 * PALETTE[label].astype(float))
    expected = np.where((label > 0)[..., None], mixed, image)
    np.testing.assert_array_equal(overlay(image, label, PALETTE, 0.25), expected)
    everything = overlay(image, label, PALETTE, opacity=1, untouched=None)
    np.testing.assert_array_equal(everything, PALETTE[label])


def test_shrink_takes_the_mean_of_pixels() -> None:
    stripes = np.zeros((4, 300, 3), np.uint8)
    stripes[:, ::2] = 200
    assert (shrink(stripes, 150) == 100).all() and shrink(stripes, 150).shape == (2, 150, 3)
    assert shrink(stripes, 10).shape == (1, 10, 3)
    assert shrink(stripes, 300) is stripes


def found(page: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Rows and columns of the pixels of a colour."""
    return np.argwhere((page == color).all(-1))


def test_grid_shows_every_cell_under_its_title() -> None:
    titles = ("a", "a " * 9, "", "", "")
    cells = [(title, np.full((8, 16, 3), 40 + i, np.uint8)) for i, title in enumerate(titles)]
    page, low = titled_grid(cells, 2, lines=3, gap=4), titled_grid(cells, 2, gap=4)
    assert len(page) == len(low) + 2 * 21  # two lines more for the longest title of the first row
    places = [found(page, (40 + i,) * 3) for i in range(5)]
    assert all(len(place) == 8 * 16 for place in places)
    corners = np.array([place.min(0) for place in places])
    np.testing.assert_array_equal(
        corners - corners[0], [[12 * (i // 2), 20 * (i % 2)] for i in range(5)]
    )
    assert (page[: corners[0, 0]] < 100).any() and page.shape == (corners[4, 0] + 8, 36, 3)


def test_save_png_is_whole_or_absent(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    save_png(tmp_path / "new/picture.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new/picture.png")), image)
    with pytest.raises(TypeError):
        save_png(tmp_path / "bad.png", np.zeros((2, 2, 9), np.uint8))
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def test_colours_can_be_told_apart_and_stay_with_their_names() -> None:
    colors = class_palette(256, background=False).astype(float)
    distance = np.linalg.norm(colors[:, None] - colors[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    for count, least in ((8, 65), (20, 50), (64, 30), (256, 12)):
        assert distance[:count, :count].min() > least, count
    first = colors[:20]
    assert (first.max(1) - first.min(1)).min() > 60  # none is grey
    assert np.linalg.norm(first, axis=1).min() > 120  # nor like the background
    with_background = class_palette(5, background=True)
    assert with_background[0].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(with_background[1:], class_palette(300, False)[:5])
    np.testing.assert_array_equal(class_palette(300, False)[256:], class_palette(44, False))


# ------------------------------------------------------------------------------------------ legend


def test_page_shows_picture_and_entries_in_order() -> None:
    picture = np.random.default_rng(0).integers(0, 200, (300, 500, 3), np.uint8)
    colors = [(250, 1, 2), (3, 4, 250), (1, 240, 5)]
    entries = [LegendEntry(f"name {c}", c, 0.3) for c in colors]
    page = legend_page(picture, entries)
    top, left = found(page, tuple(picture[0, 0].tolist()))[0]
    np.testing.assert_array_equal(page[top : top + 300, left : left + 500], picture)
    swatches = [found(page, color) for color in colors]
    assert all(len(s) > 100 and s[:, 0].min() > top + 300 for s in swatches)
    places = [(s[:, 1].min(), s[:, 0].min()) for s in swatches]
    assert places == sorted(places)  # down a column, then the next
    assert (page[[0, -1]] == 255).all() and (page[:, [0, -1]] == 255).all()
    assert legend_page(picture, entries, absent=["a unicorn"]).shape[0] > page.shape[0]
    hollow = legend_page(picture[:, :16], [LegendEntry("background", None, 1.0)])
    place = found(hollow, tuple(picture[0, 0].tolist()))[0]
    assert not len(found(hollow, colors[0])) and hollow.shape[1] >= 480
    np.testing.assert_array_equal(hollow[place[0], place[1] :][:16], picture[0, :16])


def test_a_long_list_flows_in_columns_and_ends() -> None:
    picture = np.zeros((100, 1000, 3), np.uint8)
    entries = [LegendEntry(f"n{i}", (250, 0, 0), 0.001) for i in range(90)]
    page = legend_page(picture, entries)
    assert len(np.unique(found(page, (250, 0, 0))[:, 1])) > 4 * 15
    assert page.shape[0] < 900
    more = [*entries, *(LegendEntry(f"m{i}", (0, 0, 250), 0.001) for i in range(40_000))]
    page_of_more = legend_page(picture, more, absent=["x"] * 40_000)
    assert page.shape[0] < page_of_more.shape[0] < page.shape[0] + 160
    assert not len(found(page_of_more, (0, 0, 250)))


@pytest.mark.parametrize("width", [30, 1000])
@pytest.mark.parametrize(
    "text", ["a cat", "word " * 60, "W" * 500, "a " + "b" * 80, "日本語の猫 " * 30, "i" * 31]
)
def test_wrapped_lines_fit(text: str, width: int) -> None:
    lines = wrap(text.strip(), width, 15, 2)
    assert 1 <= len(lines) <= 2
    assert all(text_width(line, 15) <= width or len(line) <= 2 for line in lines)
    whole = "".join(lines).replace(" ", "")
    if whole.endswith("…"):
        assert text.replace(" ", "").startswith(whole[:-1])
    else:
        assert whole == text.replace(" ", "")


@pytest.mark.parametrize(
    "name", ["", "Grüße", "日本語", "بحر", "🐱", "a\nb\tc\0", "\ud800", "x" * 100_000]
)
def test_any_name_can_be_drawn(name: str) -> None:
    page = legend_page(
        np.zeros((50, 500, 3), np.uint8), [LegendEntry(name, (250, 0, 0), 1.0)], absent=[name]
    )
    assert len(found(page, (250, 0, 0))) > 100 and page.shape[0] < 300
    assert (page[len(page) // 2 :] < 100).any()  # something was written


def test_shares_are_said_truly_and_a_note_takes_their_place() -> None:
    shares = {0.5: "50.0 %", 1: "100.0 %", 0.99999: ">99.9 %", 1e-9: "<0.1 %", 0.0123: "1.2 %"}
    assert {share: LegendEntry("a", None, share).remark for share in shares} == shares
    assert LegendEntry("a", None, 0.5, "IoU 33.3").remark == "IoU 33.3"
