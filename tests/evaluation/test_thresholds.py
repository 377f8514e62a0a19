"""All thresholds in one pass: the counts of a run at each, the best, and who takes it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tcl_jax.errors import InputError
from tcl_jax.evaluation.benchmark import custom_benchmark
from tcl_jax.evaluation.examples import DatasetIndex, list_examples
from tcl_jax.evaluation.protocol import make_protocol
from tcl_jax.evaluation.report import threshold_tables
from tcl_jax.evaluation.results import Evaluated, best_thresholds, read_results
from tcl_jax.evaluation.run import evaluate
from tcl_jax.evaluation.scores import Counts, count_pixels
from tcl_jax.evaluation.thresholds import TRIED, ThresholdSearch, best_of_all
from tcl_jax.inference.label_rule import LabelRule
from tcl_jax.inference.merging import SoftMasks
from tcl_jax.inference.model import model_from_torch
from tcl_jax.shapes.source import ShapesSource, class_names
from tests.evaluation.made_results import own_benchmark, result_of

MODEL = model_from_torch("builtin:shapes_clip")
METHODS = ["maskclip", "sclip"]
"""One of masks, and one of the probabilities of texts with words of the background."""


def scenes(folder: Path, **settings: object) -> DatasetIndex:
    source = ShapesSource("test", num_examples=6, image_size=64)
    for name in ("image", "label"):
        (folder / name).mkdir(parents=True)
        for i in range(len(source)):
            Image.fromarray(source[i][name]).save(folder / name / f"{i}.png")
    names = folder / "image", folder / "label", class_names()
    return list_examples(custom_benchmark(*names, background=True, **settings), folder)


def run(index: DatasetIndex, output: Path, threshold: float | str) -> list[Evaluated]:
    options = {"methods": METHODS, "pamr": False, "templates": "shapes", "progress": False}
    return [*evaluate(MODEL, [index], output, threshold=threshold, **options).values()]


def assert_same_counts(ours: Counts, theirs: Counts) -> None:
    for name, counts in vars(theirs).items():
        np.testing.assert_array_equal(getattr(ours, name), counts)


def test_counts_are_those_of_runs_at_each_threshold(tmp_path: Path) -> None:
    # The file's own threshold gives way to the best that was found.
    index, best = scenes(tmp_path, threshold=0.42), tmp_path / "again/best"
    run(dataclasses.replace(index, examples=index.examples[:3]), best, "best")
    logs = sorted(best.glob("*/progress/*"))
    begun = [log.read_text() for log in logs]
    found = run(index, best, "best")
    assert sorted(best.glob("*/progress/*")) == logs and len(logs) == 2
    assert all(log.read_text().startswith(text) for log, text in zip(logs, begun, strict=True))
    again = run(index, tmp_path / "again", f"best:{best}")
    for one, other, name in zip(found, again, METHODS, strict=True):
        result, taken = one.results["custom"], other.results["custom"]
        search = result.search
        assert search is not None and search.tried == tuple(sorted({*TRIED, 0.42}))
        assert len(result.images) == len(taken.images) == 6 and taken.search is None
        for mine, theirs in zip(result.images, taken.images, strict=True):
            assert_same_counts(mine.counts, theirs.counts)
        shown = result.shown[0]
        counts = {image.key: image.counts for image in result.images}[shown.key]
        size = len(index.benchmark.names)
        assert_same_counts(count_pixels(shown.predicted, shown.label, size), counts)
        assert search.miou.max() == result.scores.miou == taken.scores.miou
        written = read_results(best / name)
        entry = written["benchmarks"]["custom"]
        assert written["best_threshold"] == entry["threshold"]["best"] == search.best
        place = search.tried.index(search.best)
        assert entry["threshold"]["miou"][place] == pytest.approx(entry["miou"], abs=1e-9)
        assert entry["threshold"]["boundary"][place] == pytest.approx(entry["boundary"], abs=1e-9)
        ours = other.fingerprint["benchmarks"]["custom"].get("threshold")
        assert (ours or other.fingerprint["threshold"]) == search.best
    plain = dataclasses.replace(
        index, benchmark=dataclasses.replace(index.benchmark, threshold=None)
    )
    for one, other in zip(found, run(plain, tmp_path / "fixed", 0.7), strict=True):
        search = one.results["custom"].search
        assert search is not None
        counts = search.counts.at(search.tried.index(0.7))
        assert_same_counts(counts, other.results["custom"].counts)
    page, text = ((best / name).read_text() for name in ("report.html", "results.md"))
    assert page.count("<polyline") == 2 and "best on these very images" in text
    # What was found is of these masks, and of a run that looked for it.
    with pytest.raises(InputError, match=r"refine='none', and this is refine='pamr'"):
        make_protocol(MODEL, pamr=True, threshold=f"best:{best}")
    with pytest.raises(InputError, match="with a threshold that was given"):
        make_protocol(MODEL, pamr=False, threshold=f"best:{tmp_path}/fixed")
    with pytest.raises(InputError, match="method='sclip', and this is method='maskclip'"):
        best_thresholds(best / "sclip", "maskclip")
    sclip = MODEL.with_method("sclip")
    with pytest.raises(InputError, match="logit_scale=40.0, and this is logit_scale=20.0"):
        make_protocol(sclip, threshold=f"best:{best}", refine="none", logit_scale=20.0)
    for output, read in ((best, best), (best / "sclip", best), (best, best / "sclip")):
        with pytest.raises(InputError, match="would overwrite"):
            run(index, output, f"best:{read}")
    with pytest.raises(InputError, match="looks for none and would overwrite"):
        run(index, best, 0.5)
    workdir = tmp_path / "runs/sclip"
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text('{"eval": {"tasks": ["shapes"]}}')
    with pytest.raises(InputError, match="runs/sclip' is the workdir of a run on drawn scenes"):
        run(index, workdir.parent, 0.5)
    assert not (workdir / "results.json").exists()


def test_no_threshold_to_choose(tmp_path: Path) -> None:
    index = scenes(tmp_path)
    plain = dataclasses.replace(index.benchmark, background=False)
    with pytest.raises(InputError, match=r"(?s)custom.*--background"):
        run(dataclasses.replace(index, benchmark=plain), tmp_path / "out", "best")


def test_levels_are_exact_where_scores_are_equal_to_thresholds() -> None:
    """Scores on the thresholds themselves and by a rounding beside them; equal ones; all below."""
    rng = np.random.default_rng(0)
    scores = (rng.integers(0, 21, (13, 17, 4)) / 20).astype(np.float32)
    scores += rng.integers(-2, 3, scores.shape).astype(np.float32) * np.float32(6e-7)
    scores[0] = 0
    masks, size, tried = SoftMasks.of_array(scores), (13, 17), (0.0, *TRIED, 1.0)
    rule = LabelRule(((0,), (1, 2), (3,)), None, 0.5, area_threshold=0.3)
    cosines = LabelRule(rule.classes, 3.0, 0.5)
    labels, levels = masks.levels(size, tried)
    for i, threshold in enumerate(tried):
        there = np.where(levels > i, labels, 0)
        np.testing.assert_array_equal(there, masks.labels(size, threshold))
        for one in (rule, cosines):
            best, stands = one.levels(masks, size, tried)
            plain = dataclasses.replace(one, threshold=threshold).labels(masks, size)
            np.testing.assert_array_equal(np.where(stands > i, best, 0), plain)


def test_what_a_miss_costs_and_the_best_of_several_benchmarks() -> None:
    def search(tried: tuple[float, ...], right: list[int]) -> ThresholdSearch:
        """Of one class of 100 pixels that are not predicted elsewhere."""
        counts = Counts.zeros(1, len(tried))
        counts.intersection[:, 0] = counts.predicted[:, 0] = right
        counts.labelled[:] = 100
        return ThresholdSearch(tried, tried[0], counts)

    one = search((0.1, 0.2, 0.3, 0.4, 0.5), [10, 40, 90, 80, 90])
    assert one.best == 0.3 and one.loss(0.1) == pytest.approx(0.8)
    assert one.loss(one.best - 0.1) == pytest.approx(0.5)
    assert one.loss(0.35) == pytest.approx(0.05) and np.isnan(one.loss(0.6))
    other = search((0.1, 0.2, 0.25, 0.3, 0.4, 0.5), [0, 0, 99, 10, 70, 20])
    rising = result_of(own_benchmark(), images=1, search=search((0.1, 0.2, 0.3), [10, 20, 30]))
    table = threshold_tables({"TCL": Evaluated({"birds": rising}, {})})
    assert "* TCL: 0.3 is at the edge of what was tried, 0.1 to 0.3" in table
    assert best_of_all([one, other]) == 0.4 and best_of_all([]) is None
