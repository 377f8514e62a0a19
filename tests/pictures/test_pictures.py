"""Pictures: colours where they belong, sizes as said, files whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tcl_jax.pictures import legend as legend_module
from tcl_jax.pictures import overlays
from tcl_jax.pictures.legend import LegendEntry, for_display, legend_page
from tcl_jax.pictures.lettering import text_width, wrap
from tcl_jax.pictures.overlays import comparison_grid, enlarge, overlay, save_png, shrink
from tcl_jax.pictures.palette import DISTINCT, class_palette

PALETTE = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)


def test_overlay_tints_classes_and_spares_the_background() -> None:
    image = np.full((2, 2, 3), 100, np.uint8)
    tinted = overlay(image, np.array([[0, 1], [2, 0]]), PALETTE, opacity=0.5)
    np.testing.assert_array_equal(tinted[0, 0], [100, 100, 100])
    np.testing.assert_array_equal(tinted[0, 1], [178, 50, 50])
    np.testing.assert_array_equal(tinted[1, 0], [50, 50, 178])
    np.testing.assert_array_equal(overlay(image, np.zeros((2, 2), int), PALETTE), image)
    everything = overlay(image, np.array([[0, 1], [2, 0]]), PALETTE, opacity=1, untouched=None)
    np.testing.assert_array_equal(everything, PALETTE[[[0, 1], [2, 0]]])


def test_overlay_of_parts_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (9, 11, 3), np.uint8), rng.integers(0, 3, (9, 11))
    expected = np.where(
        (label > 0)[..., None], np.rint(0.75 * image + 0.25 * PALETTE[label].astype(float)), image
    )
    np.testing.assert_array_equal(overlay(image, label, PALETTE, 0.25), expected)
    monkeypatch.setattr(overlays, "_BAND_PIXELS", 10)
    np.testing.assert_array_equal(overlay(image, label, PALETTE, 0.25), expected)
    turned = overlay(image[:, ::-1], label[:, ::-1], PALETTE, 0.25)
    np.testing.assert_array_equal(turned, expected[:, ::-1])


def test_shrink_takes_the_mean_of_pixels() -> None:
    stripes = np.zeros((4, 300, 3), np.uint8)
    stripes[:, ::2] = 200
    assert (shrink(stripes, 150) == 100).all() and shrink(stripes, 150).shape == (2, 150, 3)
    assert shrink(stripes, 10).shape == (1, 10, 3)
    assert shrink(stripes, 300) is stripes


def test_enlarge_repeats_pixels() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    big = enlarge(image, 3)
    assert big.shape == (6, 6, 3)
    np.testing.assert_array_equal(big[::3, ::3], image)


def test_grid_shows_every_cell_and_the_legend() -> None:
    cells = {f"column {c}": [np.full((8, 8, 3), 40 * c + s, np.uint8) for s in range(3)]
             for c in range(1, 4)}  # fmt: skip
    legend = {"a red thing": (250, 1, 2), "a blue thing": (3, 4, 250)}
    page = comparison_grid(cells, legend)
    flat = {tuple(p) for p in page.reshape(-1, 3).tolist()}
    for column in cells.values():
        for picture in column:
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


# ----------------------------------------------------------------------------------------- colours


def test_colours_can_be_told_apart() -> None:
    colors = class_palette(DISTINCT, background=False).astype(float)
    distance = np.linalg.norm(colors[:, None] - colors[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    for count, least in ((8, 65), (20, 50), (64, 30), (DISTINCT, 12)):
        assert distance[:count, :count].min() > least, count
    first = colors[:20]
    assert (first.max(1) - first.min(1)).min() > 60  # none is grey
    assert np.linalg.norm(first, axis=1).min() > 120  # nor like the background


def test_a_name_keeps_its_colour() -> None:
    with_background = class_palette(5, background=True)
    assert with_background.shape == (6, 3) and with_background.dtype == np.uint8
    assert with_background[0].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(with_background[1:], class_palette(300, False)[:5])
    np.testing.assert_array_equal(class_palette(300, False)[DISTINCT:], class_palette(44, False))


# ------------------------------------------------------------------------------------------ legend


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((1, 1), (480, 480)),
        ((64, 64), (512, 512)),
        ((480, 300), (480, 300)),
        ((300, 4000), (150, 2000)),
        ((1500, 1000), (1500, 1000)),
        ((1, 5000), (16, 2000)),
        ((9000, 3), (2000, 16)),
    ],
)
def test_size_for_display(size: tuple[int, int], shown: tuple[int, int]) -> None:
    image = np.full((*size, 3), (10, 200, 30), np.uint8)
    result = for_display(image)
    assert result.shape == (*shown, 3)
    assert (result == (10, 200, 30)).all()


def test_enlarging_for_display_keeps_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 48, 3), np.uint8)
    np.testing.assert_array_equal(for_display(image)[::8, ::8], image)


def found(page: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Rows and columns of the pixels of a colour."""
    return np.argwhere((page == color).all(-1))


