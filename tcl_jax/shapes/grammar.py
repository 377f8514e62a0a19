"""Everyday sentences about coloured and patterned shapes: a small random grammar."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")

# How often a caption leaves something out or adds the ground. A lone object's colour or pattern is
# left out half as often.
_COLOR_ONLY = 0.2
_PATTERN_ONLY = 0.2
_PARTIAL = 0.3
_GROUND = 0.12

NOUNS = ("shape", "thing", "object", "blob", "patch", "figure", "piece", "form")

# The first word is the class word and is used most; every word ends up before a noun or a colour.
PATTERN_WORDS: dict[str, tuple[str, ...]] = {
    "plain": ("plain", "solid"),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted", "polka-dot"),
    "checked": ("checked", "checkered"),
}
PATTERN_MARKS: dict[str, tuple[str, ...]] = {
    "plain": ("a plain surface", "no pattern"),
    "striped": ("stripes",),
    "dotted": ("dots", "spots"),
    "checked": ("checks",),
}

# {x} is the list of things, {is} agrees with it; whole frames need every object to be named.
_FRAMES = (
    "{x}", "{x}", "{x}", "{x}.", "a picture of {x}", "a photo of {x}.", "an image of {x}",
    "a drawing of {x}", "a small painting of {x}", "a view of {x}.", "a close-up of {x}",
    "there {is} {x}", "there {is} {x} here", "here {is} {x}.", "we see {x}", "i can see {x} here",
    "look at {x}", "this picture shows {x}.", "in the picture there {is} {x}", "today we have {x}",
    "someone drew {x}", "somebody has left {x} here.", "one can make out {x}",
    "what you see {is} {x}", "a scene with {x}",
)  # fmt: skip
_WHOLE_FRAMES = (
    "just {x}", "only {x} and nothing else", "nothing but {x}.", "an empty place with {x}",
)  # fmt: skip
_ONE_OBJECT_FRAMES = (
    "the {noun} is {color} and {pattern}", "the {noun} is {pattern} and {color}.",
    "the {color} {noun} is {pattern}", "the {pattern} {noun} is {color}",
    "this {noun} has a {pattern} {color} surface", "the {noun} here comes in {pattern} {color}.",
)  # fmt: skip
_GROUND_ENDINGS = ("on a {} background", "on a {} ground", "on a {} surface", "over something {}")


@dataclasses.dataclass(frozen=True)
class Subject:
    """What a caption may say about one object; x, y and area are fractions of the picture.

    Of an object whose pair is not `nameable`, colour or pattern is said, never both.
    """

    color: str
    pattern: str
    x: float
    y: float
    area: float
    nameable: bool = True


class _Said(NamedTuple):
    """What is said of an object; None is left out."""

    color: str | None
    pattern: str | None

    def fits(self, subject: Subject) -> bool:
        return self.color in (None, subject.color) and self.pattern in (None, subject.pattern)


def caption_templates() -> tuple[str, ...]:
    """Sentences to embed a class name such as "striped red" in, for zero-shot evaluation."""
    return (
        "a {} shape.", "a {} thing.", "a {} object.", "a picture of a {} blob.",
        "a photo of a {} patch.", "there is a {} figure here.", "we see a {} piece.",
    )  # fmt: skip


def describe(
    rng: np.random.Generator,
    subjects: Sequence[Subject],
    covers: Sequence[tuple[int, int]],
    ground: str,
) -> str:
    """A true sentence about the subjects, the farthest first, and sometimes the ground's tone.

    Covers are pairs (front, back) of their indices where the first hides a part of the second.
    """
    # Indices of the objects to name, in the order of naming.
    count = len(subjects)
    named = rng.permutation(count).tolist() if count > 1 else [0]
    if count > 1 and rng.random() < _PARTIAL:
        named = named[: 1 + int(rng.random() * (count - 1))]
    said = _choose_words(rng, [subjects[i] for i in named])
    color, pattern = said[0]
    if len(named) == 1 and color and pattern and rng.random() < 0.15:
        text = _pick(rng, _ONE_OBJECT_FRAMES).format(
            noun=_pick(rng, NOUNS), color=color, pattern=_pattern_word(rng, pattern)
        )
    else:
        # Objects of which the same is said share one phrase in the plural.
        groups: dict[_Said, list[int]] = {}
        for index, words in zip(named, said, strict=True):
            groups.setdefault(words, []).append(index)
        phrases = [
            _noun_phrase(rng, words, [subjects[i] for i in members], sum(map(words.fits, subjects)))
            for words, members in groups.items()
        ]
        listing = _joined(rng, phrases, list(groups.values()), subjects, covers)
        whole = len(named) == count
        frame = _pick(rng, _FRAMES + _WHOLE_FRAMES if whole else _FRAMES)
        several = len(next(iter(groups.values()))) > 1
        text = frame.format_map({"x": listing, "is": "are" if several else "is"})
    if rng.random() < _GROUND:
        ending = _pick(rng, _GROUND_ENDINGS).format(ground)
        text = f"{text[:-1]} {ending}." if text.endswith(".") else f"{text} {ending}"
    return text


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


def _choose_words(rng: np.random.Generator, subjects: Sequence[Subject]) -> list[_Said]:
    share = 0.5 if len(subjects) == 1 else 1.0
    color_only, pattern_only = share * _COLOR_ONLY, share * _PATTERN_ONLY
    if len(subjects) > 1:
        # What all objects have in common is worth a sentence of its own: "two red shapes".
        if len({s.color for s in subjects}) == 1:
            color_only = 0.5 if rng.random() < 0.4 else color_only
        elif len({s.pattern for s in subjects}) == 1 and rng.random() < 0.3:
            return [_Said(None, s.pattern) for s in subjects]
    said = []
    for subject in subjects:
        chance = rng.random()
        if chance < (color_only if subject.nameable else 0.5):
            said.append(_Said(subject.color, None))
        elif not subject.nameable or chance > 1.0 - pattern_only:
            said.append(_Said(None, subject.pattern))
        else:
            said.append(_Said(subject.color, subject.pattern))
    return said


def _pattern_word(rng: np.random.Generator, pattern: str) -> str:
    words = PATTERN_WORDS[pattern]
    return words[0] if rng.random() < 0.85 else _pick(rng, words)


def _noun_phrase(
    rng: np.random.Generator, said: _Said, subjects: Sequence[Subject], fitting: int
) -> str:
    """Such as "a striped red blob", "an orange thing with dots", "two plain blue shapes".

    It stands for `subjects`; what is said is true of `fitting` of the scene's objects.
    """
    count, noun = len(subjects), _pick(rng, NOUNS)
    if count > 1:
        noun += "es" if noun.endswith("ch") else "s"
    phrase = _attributed(rng, noun, said, "is" if count == 1 else "are")
    if rng.random() < 0.12:
        if all(s.area > 0.2 for s in subjects):
            phrase = f"{_pick(rng, ('big', 'large'))} {phrase}"
        elif all(s.area < 0.1 for s in subjects):
            phrase = f"{_pick(rng, ('small', 'little'))} {phrase}"
    if count > 1:
        # A number would be wrong where others that fit go unnamed.
        number = {2: "two", 3: "three"}[count] if fitting == count else "some"
        return f"{number} {phrase}"
    if rng.random() < 0.06:
        return f"one {phrase}"
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def _attributed(rng: np.random.Generator, noun: str, said: _Said, is_: str) -> str:
    color, pattern = said
    chance = rng.random()
    if pattern is None:
        return f"{noun} in {color}" if chance < 0.08 else f"{color} {noun}"
    word = _pattern_word(rng, pattern)
    if color is None:
        marks = f"{noun} with {_pick(rng, PATTERN_MARKS[pattern])}"
        return marks if chance < 0.15 else f"{word} {noun}"
    if chance < 0.55:
        return f"{word} {color} {noun}"
    if chance < 0.70:
        return f"{color} {word} {noun}"
    if chance < 0.84:
        return f"{color} {noun} with {_pick(rng, PATTERN_MARKS[pattern])}"
    if chance < 0.91:
        return f"{noun} in {word} {color}"
    if chance < 0.96:
        return f"{color} and {word} {noun}"
    return f"{noun} that {is_} {color} and {word}"


def _joined(
    rng: np.random.Generator,
    phrases: Sequence[str],
    groups: Sequence[Sequence[int]],
    subjects: Sequence[Subject],
    covers: Sequence[tuple[int, int]],
) -> str:
    if len(phrases) == 1:
        return phrases[0]
    first, second, *third = phrases
    links = ["and", "and", "next to", "beside", "together with"]
    if len(groups[0]) == len(groups[1]) == 1:
        links += _relations(groups[0][0], groups[1][0], subjects, covers)
    if third and rng.random() < 0.4:
        return f"{first}, {second} and {third[0]}"
    # A relation ties the first two; a third only stands by.
    text = f"{first} {_pick(rng, links)} {second}"
    return f"{text}, {_pick(rng, ('and', 'with', 'plus'))} {third[0]}" if third else text


def _relations(
    a: int, b: int, subjects: Sequence[Subject], covers: Sequence[tuple[int, int]]
) -> list[str]:
    """Links that are true of a and b; what covers what comes more often."""
    links = []
    if (a, b) in covers:
        links += ["in front of", "in front of", "on top of", "partly covering"]
    if (b, a) in covers:
        links += ["behind", "behind", "partly hidden by", "underneath"]
    dx, dy = subjects[b].x - subjects[a].x, subjects[b].y - subjects[a].y
    if abs(dx) > max(0.25, abs(dy)):
        links += ["to the left of", "left of"] if dx > 0 else ["to the right of", "right of"]
    elif abs(dy) > max(0.25, abs(dx)):
        links += ["above", "higher than"] if dy > 0 else ["below", "lower than"]
    return links
