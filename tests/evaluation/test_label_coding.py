"""What the values of labels tell of a benchmark before it is scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcl_jax.errors import InputError
from tcl_jax.evaluation.benchmark import custom_benchmark
from tcl_jax.evaluation.label_coding import coding_problems, describe_values
from tcl_jax.evaluation.labels import to_classes

ABC = ["cat", "dog", "cow"]


def problems(classes: list[str], seen: list[int], **settings: Any) -> list[tuple[bool, str]]:
    benchmark = custom_benchmark("i", "l", classes, **settings)
    found = coding_problems(benchmark, dict.fromkeys(seen, 5), Path("l"))
    return [(problem.fatal, problem.detail) for problem in found]


@pytest.mark.parametrize(
    ("classes", "settings", "values", "fatal", "parts"),
    [
        (["thing"], {}, [0, 255], True, ["0 (50.0 %), 255", "any model", "--background"]),
        (["thing"], {"background": True}, [0, 255], True, ["only 'background'"]),
        (ABC, {}, [0, 255], True, ["only 'cat'"]),
        (ABC, {"values": [3, 5, 255], "ignore": 0}, [0, 255], False, ["'cat', 'dog'"]),
        (["thing"], {}, [255], True, ["nothing is left"]),
        (["thing"], {}, [0, 1], True, ["of 1 there is no class"]),
        (ABC, {}, [0, 1, 2, 3, 11], True, ["of 3, 11 there is", "--reduce_zero_label", "--ignore"]),
        (ABC, {"reduce_zero_label": True}, [0, 255], True, ["nothing is left"]),
        (ABC, {"background": True}, [0, 1, 2], False, ["'cow'"]),
    ],
)
def test_values_of_another_coding(
    classes: list[str], settings: dict[str, Any], values: list[int], fatal: bool, parts: list[str]
) -> None:
    ((is_fatal, detail),) = problems(classes, values, **settings)
    assert is_fatal == fatal
    assert all(part in detail for part in parts), detail


@pytest.mark.parametrize(
    ("classes", "settings", "values"),
    [
        (ABC, {}, [0, 1, 2, 255]),
        (ABC, {"background": True}, [0, 1, 2, 3]),
        (ABC, {"reduce_zero_label": True}, [1, 2, 3]),
        (["thing"], {"background": True, "values": [255]}, [0, 255]),
        (["cat", "dog"], {"ignore": [11, 255]}, [0, 1, 11, 255]),
    ],
)
def test_sound_values(classes: list[str], settings: dict[str, Any], values: list[int]) -> None:
    assert problems(classes, values, **settings) == []


def test_a_class_called_background_is_told_of() -> None:
    named = custom_benchmark("i", "l", ["Background", "cat"])
    assert "give --background" in describe_values(named)
    assert "--background" not in describe_values(custom_benchmark("i", "l", ABC))


def test_values_of_a_file_of_classes(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("255: thing\n7: road\n")
    benchmark = custom_benchmark("i", "l", names, background=True)
    assert describe_values(benchmark) == (
        "custom: labels 0 = none of them (by the threshold), 7 = road, 255 = thing; ignored: none"
    )
    assert to_classes(np.array([[0, 255, 7]], np.uint8), benchmark).tolist() == [[0, 2, 1]]
    names.write_text("0: cat\n1: dog\n")
    plain = custom_benchmark("i", "l", ["cat", "dog"])
    assert custom_benchmark("i", "l", names) == plain
    with pytest.raises(InputError, match="value 0 is that of the class 'cat'"):
        custom_benchmark("i", "l", names, reduce_zero_label=True)
    names.write_text("__ignore__\n_background_\ncat\ndog\n")
    labelme = custom_benchmark("i", "l", names)
    assert labelme == custom_benchmark("i", "l", ["cat", "dog"], background=True)