def test_page_shows_picture_and_entries_in_order() -> None:
    picture = np.random.default_rng(0).integers(0, 200, (300, 500, 3), np.uint8)
    colors = [(250, 1, 2), (3, 4, 250), (1, 240, 5)]
    entries = [LegendEntry(f"name {c}", c, 0.3) for c in colors]
    page = legend_page(picture, entries)
    where = found(page, tuple(picture[0, 0].tolist()))[0]
    np.testing.assert_array_equal(
        page[where[0] : where[0] + 300, where[1] : where[1] + 500], picture
    )
    swatches = [found(page, color) for color in colors]
    assert all(len(s) > 100 and s[:, 0].min() > where[0] + 300 for s in swatches)
    places = [(s[:, 1].min(), s[:, 0].min()) for s in swatches]
    assert places == sorted(places)  # down a column, then the next
    assert (page[[0, -1]] == 255).all() and (page[:, [0, -1]] == 255).all()
    longer = legend_page(picture, entries, absent=["a unicorn"])
    assert longer.shape[0] > page.shape[0]
    hollow = legend_page(picture, [LegendEntry("background", None, 1.0)])
    assert not len(found(hollow, colors[0]))


def test_narrow_pictures_get_a_page_that_has_room_for_names() -> None:
    page = legend_page(np.full((100, 16, 3), 7, np.uint8), [LegendEntry("a cat", (9, 9, 250), 1)])
    assert page.shape[1] >= 480
    place = found(page, (7, 7, 7))
    middle = (place[:, 1].min() + place[:, 1].max()) / 2
    assert abs(middle - page.shape[1] / 2) < 2


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


@pytest.mark.parametrize("width", [30, 200, 1000])
@pytest.mark.parametrize(
    "text", ["a cat", "word " * 60, "W" * 500, "a " + "b" * 80, "日本語の猫 " * 30, "x", "i" * 31]
)
def test_wrapped_lines_fit(text: str, width: int) -> None:
    lines = wrap(text.strip(), width, 15, 2)
    assert 1 <= len(lines) <= 2
    for line in lines:
        assert text_width(line, 15) <= width or len(line) <= 2
    whole = "".join(lines).replace(" ", "")
    if whole.endswith("…"):
        assert text.replace(" ", "").startswith(whole[:-1])
    else:
        assert whole == text.replace(" ", "")


@pytest.mark.parametrize(
    "name",
    ["", " ", "Grüße", "日本語", "بحر", "🐱", "a\nb\tc\0", "\ud800", "x" * 100_000, "\u200b"],
)
def test_any_name_can_be_drawn(name: str) -> None:
    page = legend_page(
        np.zeros((50, 500, 3), np.uint8), [LegendEntry(name, (250, 0, 0), 1.0)], absent=[name]
    )
    assert len(found(page, (250, 0, 0))) > 100 and page.shape[0] < 300
    assert (page[len(page) // 2 :] < 100).any()  # something was written


def test_shares_are_told_truly() -> None:
    shares = {0.5: "50.0 %", 1: "100.0 %", 0.99999: ">99.9 %", 1e-9: "<0.1 %", 0.0123: "1.2 %"}
    assert {share: legend_module._percent(share) for share in shares} == shares


def test_a_note_takes_the_place_of_the_share() -> None:
    picture = np.zeros((50, 500, 3), np.uint8)
    shared, noted = LegendEntry("a", None, 0.5), LegendEntry("a", None, 0.5, note="IoU 33.3")
    assert (shared.remark, noted.remark) == ("50.0 %", "IoU 33.3")
    same = legend_page(picture, [LegendEntry("a", None, 0.1, note="50.0 %")])
    np.testing.assert_array_equal(legend_page(picture, [shared]), same)
    assert not np.array_equal(legend_page(picture, [noted]), same)
