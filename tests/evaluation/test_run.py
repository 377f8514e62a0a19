"""Evaluations from files to reports: the protocol's golden scores, resuming, bad data."""

from __future__ import annotations

import dataclasses
import json
import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
import numpy as np
import pytest
from PIL import Image

from tcl_jax.errors import InputError, RunError
from tcl_jax.evaluation.benchmark import BENCHMARKS, custom_benchmark, load_benchmark
from tcl_jax.evaluation.comparison import compare
from tcl_jax.evaluation.examples import DatasetIndex, list_examples
from tcl_jax.evaluation.protocol import fingerprint, make_protocol
from tcl_jax.evaluation.results import BenchmarkResult, Evaluated, choose_shown, read_results
from tcl_jax.evaluation.run import evaluate
from tcl_jax.evaluation.scores import Counts
from tcl_jax.inference.model import Model, model_from_torch
from tcl_jax.models.dense import MaskCLIP
from tests.reference import GOLDEN, load, reference_torch_model

DATA = GOLDEN / "eval" / "data"
EXPECTED = json.loads((GOLDEN / "eval" / "expected.json").read_text())
MODEL = reference_torch_model()
TEXTS = load("eval/text_emb_and_pred")
COMPILED = "/jax/core/compile/backend_compile_duration"


def indices(names: Sequence[str] = BENCHMARKS) -> list[DatasetIndex]:
    return [list_examples(load_benchmark(name), DATA) for name in names]


def run(output: Path, names: Sequence[str] = BENCHMARKS, **options: Any) -> Evaluated:
    """An evaluation of the reference model by one method."""
    texts = {name: TEXTS[name] for name in names}
    found = evaluate(
        MODEL, indices(names), output, text_embeddings=texts, progress=False, **options
    )
    return next(iter(found.values()))


