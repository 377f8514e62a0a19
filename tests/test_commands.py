"""Flags that commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcl_jax.commands import read_texts


def test_label_values_in_a_file_of_texts_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names.txt").write_text("7: cat\n3: dog, puppy\n")
    assert read_texts([], str(tmp_path / "names.txt")) == [("dog", "puppy"), ("cat",)]
    output = capsys.readouterr().out
    assert "names.txt: dog (3), cat (7); label values are not used here" in output
    assert "dog = puppy" in output
