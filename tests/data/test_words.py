"""Which words are classes of their own."""

from __future__ import annotations

import pytest

from tcl_jax.data.words import check_words
from tcl_jax.errors import InputError


def test_words_that_differ_for_clip_stay_as_they_are() -> None:
    words = ["a cat", " Cats", "t-shirt", "t shirt", "猫", "🐈", "7", "cat & dog", "background"]
    assert check_words(iter(words)) == words
    assert check_words(words[:-1], background=True) == words[:-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cat", "Cat"], "'cat' and 'Cat' are the same to"),
        (["a  cat", " a cat "], "are the same to"),
        (["salt &amp; pepper", "Salt & Pepper"], "are the same to"),
        (["cat", "dog", "cat"], "'cat' is given twice"),
        (["cat", "Background "], "'Background ' is the name of the class"),
        (["cat", " "], "' ' must be a name"),
        (["cat", "--"], "'--' must be a name"),
        (["cat", 7], "7 must be a name"),
        (["caf\udce9"], "not UTF-8"),
        ([], "list of words is empty"),
        ("cat", "single string 'cat'"),
    ],
)
def test_words_that_are_no_classes(words, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_words(words, background=True)
