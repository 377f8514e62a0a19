"""Names of classes, and whether they differ for CLIP."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from tcl_jax.data.tokenizer import clean
from tcl_jax.errors import InputError

BACKGROUND_NAME = "background"
"""Name of the class of pixels that show none of the words."""


def check_words(
    words: Iterable[Any], *, background: bool = False, seen: Callable[[str], Hashable] = clean
) -> list[str]:
    """Names of classes as a list, once each is known to differ from the others for CLIP.

    Args:
        words: such as ["a cat", "grass"].
        background: whether there is a class for all other pixels, too.
        seen: what CLIP reads of a word; by default its cleaned text.

    Raises:
        InputError: if there is no word, one is no text or nothing but spaces and punctuation, two
            are the same to CLIP, or one is that of the background.
    """
    if isinstance(words, str):
        raise InputError(f"got the single string {words!r}; give a list, [{words!r}]")
    words = list(words)
    if not words:
        raise InputError("the list of words is empty; give at least one")
    known: dict[Hashable, str] = {seen(BACKGROUND_NAME): ""} if background else {}
    for word in words:
        if not isinstance(word, str) or not _means_something(word):
            raise InputError(f"{word!r} must be a name with at least one letter or digit")
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{word!r} has bytes that are not UTF-8; type it in UTF-8") from error
        if (key := seen(word)) not in known:
            known[key] = word
        elif not (other := known[key]):
            raise InputError(
                f"{word!r} is the name of the class of all other pixels; leave it out, or switch "
                "the background off to have it found by its name"
            )
        elif word == other:
            raise InputError(f"{word!r} is given twice; leave one out")
        else:
            raise InputError(
                f"{other!r} and {word!r} are the same to the model, whose tokenizer passes "
                "over capitals, some spaces and what is beyond its context length; leave one out"
            )
    return words


def background_words(words: Sequence[str], classes: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """The protocol's words of the background for classes of one's own: those that no class has."""
    known = {clean(word) for synonyms in classes for word in synonyms}
    return tuple(word for word in words if clean(word) not in known) or (BACKGROUND_NAME,)


def _means_something(word: str) -> bool:
    """Whether there is more than punctuation, spaces and control characters."""
    return any(unicodedata.category(letter)[0] not in "PZC" for letter in word)
