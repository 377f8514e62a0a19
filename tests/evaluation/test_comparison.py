"""Two evaluations side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tcl_jax.evaluation.comparison import compare
from tests.evaluation.made_results import fingerprint_of

IMAGES = {"classes": "0" * 16, "images": 10, "image_list": "1" * 16}


def put(
    folder: Path, scores: dict[str, float | None], *, per_benchmark: Any = None, **changes: Any
) -> Path:
    """A results.json; `per_benchmark` changes fields of single benchmarks' fingerprints."""
    benchmarks = {name: {**IMAGES, **(per_benchmark or {}).get(name, {})} for name in scores}
    content = {
        "format_version": 1,
        "benchmarks": {name: {"miou": miou} for name, miou in scores.items()},
        "fingerprint": fingerprint_of(benchmarks=benchmarks, **changes),
    }
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(content))
    return folder


def rows_of(text: str) -> dict[str, list[str]]:
    lines = text.split("\n\n")[1].splitlines()
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_equal_but_for_scores(tmp_path: Path) -> None:
    a = put(tmp_path / "a", {"voc": 50.125, "ade20k": 20.0, "cityscapes": 30.0})
    b = put(tmp_path / "b", {"ade20k": 19.5, "voc": 51.5, "context": 7.0}, hash="other")
    text = compare(a, b / "results.json")
    assert rows_of(text) == {
        "mIoU, %": ["A", "B", "B - A"],
        "voc": ["50.12", "51.50", "+1.38"],
        "ade20k": ["20.00", "19.50", "-0.50"],
        "cityscapes": ["30.00", "-", "-"],
        "context": ["-", "7.00", "-"],
        "mean of 2": ["35.06", "35.50", "+0.44"],
    }
    assert "scores are comparable" in text and "WARNING" not in text and "Compared" not in text
    assert text.startswith(f"A: {a}\nB: {b / 'results.json'}")


def test_method_and_weights_are_what_one_compares(tmp_path: Path) -> None:
    a = put(tmp_path / "a", {"voc": 50.0})
    b = put(tmp_path / "b", {"voc": 20.0}, method="maskclip", weights="cd" * 32, kp_weight=0.0)
    text = compare(a, b)
    assert "WARNING" not in text and "*" not in text
    assert "Compared:\n  method: tcl in A, maskclip in B" in text
    assert f"weights: {'ab' * 32} in A, {'cd' * 32} in B" in text
    assert "\n  kp_weight: 0.3 in A, 0.0 in B" in text and "scores are comparable" in text


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("kp_weight", 0.0, "kp_weight: 0.3 in A, 0.0 in B"),
        ("dtype", None, "dtype: float32 in A, nothing in B"),
        ("new", {"deep": [1]}, "new: deep: nothing in A, [1] in B"),
    ],
)
def test_another_protocol_is_warned_of(tmp_path: Path, field: str, value: Any, shown: str) -> None:
    a = put(tmp_path / "a", {"voc": 50.0, "ade20k": None})
    b = put(tmp_path / "b", {"voc": 20.0, "ade20k": 3.0}, weights="cd" * 32, **{field: value})
    text = compare(a, b)
    warning = text.split("WARNING: ")[1]
    assert f"\n  {shown}" in warning and "weights" not in warning
    assert rows_of(text)["voc"][-1] == "-30.00*" and rows_of(text)["mean of 1"][-1] == "-30.00*"
    assert rows_of(text)["ade20k"] == ["-", "3.00", "-"]
    assert "nan" not in text.lower()


def test_other_images_concern_one_benchmark(tmp_path: Path) -> None:
    scores: dict[str, float | None] = {"voc": 50.0, "ade20k": 10.0, "cityscapes": 5.0}
    a = put(tmp_path / "a", scores)
    b = put(tmp_path / "b", scores, per_benchmark={"voc": {"images": 9, "threshold": 0.1}})
    text = compare(a, b)
    assert "\n  voc: images: 10 in A, 9 in B" in text
    assert "\n  voc: threshold: 0.4 in A, 0.1 in B" in text
    gains = {name: row[-1] for name, row in rows_of(text).items()}
    assert gains["voc"] == "+0.00*" and gains["ade20k"] == "+0.00" and gains["mean of 3"][-1] == "*"
