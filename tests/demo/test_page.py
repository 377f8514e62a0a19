"""What the page's functions answer, without a browser."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tcl_jax.demo import page as page_module
from tcl_jax.demo.answers import Answers
from tcl_jax.errors import InputError

SWITCHES = (False, False)


class Failing:
    """Answers that fail as they are told to."""

    method = "tcl"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def question(self, *arguments: Any, **options: Any) -> Any:
        raise self.error

    def picture(self, path: str) -> Any:
        raise self.error

    def pack(self, *arguments: Any) -> Any:
        raise self.error


def failing(error: Exception) -> Answers:
    made: Any = Failing(error)
    return made


def test_bad_input_is_told_as_text_and_changes_nothing() -> None:
    answers = failing(InputError("no <b>cat</b> here"))
    stage, question, message, download = page_module._ask(answers)("a.png", "cat", *SWITCHES)
    assert "no &lt;b&gt;cat&lt;/b&gt; here" in message and 'role="alert"' in message
    assert stage == question == download == page_module.gr.skip()
    stage, question, message, _ = page_module._look(answers)("a.png")
    assert stage is None and question is None and "no &lt;b&gt;cat" in message
    path, message = page_module._pack(answers, "")(None, 0.3, 0.5, 0.6, True)
    assert path is None and "nothing to download yet" in message


def test_an_unforeseen_failure_is_logged_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    answers = failing(RuntimeError("/secret/path"))
    with caplog.at_level(logging.ERROR):
        message = page_module._ask(answers)("a.png", "cat", *SWITCHES)[2]
    assert "secret" not in message and "Something went wrong on the server" in message
    assert "/secret/path" in caplog.text


def test_nothing_is_asked_again_before_something_was_asked() -> None:
    def ask(*inputs: Any) -> Any:
        return inputs

    again = page_module._again(ask)
    assert again(None, 1, 2) == (page_module.gr.skip(),) * 4
    made: Any = object()
    assert again(made, 1, 2) == (1, 2)


@pytest.mark.parametrize(
    ("method", "thresholds"),
    [("tcl", {"tcl": 0.3, "maskclip": 0.5}), ("maskclip", {"maskclip": 0.3})],
)
def test_what_is_taken_away_has_the_thresholds_of_the_sliders(
    method: str, thresholds: dict[str, float]
) -> None:
    answers = mock.Mock(method=method, pack=mock.Mock(return_value=Path("masks.zip")))
    question: Any = object()
    pack = page_module._pack(answers, "folder")
    assert pack(question, 0.3, 0.5, 0.6, True) == ("masks.zip", "")
    assert pack(question, 0.3, 0.5, 0.6, False) == ("masks.zip", "")
    assert answers.pack.call_args_list == [
        mock.call(question, "folder", thresholds, 0.6),
        mock.call(question, "folder", None, 0.6),
    ]


def test_no_photo_clears_the_stage() -> None:
    shown, question, message, _ = page_module._look(failing(RuntimeError()))(None)
    assert shown is None and question is None and message == ""
