"""Flags that commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from tcl_jax.commands import command_parser, read_texts


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    p = command_parser("made_up", "What it does.")
    p.add_argument("--batch_size", type=int)
    p.add_argument("--pamr", action=argparse.BooleanOptionalAction, default=True)
    p.add_argument("names", nargs="*")
    return p


@pytest.mark.parametrize("flag", ["--batch_size=3", "--batch-size=3"])
def test_hyphens_and_underscores_are_the_same_in_a_flag(
    parser: argparse.ArgumentParser, flag: str
) -> None:
    assert parser.parse_args([flag]).batch_size == 3
    assert parser.parse_args([flag.removesuffix("=3"), "3"]).batch_size == 3


@pytest.mark.parametrize("flag", ["--no-pamr", "--no_pamr"])
def test_a_switch_is_turned_off_in_both_spellings(
    parser: argparse.ArgumentParser, flag: str
) -> None:
    assert not parser.parse_args([flag]).pamr


def test_values_and_what_is_no_flag_stay_as_they_are(parser: argparse.ArgumentParser) -> None:
    flags, rest = parser.parse_known_args(["a_b-c", "--config.train.steps_a-b=x-y_z"])
    assert (flags.names, rest) == (["a_b-c"], ["--config.train.steps_a-b=x-y_z"])
    assert parser.parse_args(["--", "--batch-size"]).names == ["--batch-size"]


def test_label_values_in_a_file_of_texts_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names.txt").write_text("7: cat\n3: dog, puppy\n")
    assert read_texts([], str(tmp_path / "names.txt")) == [("dog", "puppy"), ("cat",)]
    output = capsys.readouterr().out
    assert "names.txt: dog (3), cat (7); label values are not used here" in output
    assert "dog = puppy" in output
