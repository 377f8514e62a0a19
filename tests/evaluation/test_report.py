"""The report: numbers where they belong, honest labels, pictures that show what they say."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tcl_jax.errors import InputError
from tcl_jax.evaluation import report_pictures
from tcl_jax.evaluation.benchmark import BENCHMARKS, custom_benchmark, load_benchmark
from tcl_jax.evaluation.report import (
    caveats,
    describe_fingerprint,
    duration,
    escape_markdown,
    summarize,
    summary_table,
    write_markdown,
)
from tcl_jax.evaluation.report_html import write_html
from tcl_jax.evaluation.report_pictures import class_chart, shown_picture, write_pictures
from tcl_jax.evaluation.results import (
    BenchmarkResult,
    ImageResult,
    choose_shown,
    read_results,
    write_results,
)
from tcl_jax.evaluation.scores import Counts
from tcl_jax.pictures.palette import class_palette
from tests.evaluation.made_results import (
    counts_of,
    fingerprint_of,
    own_benchmark,
    result_of,
    shown_of,
)

NAN = float("nan")


# ---------------------------------------------------------------------------------- what is shown


def images_of(scores: dict[str, float]) -> list[ImageResult]:
    return [ImageResult(key, counts_of([score, NAN])) for key, score in scores.items()]


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ({}, {}),
        ({"a": 0.5, "b": NAN}, {"best": "a"}),
        ({"a": 0.5, "b": 0.6}, {"best": "b", "worst": "a"}),
        ({"a": 0.5, "b": 0.6, "c": 0.1}, {"best": "b", "median": "a", "worst": "c"}),
        ({"d": 0.4, "c": 0.4, "b": 0.4, "a": 0.4}, {"best": "a", "median": "b", "worst": "d"}),
        ({"a": 0, "b": 1, "x": NAN, "c": 0.2, "d": 0.3, "e": 0.4},
         {"best": "b", "median": "d", "worst": "a"}),
    ],
)  # fmt: skip
def test_best_median_and_worst(scores: dict[str, float], chosen: dict[str, str]) -> None:
    assert choose_shown(images_of(scores)) == chosen
    assert choose_shown(images_of(scores)[::-1]) == chosen


def test_score_of_an_image_counts_classes_that_are_only_predicted() -> None:
    zero, ten = np.array([5, 0, 0]), np.array([10, 5, 0])
    image = ImageResult("a", Counts(zero, ten, np.array([15, 0, 0])))
    assert image.miou == pytest.approx((5 / 20 + 0) / 2)


# ------------------------------------------------------------------------------------ results.json


def test_results_keep_all_digits_and_no_nan(tmp_path: Path) -> None:
    benchmark = own_benchmark(background=True, splits={"val": 3}, published={"Ann's": 41.2})
    counts = Counts(np.array([1, 2, 3, 0]), np.array([2, 5, 7, 0]), np.array([6, 4, 3, 0]))
    images = tuple(ImageResult(key, counts) for key in "ab")
    result = BenchmarkResult(benchmark, images, (), 12.5)
    written = write_results(tmp_path / "results.json", [result], fingerprint_of())

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    text = (tmp_path / "results.json").read_text()
    assert json.loads(text, parse_constant=refuse) == written
    assert read_results(tmp_path) == read_results(tmp_path / "results.json") == written
    entry = written["benchmarks"]["birds"]
    ious = [1 / 7, 2 / 7, 3 / 7]
    assert entry["miou"] == pytest.approx(100 * sum(ious) / 3, abs=1e-12)
    assert entry["macc"] == pytest.approx(100 * (1 / 6 + 2 / 4 + 1) / 3, abs=1e-12)
    assert entry["aacc"] == pytest.approx(100 * 6 / 13, abs=1e-12)
    assert list(entry["per_class"]) == [*benchmark.names]
    assert entry["per_class"]["sparrow"]["iou"] == pytest.approx(200 / 7, abs=1e-12)
    assert entry["per_class"][benchmark.names[-1]] == {"iou": None, "acc": None}
    assert (entry["images"], entry["full_set_images"], entry["split"]) == (2, 3, "val")
    assert entry["published"] == {"Ann's": 41.2} and entry["seconds"] == 12.5
    assert written["mean_miou"] is None and written["fingerprint"] == fingerprint_of()
    assert {"tcl_jax", "jax", "opencv"} <= set(written["versions"])


def test_mean_is_of_all_eight_or_none(tmp_path: Path) -> None:
    results = [result_of(name, 0.1 * (i + 1)) for i, name in enumerate(BENCHMARKS)]
    written = write_results(tmp_path / "a.json", [*results, result_of(own_benchmark())], {"x": 1})
    assert written["mean_miou"] == pytest.approx(45)
    assert write_results(tmp_path / "b.json", results[1:], {"x": 1})["mean_miou"] is None


GOOD = {"format_version": 1, "benchmarks": {"voc": {"miou": 1.5}}, "fingerprint": {"method": "tcl"}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no results at .*--output folder"),
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[1]", "no format_version"),
        ({"a": 1}, "no format_version"),
        ({**GOOD, "format_version": 2}, "format version 2, and this version of tcl_jax reads 1"),
        ({**GOOD, "format_version": True}, "no format_version"),
        ({**GOOD, "fingerprint": None}, "it has no fingerprint"),
        ({**GOOD, "benchmarks": {"voc": 3}}, "'voc' has no miou"),
        ({**GOOD, "benchmarks": {"voc": {"miou": "1"}}}, "'1', which is no number"),
        ({**GOOD, "benchmarks": {"voc": {"miou": NAN}}}, "is not finite"),
        ({**GOOD, "fingerprint": {"benchmarks": 3}}, "no table"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "results.json"
    if content is not None:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    for path in (file, tmp_path):
        with pytest.raises(InputError, match=message):
            read_results(path)
    file.write_text(json.dumps(GOOD))
    assert read_results(tmp_path) == GOOD


# ------------------------------------------------------------------------------------------- table


def cells_of(text: str) -> dict[str, list[str]]:
    """Cells by label of the rows of a text table."""
    lines = [line for line in text.splitlines() if not line.startswith("* ")]
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_table_stands_beside_the_published_rows() -> None:
    rows = {"TCL": {name: result_of(name, 0.3 + i / 50) for i, name in enumerate(BENCHMARKS)}}
    cells = cells_of(summary_table(rows, {"TCL": fingerprint_of()}))
    heads = "voc context object voc20 context59 stuff city ade mean"
    assert cells["mIoU, %"] == heads.split()
    measured = [30 + 2 * i for i in range(8)]
    assert [float(c) for c in cells["TCL, measured"]] == [*measured, 37]
    published = {
        "TCL": "51.2 24.3 30.4 77.5 30.3 19.6 23.1 14.9 33.9",
        "TCL + PAMR": "55.0 30.4 31.6 83.2 33.9 22.4 24.0 17.1 37.2",
    }
    for method, row in published.items():
        assert cells[f"{method}, published"] == row.split()
    assert list(cells)[1] == "TCL, measured" and len(cells) == 4


def test_two_methods_have_a_difference_and_gaps_a_dash() -> None:
    nothing = BenchmarkResult(load_benchmark("ade20k"), (), (), 0)
    rows = {
        "TCL + PAMR": {"voc": result_of("voc", 0.55), "ade20k": nothing},
        "MaskCLIP": {"voc": result_of("voc", 0.4), "birds": result_of(own_benchmark())},
    }
    text = summary_table(rows)
    cells = cells_of(text)
    dashes = ["-"] * 6
    assert cells["mIoU, %"][-2:] == ["mean", "birds"]
    assert cells["TCL + PAMR, measured"] == ["55.0", *dashes, "-", "-", "-"]
    assert cells["MaskCLIP, measured"] == ["40.0", *dashes, "-", "-", "50.0"]
    assert cells["TCL + PAMR - MaskCLIP"] == ["+15.0", *dashes, "-", "-", "-"]
    assert "nan" not in text
    assert len({len(line) for line in text.splitlines() if "published" in line}) == 1


def test_a_users_own_benchmark_stands_alone() -> None:
    rows = {"TCL": {"birds": result_of(own_benchmark(published={"Ann": 41.2}), 0.5)}}
    assert cells_of(summary_table(rows)) == {
        "mIoU, %": ["birds"], "TCL, measured": ["50.0"], "Ann, published": ["41.2"],
    }  # fmt: skip


def test_what_is_not_comparable_is_said() -> None:
    part = result_of("voc", images=100)
    assert caveats(result_of("voc"), fingerprint_of()) == []
    assert caveats(result_of("voc"), {}) == []
    (note,) = caveats(part, {})
    assert "100 of 1,449 images of val" in note and "not comparable" in note
    (note,) = caveats(result_of("voc"), fingerprint_of(stride=112, threshold=0.5))
    assert "stride 112 (published: 224)" in note and "threshold 0.5 (published: 0.4)" in note
    assert caveats(result_of("voc"), fingerprint_of(pamr=False, threshold=0.5)) == []
    assert caveats(result_of("voc"), fingerprint_of(method="maskclip", kp_weight=0.0)) == []
    own = {"voc": {"threshold": 0.1}}
    (note,) = caveats(result_of("voc"), fingerprint_of(benchmarks=own))
    assert note.startswith("voc: not the paper's protocol: background threshold 0.1")
    (note,) = caveats(result_of(load_benchmark("voc", split="train")), {})
    assert note == "voc: judged on train, while published figures are for val."
    birds = result_of(own_benchmark(splits={"val": 7}), images=7)
    assert caveats(birds, fingerprint_of(stride=1)) == []

    rows = {"TCL": {"voc": part, "voc20": result_of("voc20")}}
    summary = summarize(rows, {"TCL": fingerprint_of()})
    assert summary.rows[0].cells[:4] == ("50.0*", "-", "-", "50.0")
    assert len(summary.notes) == 1 and "voc (100 of 1,449 images of val)." in summary.notes[0]
    assert f"* {summary.notes[0]}" in summary_table(rows, {"TCL": fingerprint_of()})
    everywhere = summarize(rows, {"TCL": fingerprint_of(stride=112)})
    assert everywhere.rows[0].cells[3] == "50.0*" and len(everywhere.notes) == 2


def test_fingerprint_in_words() -> None:
    facts = dict(describe_fingerprint(fingerprint_of(seed=[1, 2], extra=None)))
    assert facts["window"] == "448 px" and facts["PAMR"] == "yes"
    assert facts["background threshold"] == "0.4"
    assert facts["seed"] == "[1, 2]" and facts["extra"] == "-"
    assert facts["voc"] == f"class names {'0' * 16}, images 1,449, image list {'1' * 16}"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (75, "1 min"), (3570, "1 h 00 min"), (7000, "1 h 57 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def two_rows() -> dict[str, dict[str, BenchmarkResult]]:
    own = own_benchmark(background=True)
    return {
        "TCL + PAMR": {"voc": result_of("voc", 0.55, 100), "birds": result_of(own, 0.25)},
        "MaskCLIP": {"voc": result_of("voc", 0.4)},
    }


def test_markdown_has_everything(tmp_path: Path) -> None:
    write_markdown(tmp_path / "results.md", two_rows(), {"TCL + PAMR": fingerprint_of()})
    text = (tmp_path / "results.md").read_text()
    assert "| TCL + PAMR, measured | 55.0\\* |" in text
    assert "| TCL + PAMR - MaskCLIP | +15.0 |" in text
    assert "| TCL + PAMR, published | 55.0 | 30.4 |" in text
    assert "- stride: 224 px" in text and "- background threshold: 0.4" in text
    assert "| TCL + PAMR, measured | 55.0 | 55.0 | 55.0 | 100 of 1,449 | 1 min |" in text
    assert "| aeroplane | 55.0 | 55.0 | 40.0 | 40.0 |" in text
    assert "| tvmonitor | - | - | - | - |" in text  # never occurs
    assert r"\<b\>crow \| \*co\* &amp; son\</b\> | - | - |" in text
    assert r"## Birds of my \<garden\>" in text
    assert "nan" not in text
    columns = 0
    for line in text.splitlines():
        here = line.replace(r"\|", "").count("|")
        assert not columns or here in (0, columns), line
        columns = here


def test_markdown_escapes() -> None:
    assert escape_markdown("a_b|c\n&#x41;<i>`$\0\ud800") == r"a\_b\|c &amp;\#x41;\<i\>\`\$"


# ---------------------------------------------------------------------------------------- pictures


def bar_pixels(picture: np.ndarray) -> np.ndarray:
    """Where bars are."""
    strong, pale = (
        (picture == color).all(-1) for color in (report_pictures._BAR, report_pictures._PALE_BAR)
    )
    return strong | pale


def test_chart_has_bars_from_high_to_low_and_a_mark_at_the_mean() -> None:
    benchmark = custom_benchmark("i", "l", [f"class {i}" for i in range(6)])
    ious = [0.2, 1.0, NAN, 0.6, 0.0, 0.7]
    result = BenchmarkResult(benchmark, (ImageResult("a", counts_of(ious)),), (), 1)
    picture = class_chart(result)
    assert picture.dtype == np.uint8 and (picture[[0, -1]] == 255).all()
    lengths = bar_pixels(picture).sum(1)
    starts = np.flatnonzero(np.diff((lengths > 0).astype(int)) == 1)
    measured = [int(lengths[start + 1 : start + 12].max()) for start in starts]
    assert len(measured) == 4  # no bar for 0 and for what never occurs
    full = report_pictures._BAR_WIDTHS[1]
    # The mark at the mean, 2 pixels wide, lies over bars beyond it.
    np.testing.assert_allclose(measured, np.array([1, 0.7, 0.6, 0.2]) * full, atol=3)
    where = np.argwhere((picture == report_pictures._MEAN).all(-1))
    left = np.argwhere(bar_pixels(picture))[:, 1].min()
    assert abs(np.median(where[:, 1]) - left - 0.5 * full) <= 2  # (0.2 + 1 + 0.6 + 0 + 0.7) / 5


@pytest.mark.parametrize(
    ("classes", "columns"), [(19, 1), (59, 2), (80, 2), (150, 4), (171, 4), (3000, 4)]
)
def test_chart_has_columns_for_any_number_of_classes(classes: int, columns: int) -> None:
    names = [f"class number {i}" for i in range(classes)]
    benchmark = custom_benchmark("i", "l", names, ignore=65535)
    ious = list(np.linspace(0.3, 0.9, classes))
    picture = class_chart(BenchmarkResult(benchmark, (ImageResult("a", counts_of(ious)),), (), 1))
    assert picture.shape[0] <= 2500 and picture.shape[1] <= 2000
    bars = bar_pixels(picture)
    starts = np.diff(np.pad(bars, ((0, 0), (1, 0))).astype(int), axis=1) == 1
    # The mark at the mean cuts bars in two, by two pixels.
    lefts = [
        x for x in np.unique(np.argwhere(starts)[:, 1]) if not bars[:, max(x - 4, 0) : x].any()
    ]
    assert len(lefts) == columns
    heights = [np.diff(np.pad(bars[:, x], 1).astype(int)) == 1 for x in lefts]
    assert sum(int(h.sum()) for h in heights) == min(classes, report_pictures.MAX_BARS)


def test_chart_of_nothing() -> None:
    benchmark = custom_benchmark("i", "l", ["a", "b"])
    for images in ((), (ImageResult("a", Counts.zeros(2)),)):
        picture = class_chart(BenchmarkResult(benchmark, images, (), 0))
        assert not bar_pixels(picture).any() and (picture < 128).any()


def panels_of(picture: np.ndarray, like: tuple[int, int, int]) -> tuple[slice, int, int]:
    """Rows, left and width of the panel of a plain image."""
    place = np.argwhere((picture == like).all(-1))
    (top, left), (bottom, right) = place.min(0), place.max(0)
    assert len(place) == (bottom - top + 1) * (right - left + 1)
    return slice(top, bottom + 1), int(left), int(right - left + 1)


def test_shown_picture_has_truth_prediction_and_errors() -> None:
    benchmark = load_benchmark("voc20")
    picture = shown_picture(benchmark, shown_of(300, 400))
    palette = class_palette(20, background=False).astype(int)
    rows, left, width = panels_of(picture, (200, 100, 50))
    step = width + report_pictures._GAP
    truth, found, judged = (picture[rows, left + i * step :][:, :width] for i in (1, 2, 3))
    h, w = truth.shape[0], width

    def nearest(panel: np.ndarray, y: float, x: float) -> int:
        pixel = panel[int(y * h), int(x * w)].astype(int)
        return int(np.abs(palette - pixel).sum(1).argmin())

    assert nearest(truth, 0.75, 0.25) == 1 and nearest(truth, 0.5, 0.75) == 2
    assert {nearest(found, y, x) for y in (0.2, 0.8) for x in (0.2, 0.8)} == {1}
    ignored = {report_pictures._IGNORED, report_pictures._IGNORED_LINE}
    for panel in (truth, judged):
        corner = panel[: h // 2 - 2, : w // 2 - 2].reshape(-1, 3)
        assert {tuple(int(c) for c in p) for p in np.unique(corner, axis=0)} == ignored  # hatched
    assert not (found == report_pictures._IGNORED).all(-1).any()
    right, wrong = judged[int(0.75 * h), w // 4], judged[h // 2, int(0.75 * w)]
    assert right[2] > right[0] + 40 and wrong[0] > wrong[2] + 40
    flat = {tuple(p) for p in picture.reshape(-1, 3).tolist()}
    assert {tuple(palette[1].tolist()), tuple(palette[2].tolist())} <= flat  # in the legend
    assert tuple(palette[3].tolist()) not in flat


def test_background_is_shown_untinted() -> None:
    shown = shown_of(60, 80)
    shown.label[:] = 0
    shown.predicted[:] = 0
    picture = shown_picture(load_benchmark("voc"), shown)
    rows, left, width = panels_of(picture, (200, 100, 50))
    truth = picture[rows, left + width + report_pictures._GAP :][:, :width]
    assert (truth.max(-1) == truth.min(-1)).all() and truth.min() > 120


@pytest.mark.parametrize("size", [(1024, 2048), (2, 3), (1, 1), (4000, 3), (3, 4000), (64, 64)])
def test_any_size_can_be_shown(size: tuple[int, int]) -> None:
    picture = shown_picture(load_benchmark("cityscapes"), shown_of(*size))
    assert 300 <= picture.shape[0] <= 1500 and 900 <= picture.shape[1] <= 2250


def test_pictures_are_files_with_the_benchmarks_name(tmp_path: Path) -> None:
    shown = tuple(shown_of(30, 40, rank) for rank in ("best", "median", "worst"))
    result = result_of("voc", shown=shown)
    files = write_pictures(tmp_path / "pictures", result)
    assert {k: p.name for k, p in files.items()} == {
        "classes": "voc_classes.png", "best": "voc_best.png",
        "median": "voc_median.png", "worst": "voc_worst.png",
    }  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == sorted(
        p.name for p in files.values()
    )
    chart = np.asarray(Image.open(files["classes"]))
    np.testing.assert_array_equal(chart, class_chart(result))


# -------------------------------------------------------------------------------------------- page


class Page(html.parser.HTMLParser):
    """What a page holds: balanced tags, texts of cells, images."""

    VOID = ("meta", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        self.ids |= {str(given["id"])} if "id" in given else set()
        assert not [name for name in given if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "img":
            self.images.append(given)
        if "href" in given:
            self.links.append(str(given["href"]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


def test_page_is_whole_in_itself(tmp_path: Path) -> None:
    rows = two_rows()
    shown = (shown_of(30, 40, "best"), shown_of(30, 40, "worst"))
    rows["MaskCLIP"]["voc"] = result_of("voc", 0.4, shown=shown)
    rows["<script>alert(1)</script>"] = {"voc": result_of("voc", 0.1)}
    files = write_pictures(tmp_path / "p", rows["MaskCLIP"]["voc"])
    prints = {"TCL + PAMR": fingerprint_of(), "MaskCLIP": fingerprint_of(method="<i>m</i>")}
    path = tmp_path / "report.html"
    write_html(path, rows, prints, {"MaskCLIP": {"voc": files}})
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.tags & {"script", "link", "iframe", "i", "b"}
    assert "url(" not in text and "@import" not in text and "http" not in text
    assert page.links and all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= page.ids
    assert "Birds of my <garden>" in page.texts and "<i>m</i>" in page.texts

    assert page.rows[1][:2] == ["TCL + PAMR, measured", "55.0*"]
    assert ["TCL + PAMR, published", "55.0", "30.4"] in [row[:3] for row in page.rows]
    assert ["aeroplane", "55.0", "55.0", "40.0", "40.0", "10.0", "10.0"] in page.rows
    assert ["<b>crow | *co* & son</b>", "-", "-"] in page.rows
    assert "nan" not in "".join(page.texts)

    order = [files["classes"], files["best"], files["worst"]]
    assert len(page.images) == 3
    for image, file in zip(page.images, order, strict=True):
        kind, data = str(image["src"]).split(",")
        assert kind == "data:image/png;base64" and image["alt"]
        content = base64.b64decode(data)
        assert content == file.read_bytes()
        assert Image.open(io.BytesIO(content)).size == (
            int(str(image["width"])), int(str(image["height"])),
        )  # fmt: skip


def test_page_without_pictures_and_fingerprints(tmp_path: Path) -> None:
    write_html(tmp_path / "a.html", {"TCL": {"voc": result_of("voc", math.sqrt(0.5))}})
    page = Page((tmp_path / "a.html").read_text())
    assert not page.images and not page.links
    assert ["TCL, measured", "70.7", "70.7", "70.7", "1,449", "1 min"] in page.rows
