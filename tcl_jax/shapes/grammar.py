"""Everyday sentences about coloured and patterned shapes: a small random grammar."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

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

# {x} is the list of things, {is} agrees with it, {all} frames need every object to be named.
_FRAMES = (
    "{x}",
    "{x}",
    "{x}",
    "{x}.",
    "a picture of {x}",
    "a photo of {x}.",
    "an image of {x}",
    "a drawing of {x}",
    "a small painting of {x}",
    "a view of {x}.",
    "a close-up of {x}",
    "there {is} {x}",
    "there {is} {x} here",
    "here {is} {x}.",
    "we see {x}",
    "i can see {x} here",
    "look at {x}",
    "this picture shows {x}.",
    "in the picture there {is} {x}",
    "today we have {x}",
    "someone drew {x}",
    "somebody has left {x} here.",
    "one can make out {x}",
    "what you see {is} {x}",
    "a scene with {x}",
)
_WHOLE_FRAMES = (
    "just {x}",
    "only {x} and nothing else",
    "nothing but {x}.",
    "an empty place with {x}",
)
_ONE_OBJECT_FRAMES = (
    "the {noun} is {color} and {pattern}",
    "the {noun} is {pattern} and {color}.",
    "the {color} {noun} is {pattern}",
    "the {pattern} {noun} is {color}",
    "this {noun} has a {pattern} {color} surface",
    "the {noun} here comes in {pattern} {color}.",
)
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


@dataclasses.dataclass(frozen=True)
class Mention:
    """What a caption did say: attributes left out are None, in the order of the sentence."""

    color: str | None
    pattern: str | None
    count: int = 1


@dataclasses.dataclass(frozen=True)
class Caption:
    """A sentence and, for checking it, what it says of which objects."""

    text: str
    mentions: tuple[Mention, ...]


@dataclasses.dataclass(frozen=True)
class CaptionHabits:
    """How often captions leave things out; each a probability in [0, 1].

    Attributes:
      color_only: an object's pattern is not named (half as often for a lone object).
      pattern_only: an object's colour is not named (half as often for a lone object).
      partial: not all of several objects are named.
      ground: the background is named.
    """

    color_only: float
    pattern_only: float
    partial: float
    ground: float


def caption_templates() -> tuple[str, ...]:
    """Sentences to embed a class name such as "striped red" in, for zero-shot evaluation."""
    return (
        "a {} shape.",
        "a {} thing.",
        "a {} object.",
        "a picture of a {} blob.",
        "a photo of a {} patch.",
        "there is a {} figure here.",
        "we see a {} piece.",
    )


def describe(
    rng: np.random.Generator,
    subjects: Sequence[Subject],
    covers: Sequence[tuple[int, int]],
    ground: str,
    habits: CaptionHabits,
) -> Caption:
    """A true sentence about the subjects.

    Args:
      rng: source of all choices.
      subjects: the objects, the farthest first.
      covers: pairs (front, back) of indices into subjects where the first hides a part of the
        second.
      ground: name of the background's tone.
      habits: how often things are left out.
    """
    named = _named(rng, len(subjects), habits.partial)
    whole = len(named) == len(subjects)
    attributes = _attributes(rng, [subjects[i] for i in named], habits)
    if len(named) == 1 and None not in attributes[0] and rng.random() < 0.15:
        text = _fill_one(rng, attributes[0])
        mentions = [Mention(*attributes[0])]
    else:
        groups = _grouped(named, attributes)
        mentions = [Mention(*words, count=len(members)) for words, members in groups]
        phrases = [
            _noun_phrase(rng, mention, [subjects[i] for i in members], _fitting(subjects, mention))
            for mention, (_, members) in zip(mentions, groups, strict=True)
        ]
        listing = _joined(rng, phrases, [members for _, members in groups], subjects, covers)
        frames = _FRAMES + _WHOLE_FRAMES if whole else _FRAMES
        is_ = "is" if mentions[0].count == 1 else "are"
        text = _pick(rng, frames).format_map({"x": listing, "is": is_})
    if rng.random() < habits.ground:
        ending = _pick(rng, _GROUND_ENDINGS).format(ground)
        text = f"{text[:-1]} {ending}." if text.endswith(".") else f"{text} {ending}"
    return Caption(text, tuple(mentions))


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


def _named(rng: np.random.Generator, count: int, partial: float) -> list[int]:
    """Indices of the objects to name, in the order of naming."""
    order = rng.permutation(count).tolist() if count > 1 else [0]
    if count > 1 and rng.random() < partial:
        return order[: 1 + int(rng.random() * (count - 1))]
    return order


def _attributes(
    rng: np.random.Generator, subjects: Sequence[Subject], habits: CaptionHabits
) -> list[tuple[str | None, str | None]]:
    """The (colour, pattern) to say of each subject; None where it is left out."""
    share = 0.5 if len(subjects) == 1 else 1.0
    color_only, pattern_only = share * habits.color_only, share * habits.pattern_only
    if len(subjects) > 1:
        # What all objects have in common is worth a sentence of its own: "two red shapes".
        if len({s.color for s in subjects}) == 1:
            color_only = max(color_only, 0.5 if rng.random() < 0.4 and color_only > 0 else 0.0)
        elif len({s.pattern for s in subjects}) == 1 and pattern_only > 0 and rng.random() < 0.3:
            return [(None, s.pattern) for s in subjects]
    attributes: list[tuple[str | None, str | None]] = []
    for subject in subjects:
        chance = rng.random()
        if not subject.nameable:
            one_word = (subject.color, None) if chance < 0.5 else (None, subject.pattern)
            attributes.append(one_word)
        elif chance < color_only:
            attributes.append((subject.color, None))
        elif chance > 1.0 - pattern_only:
            attributes.append((None, subject.pattern))
        else:
            attributes.append((subject.color, subject.pattern))
    return attributes


def _grouped(
    named: Sequence[int], attributes: Sequence[tuple[str | None, str | None]]
) -> list[tuple[tuple[str | None, str | None], list[int]]]:
    """Objects of which the same is said share one phrase in the plural."""
    groups: dict[tuple[str | None, str | None], list[int]] = {}
    for index, words in zip(named, attributes, strict=True):
        groups.setdefault(words, []).append(index)
    return list(groups.items())


def _pattern_word(rng: np.random.Generator, pattern: str) -> str:
    words = PATTERN_WORDS[pattern]
    return words[0] if rng.random() < 0.85 else _pick(rng, words)


def _fill_one(rng: np.random.Generator, attributes: tuple[str | None, str | None]) -> str:
    color, pattern = attributes
    assert color is not None and pattern is not None
    return _pick(rng, _ONE_OBJECT_FRAMES).format_map(
        {"noun": _pick(rng, NOUNS), "color": color, "pattern": _pattern_word(rng, pattern)}
    )


def _fitting(subjects: Sequence[Subject], mention: Mention) -> int:
    """How many of the subjects the words of a mention are true of."""
    return sum(
        mention.color in (None, s.color) and mention.pattern in (None, s.pattern) for s in subjects
    )


def _noun_phrase(
    rng: np.random.Generator, mention: Mention, subjects: Sequence[Subject], fitting: int
) -> str:
    """Such as "a striped red blob", "an orange thing with dots", "two plain blue shapes"."""
    noun = _pick(rng, NOUNS)
    if mention.count > 1:
        noun += "es" if noun.endswith("ch") else "s"
    phrase = _attributed(rng, noun, mention)
    if rng.random() < 0.12:
        if all(s.area > 0.2 for s in subjects):
            phrase = f"{_pick(rng, ('big', 'large'))} {phrase}"
        elif all(s.area < 0.1 for s in subjects):
            phrase = f"{_pick(rng, ('small', 'little'))} {phrase}"
    if mention.count > 1:
        # A number would be wrong where others that fit go unnamed.
        number = {2: "two", 3: "three"}[mention.count] if fitting == mention.count else "some"
        return f"{number} {phrase}"
    if rng.random() < 0.06:
        return f"one {phrase}"
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def _attributed(rng: np.random.Generator, noun: str, mention: Mention) -> str:
    color, pattern = mention.color, mention.pattern
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
    return f"{noun} that {'is' if mention.count == 1 else 'are'} {color} and {word}"


def _joined(
    rng: np.random.Generator,
    phrases: Sequence[str],
    groups: Sequence[Sequence[int]],
    subjects: Sequence[Subject],
    covers: Sequence[tuple[int, int]],
) -> str:
    if len(phrases) == 1:
        return phrases[0]
    first, second = phrases[0], phrases[1]
    links = ["and", "and", "next to", "beside", "together with"]
    if len(groups[0]) == len(groups[1]) == 1:
        links += _relations(groups[0][0], groups[1][0], subjects, covers)
    if len(phrases) == 2:
        return f"{first} {_pick(rng, links)} {second}"
    third = phrases[2]
    if rng.random() < 0.4:
        return f"{first}, {second} and {third}"
    # A relation ties the first two; the third only stands by.
    return f"{first} {_pick(rng, links)} {second}, {_pick(rng, ('and', 'with', 'plus'))} {third}"


def _relations(
    a: int, b: int, subjects: Sequence[Subject], covers: Sequence[tuple[int, int]]
) -> list[str]:
    """Links that are true of a and b; what covers what is told more often."""
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
