"""The template sets, against the golden ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tcl_jax.inference.templates import TEMPLATES, format_prompts

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "tokenizer.json").read_text())


def test_template_sets_are_the_golden_ones():
    assert {name: list(TEMPLATES[name]) for name in GOLDEN["templates"]} == GOLDEN["templates"]


def test_format_prompts():
    assert format_prompts("plural", "cat") == ["a photo of cats."]
    assert format_prompts(["{} and {0}", "{}"], "{x}") == ["{x} and {0}", "{x}"]
    assert format_prompts("a {}; {}, drawn", "cat") == ["a cat", "cat, drawn"]
    assert len(format_prompts("custom", "cat")) == 9


@pytest.mark.parametrize(
    ("templates", "message"),
    [("customs", "identity, simple"), ([], "empty"), (["a photo"], "'a photo'")],
)
def test_format_prompts_bad_input(templates, message):
    with pytest.raises(ValueError, match=message):
        format_prompts(templates, "cat")