def assert_same_counts(ours: Counts, theirs: Counts) -> None:
    for name in ("intersection", "predicted", "labelled"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


@pytest.mark.slow
@pytest.mark.parametrize("pamr", [False, True])
def test_golden_scores_of_all_eight(pamr: bool, tmp_path: Path) -> None:
    found = run(tmp_path, pamr=pamr)
    written = read_results(tmp_path)
    for name in BENCHMARKS:
        expected = EXPECTED[f"{name}/pamr{int(pamr)}"]
        counts, scores = found.results[name].counts, found.results[name].scores
        # One pixel of one picture of ade20k is a tie in float32.
        assert np.abs(counts.intersection - expected["intersect"]).max() <= 1
        assert np.abs(counts.union - expected["union"]).max() <= 1
        for ours, theirs in (("miou", "mIoU"), ("macc", "mAcc"), ("aacc", "aAcc")):
            assert abs(getattr(scores, ours) - expected[theirs]) <= 1e-4
            in_file = written["benchmarks"][name][ours] / 100
            assert in_file == pytest.approx(getattr(scores, ours), abs=1e-9)
    assert written["mean_miou"] == pytest.approx(
        100 * np.mean([found.results[name].scores.miou for name in BENCHMARKS])
    )
    for file in ("results.md", "report.html", "pictures/voc_best.png"):
        assert (tmp_path / file).stat().st_size > 1000
    if pamr:
        for name in BENCHMARKS:
            for shown in found.results[name].shown:
                expected = TEXTS[f"{name}/pred{int(shown.key.split('_0')[1][:5])}"]
                assert np.count_nonzero(shown.predicted != expected) <= 1


def test_any_batch_gives_the_same_counts(tmp_path: Path) -> None:
    one, five = (
        run(tmp_path / f"{size}", ("voc",), pamr=False, batch_size=size) for size in (1, 5)
    )
    assert_same_counts(one.results["voc"].counts, five.results["voc"].counts)
    assert one.fingerprint == five.fingerprint


def test_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tcl_jax.evaluation import evaluator

    whole = run(tmp_path / "whole", ("voc",), pamr=False)
    calls: list[Path] = []
    decode = evaluator.read_pixels

    def counted(path: Path, exif: str | None = None) -> np.ndarray:
        calls.append(path)
        return decode(path, exif)

    monkeypatch.setattr(evaluator, "read_pixels", counted)
    log = next((tmp_path / "whole/progress").glob("voc.*.jsonl"))
    lines = log.read_text().strip().splitlines()
    assert len(lines) == 2
    stopped = tmp_path / "stopped/progress" / log.name
    stopped.parent.mkdir(parents=True)
    # One image is scored, and the line of the other was being written.
    stopped.write_text("\n".join([lines[0], lines[1][:30]]))
    again = run(tmp_path / "stopped", ("voc",), pamr=False)
    assert_same_counts(again.results["voc"].counts, whole.results["voc"].counts)
    assert len(calls) == 1 + 4  # one to score, two to show: their masks, and themselves
    # Another protocol begins anew and leaves the counts of the first.
    calls.clear()
    other = run(tmp_path / "stopped", ("voc",), pamr=False, threshold=0.6)
    assert (
        len(calls) == 2 + 4 and other.results["voc"].scores.miou != whole.results["voc"].scores.miou
    )
    calls.clear()
    run(tmp_path / "stopped", ("voc",), pamr=False)
    assert len(calls) == 4


def test_methods_side_by_side(tmp_path: Path) -> None:
    found = evaluate(
        MODEL,
        indices(("voc",)),
        tmp_path,
        methods=["tcl", "maskclip", "sclip", "naclip"],
        protocol="tcl",
        text_embeddings={"voc": TEXTS["voc"]},
        progress=False,
        pamr=False,
    )
    assert list(found) == ["TCL", "MaskCLIP", "SCLIP", "NACLIP"]
    assert len({one.results["voc"].scores.aacc for one in found.values()}) == 4
    weights = {title: one.fingerprint["weights"] for title, one in found.items()}
    assert weights["MaskCLIP"] == weights["SCLIP"] == weights["NACLIP"] != weights["TCL"]
    for other in ("maskclip", "naclip"):
        assert "WARNING" not in compare(tmp_path / "tcl", tmp_path / other)
    text = (tmp_path / "results.md").read_text()
    assert "NACLIP, measured" in text and "TCL, published" in text
    results = [one.results["voc"] for one in found.values()]
    shown = [{x.rank: x.key for x in result.shown} for result in results]
    own = [choose_shown(result.images) for result in results]
    assert shown == [own[0]] * 4 and len(own[0]) == 2
    assert own[0] != own[-1]  # by itself the last would show them the other way round


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 65}, "stride=65"),
        ({"short_side": 0}, "window=0|short_side=0"),
        ({"dtype": "float8"}, "dtype='float8'"),
        ({"methods": ["tcl", "tcl"]}, "tcl, tcl"),
    ],
)
def test_impossible_protocols(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        run(tmp_path, ("voc",), **options)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------- data of one's own


@pytest.fixture(scope="module")
def shapes() -> Model:
    return model_from_torch("builtin:shapes_clip")


def write_photos(folder: Path, sizes: Sequence[tuple[int, int]], classes: int = 3) -> None:
    """Images and labels of the classes in stripes, with a frame that is ignored."""
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for i, (height, width) in enumerate(sizes):
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        label = np.broadcast_to(np.arange(width) * classes // width, (height, width))
        label = label.astype(np.uint8)
        label[:1] = 255
        Image.fromarray(image).save(folder / f"images/{i:03}.png")
        Image.fromarray(label).save(folder / f"labels/{i:03}.png")


NAMES = ["plain red", ["dotted blue", "blue"], "plain green"]


def own_index(folder: Path, classes: Sequence[Any] = NAMES, **settings: Any) -> DatasetIndex:
    benchmark = custom_benchmark(folder / "images", folder / "labels", classes, **settings)
    return list_examples(benchmark, folder)


def score(
    model: Model, index: DatasetIndex, output: Path, pamr: bool = False, **options: Any
) -> BenchmarkResult:
    """What the model's own method finds."""
    found = evaluate(model, [index], output, progress=False, pamr=pamr, **options)
    return next(iter(found.values())).results[index.benchmark.name]


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """One entry for every program that XLA compiles."""
    events: list[str] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if event == COMPILED:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.clear_event_listeners()


def test_twelve_sizes_compile_three_programs_at_most(
    shapes: Model, tmp_path: Path, compiled: list[str]
) -> None:
    write_photos(tmp_path, [(40 + 9 * i, 160 - 7 * i) for i in range(12)])
    index = own_index(tmp_path)
    assert len(score(shapes, index, tmp_path / "out", pamr=True, batch_size=4).images) == 12
    assert 1 <= len(compiled) <= 3


def test_every_problem_is_named_before_anything_is_scored(shapes: Model, tmp_path: Path) -> None:
    write_photos(tmp_path, [(40, 60)] * 6)
    label = np.asarray(Image.open(tmp_path / "labels/001.png")).copy()
    label[3, 4:9] = 7
    Image.fromarray(label).save(tmp_path / "labels/001.png")
    whole = tmp_path / "images/002.png"
    whole.write_bytes(whole.read_bytes()[:-400])
    (tmp_path / "labels/003.png").unlink()
    Image.fromarray(label[:, :30]).save(tmp_path / "labels/004.png")
    with pytest.raises(InputError) as caught:
        score(shapes, own_index(tmp_path), tmp_path / "out")
    message = str(caught.value)
    for part in ("002.png", "label values 7;", "003.png", "004.png", "wrong label"):
        assert part in message
    assert not (tmp_path / "out").exists()


def test_files_that_go_bad_or_change_while_it_runs(
    shapes: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tcl_jax.evaluation import run as run_module

    write_photos(tmp_path, [(40, 60)] * 3)
    index = own_index(tmp_path)
    photo = tmp_path / "images/002.png"
    sound = photo.read_bytes()
    photo.write_bytes(b"not an image")
    with monkeypatch.context() as patched, pytest.raises(RunError, match=r"002\.png: 12 bytes"):
        patched.setattr(run_module, "verify_examples", lambda index, *a, **k: index)
        score(shapes, index, tmp_path / "out")
    photo.write_bytes(sound)
    before = score(shapes, index, tmp_path / "out").images
    assert len(before) == 3
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(tmp_path / "labels/001.png")
    after = score(shapes, index, tmp_path / "out").images
    assert_same_counts(after[0].counts, before[0].counts)
    assert after[1].counts.labelled.tolist() == [2400, 0, 0]


def test_thresholds_of_a_benchmark_of_ones_own(shapes: Model, tmp_path: Path) -> None:
    write_photos(tmp_path, [(40, 60)], classes=2)
    for threshold, shares in ((0.0, [0, 2340]), (1.0, [2340, 0])):
        index = own_index(tmp_path, ["plain red"], background=True, threshold=threshold)
        found = score(shapes, index, tmp_path / f"{threshold}")
        assert found.counts.predicted.tolist() == shares


def test_whatever_moves_a_score_is_in_the_fingerprint(shapes: Model, tmp_path: Path) -> None:
    """A changed field gives another hash, so that nothing is resumed or compared that differs."""
    write_photos(tmp_path, [(40, 60)])
    base = own_index(tmp_path)
    protocol = make_protocol(shapes)

    def hash_of(index: DatasetIndex = base, model: Model = shapes, **changes: Any) -> str:
        weights = changes.pop("weights", "w")
        options = {k: changes.pop(k) for k in ("text_embeddings",) if k in changes}
        changed = dataclasses.replace(protocol, **changes)
        return fingerprint(changed, model, weights, [index], **options)["hash"]

    others: list[str] = [
        hash_of(dataclasses.replace(base, benchmark=dataclasses.replace(base.benchmark, **change)))
        for change in (
            {"background": True}, {"reduce_zero_label": True}, {"ignore": (7,)}, {"window": 32},
            {"short_side": 32}, {"stride": 8}, {"threshold": 0.1}, {"split": "train"},
            {"classes": (("plain red",), ("blue",), ("plain green",))},
        )
    ]  # fmt: skip
    changes: tuple[dict[str, Any], ...] = (
        {"method": "sclip"}, {"protocol": "sclip"}, {"short_side": 63}, {"window": 63},
        {"stride": 31}, {"threshold": 0.3}, {"refine": "affinity"}, {"kp_weight": 0.1},
        {"templates": "simple"},
        {"dtype": "bfloat16"}, {"max_long_side": 99}, {"resize": "pillow"}, {"weights": "v"},
        {"pixels": "clip"}, {"normalize_sentences": True}, {"scores": "cosines"},
        {"logit_scale": 2.0}, {"area_threshold": 0.1}, {"pamr_dilations": (8,)},
        {"pamr_iterations": 9}, {"background": ("sky",)}, {"names": {"blue": ("cyan",)}},
        {"joined": True}, {"method": "talk2dino", "cleaning": True},
        {"search": True}, {"found": {"custom": 0.2}},
        {"benchmarks": {"custom": {"logit_scale": 2.0}}},
        {"text_embeddings": {"custom": np.zeros((3, 64), np.float32)}},
    )  # fmt: skip
    others += [hash_of(**change) for change in changes]
    assert {field.name for field in dataclasses.fields(protocol)} <= {k for c in changes for k in c}
    gelu = dataclasses.replace(shapes.method.config, activation="gelu")
    others.append(hash_of(model=dataclasses.replace(shapes, method=MaskCLIP(gelu))))
    others.append(hash_of(dataclasses.replace(base, examples=base.examples * 2)))
    assert len({hash_of(), *others}) == 1 + len(others)


def test_windows_of_a_benchmark_leave_no_gaps(shapes: Model, tmp_path: Path) -> None:
    write_photos(tmp_path, [(40, 60)])
    index = own_index(tmp_path, window=16)
    protocol = make_protocol(shapes)
    sizes = operator.attrgetter("short_side", "window", "stride")
    assert sizes(protocol.of(index.benchmark)) == (64, 16, 8)
    smaller = dataclasses.replace(index.benchmark, window=None, short_side=32)
    assert sizes(protocol.of(smaller)) == (32, 32, 16)
    assert make_protocol(shapes, short_side=32).window == 32
    with pytest.raises(InputError, match="windows of 16 pixels at a stride of 17 leave gaps"):
        score(shapes, own_index(tmp_path, window=16, stride=17), tmp_path / "out")


def test_damaged_weights_get_no_score(shapes: Model, tmp_path: Path) -> None:
    write_photos(tmp_path, [(40, 60)])
    damaged = dataclasses.replace(
        shapes, params=jax.tree.map(lambda x: x * np.float16(np.nan), shapes.params)
    )
    texts = {"custom": np.eye(4, 64, dtype=np.float32)}
    with pytest.raises(RunError, match=r"000\.png: masks are not finite"):
        score(damaged, own_index(tmp_path), tmp_path / "out", text_embeddings=texts)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"custom": np.ones((2, 64), np.float32)}, r"'custom' must be .*\(4, 64\)"),
        ({"costum": np.ones((4, 64), np.float32)}, "'costum': evaluated are custom"),
    ],
)
def test_embeddings_that_do_not_fit_the_texts_are_refused(
    shapes: Model, tmp_path: Path, given: dict[str, np.ndarray], message: str
) -> None:
    write_photos(tmp_path, [(40, 60)])
    with pytest.raises(InputError, match=message):
        score(shapes, own_index(tmp_path), tmp_path / "out", text_embeddings=given)
