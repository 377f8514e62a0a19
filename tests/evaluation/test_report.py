"""The report: numbers where they belong, honest labels, pictures that show what they say."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tcl_jax.errors import InputError
from tcl_jax.evaluation import benchmark as benchmark_module
from tcl_jax.evaluation.benchmark import BENCHMARKS, load_benchmark
from tcl_jax.evaluation.published import PUBLISHED
from tcl_jax.evaluation.report import caveats, summarize, summary_table, write_report
from tcl_jax.evaluation.report_pictures import IGNORED, RIGHT, WRONG, shown_picture
from tcl_jax.evaluation.results import (
    BenchmarkResult,
    Evaluated,
    ImageResult,
    choose_shown,
    read_results,
    write_results,
)
from tcl_jax.evaluation.scores import Counts
from tcl_jax.models.methods import METHODS
from tcl_jax.pictures.palette import class_palette
from tests.evaluation.made_results import (
    counts_of,
    fingerprint_of,
    own_benchmark,
    result_of,
    shown_of,
)

NAN = float("nan")


def evaluated(*results: BenchmarkResult, **fields: Any) -> Evaluated:
    by_name = {result.benchmark.name: result for result in results}
    return Evaluated(by_name, fingerprint_of(**fields))


# ---------------------------------------------------------------------------------- what is shown


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ({"a": 0.5, "b": NAN}, {"best": "a"}),
        ({"a": 0.5, "b": 0.6}, {"best": "b", "worst": "a"}),
        ({"d": 0.4, "c": 0.4, "b": 0.4, "a": 0.4}, {"best": "a", "median": "b", "worst": "d"}),
    ],
)
def test_best_median_and_worst(scores: dict[str, float], chosen: dict[str, str]) -> None:
    images = [ImageResult(key, counts_of([score, NAN])) for key, score in scores.items()]
    assert choose_shown(images) == choose_shown(images[::-1]) == chosen


# ------------------------------------------------------------------------------------ results.json


def test_results_keep_all_digits_and_no_nan(tmp_path: Path) -> None:
    benchmark = own_benchmark(background=True, splits={"val": 3}, published={"Ann's": 41.2})
    counts = Counts(
        np.array([1, 2, 3, 0]), np.array([2, 5, 7, 0]), np.array([6, 4, 3, 0]), np.array([3, 8])
    )
    result = BenchmarkResult(benchmark, tuple(ImageResult(k, counts) for k in "ab"), (), 12.5)
    written = write_results(tmp_path / "results.json", [result], fingerprint_of())
    assert "NaN" not in (tmp_path / "results.json").read_text()
    assert read_results(tmp_path) == read_results(tmp_path / "results.json") == written
    entry = written["benchmarks"]["birds"]
    per_class = entry.pop("per_class")
    assert list(per_class) == [*benchmark.names]
    assert per_class["sparrow"]["iou"] == pytest.approx(200 / 7, abs=1e-12)
    assert per_class[benchmark.names[-1]] == {"iou": None, "acc": None}
    assert entry == {
        "title": benchmark.title, "split": "val", "images": 2, "full_set_images": 3,
        "miou": pytest.approx(100 * (1 / 7 + 2 / 7 + 3 / 7) / 3, abs=1e-12),
        "macc": pytest.approx(100 * (1 / 6 + 2 / 4 + 1) / 3, abs=1e-12),
        "aacc": pytest.approx(100 * 6 / 13, abs=1e-12), "boundary": 37.5,
        "published": {"Ann's": 41.2}, "seconds": 12.5,
    }  # fmt: skip
    assert written["mean_miou"] is None and written["fingerprint"] == fingerprint_of()
    assert {"tcl_jax", "jax", "opencv"} <= set(written["versions"])


GOOD = {"format_version": 1, "benchmarks": {"voc": {"miou": 1.5}}, "fingerprint": {"method": "tcl"}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no results at .*--output"),
        ("[" * 100_000, r"results\.json"),
        ({**GOOD, "format_version": 2}, "format_version"),
        ({"format_version": 1}, "benchmarks"),
        ({**GOOD, "benchmarks": {"voc": 3}}, "3 is no table"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "results.json"
    if content is not None:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=message):
        read_results(tmp_path)
    file.write_text(json.dumps(GOOD))
    assert read_results(tmp_path) == GOOD


# ------------------------------------------------------------------------------------------- table


def cells_of(text: str) -> dict[str, list[str]]:
    """Cells by label of the rows of a text table."""
    lines = [line for line in text.splitlines() if not line.startswith("* ")]
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    return {row[0]: row[1:] for row in rows}


OF_TCL = {
    "TCL": ["51.2", "24.3", "30.4", "77.5", "30.3", "19.6", "23.1", "14.9", "33.9"],
    "TCL + PAMR": ["55.0", "30.4", "31.6", "83.2", "33.9", "22.4", "24.0", "17.1", "37.2"],
}


def eight_results() -> list[BenchmarkResult]:
    """mIoU of 30, 32, ... 44 per cent."""
    return [result_of(name, 0.3 + i / 50) for i, name in enumerate(BENCHMARKS)]


def test_table_stands_beside_the_published_rows(tmp_path: Path) -> None:
    results = eight_results()
    found = {"TCL": evaluated(*results, result_of(own_benchmark(), 0.5))}
    cells = cells_of(summary_table(found))
    assert cells["mIoU, %"] == [*BENCHMARKS, "birds", "mean of 8"]
    assert [float(c) for c in cells["TCL, measured"]] == [*range(30, 46, 2), 50, 37]
    for method, (*row, mean) in OF_TCL.items():
        assert cells[f"{method}, published"] == [*row, "-", mean]
    assert list(cells)[1] == "TCL, measured" and len(cells) == 4
    assert write_results(tmp_path / "a.json", results, {"x": 1})["mean_miou"] == pytest.approx(37)
    assert write_results(tmp_path / "b.json", results[1:], {"x": 1})["mean_miou"] is None


def test_a_ninth_benchmark_leaves_the_papers_mean_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "benchmarks"
    shutil.copytree(benchmark_module._FOLDER, folder)
    text = 'images = "i"\nlabels = "l"\nclasses = ["a"]\npublished = {Other = 99.0}'
    (folder / "ninth.toml").write_text(text)
    monkeypatch.setattr(benchmark_module, "_FOLDER", folder)
    monkeypatch.setattr(benchmark_module, "BENCHMARKS", ("ninth", *BENCHMARKS))
    assert benchmark_module.load_benchmark("ninth").published == {"Other": 99.0}
    assert benchmark_module.paper_benchmarks() == BENCHMARKS


def test_gaps_have_a_dash() -> None:
    nothing = BenchmarkResult(load_benchmark("ade20k"), (), (), 0)
    birds = own_benchmark(published={"A": 41.2})
    text = summary_table({
        "TCL + PAMR": evaluated(result_of("voc", 0.55), nothing),
        "MaskCLIP": evaluated(result_of("voc", 0.4), result_of(birds)),
    })  # fmt: skip
    assert cells_of(text) == {
        "mIoU, %": ["voc", "ade20k", "birds"],
        "TCL + PAMR, measured": ["55.0", "-", "-"],
        "MaskCLIP, measured": ["40.0", "-", "50.0"],
        "TCL, published": ["51.2", "14.9", "-"],
        "TCL + PAMR, published": ["55.0", "17.1", "-"],
        "A, published": ["-", "-", "41.2"],
    }


def test_published_rows_of_the_method_at_hand() -> None:
    found = {"Talk2DINO": evaluated(*eight_results(), method="talk2dino")}
    cells = cells_of(summary_table(found))
    label = "Talk2DINO B/14, published (TCL's protocol)"
    assert cells[label] == ["-"] * 8 + ["43.8"] and "TCL, published" in cells
    assert not any("NACLIP" in label for label in cells)
    cells = cells_of(summary_table({"SC-CLIP": evaluated(*eight_results(), method="sc_clip")}))
    assert cells["SC-CLIP ViT-B/16, published (its own protocol)"] == ["-"] * 8 + ["43.9"]
    found = {
        "TIPS": evaluated(result_of("ade20k"), method="tips"),
        "NACLIP": evaluated(result_of("ade20k"), method="naclip"),
    }
    rows = {row.label: row.cells for row in summarize(found).rows}
    assert rows["TIPSv2 L/14, published (its own protocol)"] == ("24.7",)
    assert rows["NACLIP ViT-B/16 + PAMR, published (its own protocol)"] == ("19.1",)
    without = summarize({"TIPS": evaluated(result_of("voc"), method="tips")}).rows
    assert not any(row.label.startswith("TIPSv2") for row in without)
    assert {x for row in PUBLISHED for x in row.scores} <= {*BENCHMARKS}
    assert {row.method for row in PUBLISHED} <= {*METHODS}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"refine": "none", "threshold": 0.5}, []),
        ({"method": "maskclip", "kp_weight": 0.0}, []),
        ({"stride": 112, "threshold": 0.5},
         ["stride 112 (published: 224)", "threshold 0.5 (published: 0.4)"]),
        ({"benchmarks": {"voc": {"threshold": 0.1}}},
         ["voc: not the paper's protocol: threshold 0.1"]),
        ({"method": "talk2dino", "templates": "subset", "kp_weight": 0.0}, []),
        ({"method": "tips"},
         ["Not the protocol of TIPS's authors, but tcl: stride 224 (published: 336)"]),
        ({"method": "tips", "protocol": "tips", "window": 224},
         ["TIPS's authors: window 224 (published: 448)"]),
    ],
)  # fmt: skip
def test_another_protocol_than_the_papers_is_said(
    changes: dict[str, Any], parts: list[str]
) -> None:
    notes = caveats(result_of("voc"), fingerprint_of(**changes))
    assert len(notes) == bool(parts) and all(part in notes[0] for part in parts)
    birds = result_of(own_benchmark(splits={"val": 7}), images=7)
    assert caveats(birds, fingerprint_of(**changes)) == []


def test_labels_of_one_class_are_said() -> None:
    """As of masks of 0 and 255, of which 255 is ignored."""
    images = (ImageResult("a", counts_of([1.0, NAN, NAN])),)
    (note,) = caveats(BenchmarkResult(own_benchmark(), images, (), 1), {})
    assert "birds: " in note and "--ignore" in note


def test_other_images_than_the_papers_are_said() -> None:
    (note,) = caveats(result_of(load_benchmark("voc", split="train")), {})
    assert "voc: evaluated on train" in note
    found = {"TCL": evaluated(result_of("voc", images=100), result_of("voc20"))}
    table = summarize(found)
    assert table.rows[0].cells == ("50.0*", "50.0")
    (note,) = table.notes
    assert "voc: 100 of 1,449 images of val" in note and f"* {note}" in summary_table(found)


# ---------------------------------------------------------------------------------------- pictures


def panels_of(picture: np.ndarray) -> list[np.ndarray]:
    """The four panels of `shown_of`, found by its plain image."""
    place = np.argwhere((picture == (200, 100, 50)).all(-1))
    (top, left), (bottom, right) = place.min(0), place.max(0)
    width, rows = right - left + 1, slice(top, bottom + 1)
    assert len(place) == width * (bottom - top + 1)
    return [picture[rows, left + i * (width + 14) :][:, :width] for i in range(4)]


def test_shown_picture_has_truth_prediction_and_errors() -> None:
    picture = shown_picture(load_benchmark("voc20"), shown_of(300, 400))
    palette = class_palette(20, background=False).astype(int)
    _, truth, found, errors = panels_of(picture)
    h, w = truth.shape[:2]

    def nearest(panel: np.ndarray, y: float, x: float) -> int:
        return int(np.abs(palette - panel[int(y * h), int(x * w)].astype(int)).sum(1).argmin())

    assert nearest(truth, 0.75, 0.25) == 1 and nearest(truth, 0.5, 0.75) == 2
    assert {nearest(found, y, x) for y in (0.2, 0.8) for x in (0.2, 0.8)} == {1}
    for panel in (truth, errors):
        assert (panel[: h // 2 - 2, : w // 2 - 2] == IGNORED).all()
    assert not (found == IGNORED).all(-1).any()
    right, wrong = errors[int(0.75 * h), w // 4], errors[h // 2, int(0.75 * w)]
    assert right[2] > right[0] + 40 and wrong[0] > wrong[2] + 40
    flat = {tuple(p) for p in picture.reshape(-1, 3).tolist()}
    legend = {tuple(palette[1].tolist()), tuple(palette[2].tolist()), RIGHT, WRONG}
    assert legend <= flat and tuple(palette[3].tolist()) not in flat


def test_background_is_shown_untinted() -> None:
    shown = shown_of(60, 80)
    shown.label[:] = 0
    shown.predicted[:] = 0
    _, truth, *_ = panels_of(shown_picture(load_benchmark("voc"), shown))
    assert (truth.max(-1) == truth.min(-1)).all() and truth.min() > 120


@pytest.mark.parametrize("size", [(1024, 2048), (1, 1)])
def test_any_size_can_be_shown(size: tuple[int, int]) -> None:
    picture = shown_picture(load_benchmark("cityscapes"), shown_of(*size))
    assert 100 <= picture.shape[0] <= 1500 and 480 <= picture.shape[1] <= 2500


# -------------------------------------------------------------------------------------- the files


@pytest.fixture
def found() -> dict[str, Evaluated]:
    """Two methods, which show the same images, and names that have to be escaped."""
    shown = (shown_of(30, 40, "best"), shown_of(30, 40, "worst"))
    maskclip = result_of("voc", 0.4, shown=shown)
    own = own_benchmark(background=True)
    fields = {"method": "maskclip", "dtype": "<i>m</i>", "seed": [1, 2], "extra": None}
    return {
        "TCL + PAMR": evaluated(result_of("voc", 0.55, 100, shown=shown), result_of(own, 0.25)),
        "MaskCLIP": evaluated(maskclip, **fields),
    }


def test_markdown_has_everything(found: dict[str, Evaluated], tmp_path: Path) -> None:
    write_report(tmp_path, found)
    text = (tmp_path / "results.md").read_text()
    for line in (
        "| TCL + PAMR, measured | 55.0\\* |",
        "| TCL + PAMR, measured | 55.0 | +15.0 |",
        "Gains are over MaskCLIP.",
        "| class | IoU, TCL + PAMR | gain | IoU, MaskCLIP |\n| --- | --: | --: | --: |\n",
        "| aeroplane | 55.0 | +15.0 | 40.0 |\n",
        "| tvmonitor | - | - | - |\n",  # never occurs
        r"| \<b\>crow \| \*co\* &amp; son\</b\> | - | - |",
        r"## Birds of my \<garden\>",
        "- refine: pamr\n",
        "- seed: \\[1, 2\\]\n- extra: -\n",
        f"- voc: classes {'0' * 16}, images 1449, image\\_list {'1' * 16}\n",
    ):
        assert line in text
    assert "nan" not in text


def rows_of(page: str) -> list[str]:
    """Text of every row of the page's tables."""
    rows = re.findall(r"<tr.*?</tr>", page, re.DOTALL)
    return [" ".join(html.unescape(re.sub(r"<[^>]*>", " ", row)).split()) for row in rows]


