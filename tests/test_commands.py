"""Flags that commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcl_jax.commands import read_templates, read_texts
from tcl_jax.errors import InputError
from tcl_jax.inference.templates import TEMPLATES


def test_label_values_in_a_file_of_texts_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names.txt").write_text("7: cat\n3: dog, puppy\n")
    assert read_texts([], str(tmp_path / "names.txt")) == [("dog", "puppy"), ("cat",)]
    output = capsys.readouterr().out
    assert "names.txt: dog (3), cat (7); label values are not used here" in output
    assert "dog = puppy" in output


def test_templates_are_a_set_or_sentences_of_ones_own(tmp_path: Path) -> None:
    file, bad = tmp_path / "prompts.txt", tmp_path / "bad.txt"
    file.write_text("# of sketches\na sketch of a {}\n\nthe {}, drawn\n")
    bad.write_text("a {}\na cat\n")
    own = "a picture of a {}"
    assert read_templates(None) is None
    assert read_templates(["full"]) == "full"
    assert read_templates([own]) == [own]
    assert read_templates([own, str(file), "simple", own]) == [
        own, "a sketch of a {}", "the {}, drawn", *TEMPLATES["simple"],
    ]  # fmt: skip
    for value, message in (("a cat", "no sentence with {}"), (str(bad), "'a cat': has no {}")):
        with pytest.raises(InputError, match=message) as error:
            read_templates([own, value])
        assert f"--templates={value!r}: " in str(error.value)