def test_page_is_whole_in_itself(found: dict[str, Evaluated], tmp_path: Path) -> None:
    found["<script>alert(1)</script>\n\ud800"] = evaluated(result_of("voc", 0.1))
    write_report(tmp_path, found)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|iframe|i|b)\b|url\(|@import|http|nan", page)
    links = re.findall(r'href="([^"]*)"', page)
    assert links == [f"#benchmark-{name}" for name in ("voc", "birds")]
    assert all(f'id="{link[1:]}"' in page for link in links)
    assert "Birds of my &lt;garden&gt;" in page and "&lt;i&gt;m&lt;/i&gt;" in page
    rows = rows_of(page)
    assert rows[1].startswith("TCL + PAMR, measured 55.0 * 25.0")
    assert "class TCL + PAMR gain MaskCLIP <script>alert(1)</script> gain" in rows
    assert "aeroplane 55.0 +15.0 40.0 10.0 -30.0" in rows
    assert "<b>crow | *co* & son</b> - -" in rows
    assert page.count("--iou: 40.0%; --mean: 40.0%") == 20  # none for what never occurs


def test_methods_stand_side_by_side_on_the_same_images(
    found: dict[str, Evaluated], tmp_path: Path
) -> None:
    write_report(tmp_path, found)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    panels = re.findall(r'alt="([^"]*)" src="data:image/webp;base64,([^"]*)"', page)
    assert [title for title, _ in panels] == ["image", "true labels", *found] * 2
    image, truth, *predicted = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))[150, 400].astype(int)
        for _, data in panels[:4]
    )
    palette = class_palette(20, background=True).astype(int)
    assert np.abs(image - (200, 100, 50)).max() < 6
    assert [int(np.abs(palette - x).sum(1).argmin()) for x in (truth, *predicted)] == [2, 1, 1]
    assert page.count("<strong>mIoU 16.7 %</strong>") == 4
    assert "Worst image of TCL + PAMR: photo_1" in page
    colors = [tuple(palette[i].tolist()) for i in (2, 1)] + [IGNORED]
    found_colors = re.findall(r"background: rgb\((.*?)\)", page)
    assert found_colors == [", ".join(map(str, color)) for color in colors] * 2


def test_classes_go_from_high_to_low(tmp_path: Path) -> None:
    images = (ImageResult("a", counts_of([0.2, NAN, 0.999])),)
    shown = (shown_of(30, 90),)
    write_report(
        tmp_path, {"TCL": evaluated(BenchmarkResult(own_benchmark(), images, shown, 7000))}
    )
    page = (tmp_path / "report.html").read_text()
    rows = rows_of(page)
    assert [row.split()[0] for row in rows[-3:]] == ["<b>crow", "sparrow", "great"]
    assert "TCL, measured 60.0 60.0 60.0 75.0 1 1:56:40" in rows
    assert "class IoU acc" in rows and 'alt="right and wrong"' in page and "--columns: 2" in page
