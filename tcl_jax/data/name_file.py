"""Text files of names: classes of a benchmark, words to look for.

A line is a class: its name, and after commas synonyms of it, any of which shows the class. Blank
lines and those beginning with # do not count. A name with commas of its own, with numbers or colons
where others would have a label value, or any text that would be taken for another format, is put in
double quotes: `"a cat, sitting"`. Quotes within quotes are doubled, as in CSV files.

The lines may say the label value of each class, in any order and with gaps: `0: cat` or `0,cat` on
every line, or a CSV table whose heading names both columns (`id,name`). labelme's list,
`__ignore__` and `_background_` first, counts from -1 as labelme does.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from tcl_jax.errors import as_input_error
from tcl_jax.files import read_text

BACKGROUND, IGNORED = "_background_", "__ignore__"
"""What labelme calls what is none of the classes, and what does not count."""

_NOTHING = {IGNORED, "ignore", "ignored", "void", "unlabeled", "unlabelled"}
_NAME_HEADINGS = (
    "name", "names", "class_name", "classname", "label_name", "category", "category_name", "class",
    "classes", "label", "labels",
)  # fmt: skip
_VALUE_HEADINGS = (
    "id", "ids", "class_id", "label_id", "value", "label_value", "pixel_value", "idx", "index",
    "label", "",
)  # fmt: skip
_NUMBERED = r"(-?\d+)\s*(?:[:,;=|\t]|[.)]\s)\s*(?=.)"
# By itself a name, as "cat 2" and "2 cats" are; that all lines are such is no chance.
_MAY_BE_NUMBERED = r"-?\d+\s+.+|.+\s-?\d+"
_OTHER_FORMATS = "|".join((
    r"^[\[{]|[\[{]$|:\s*[\[{]|^[\]}],?$|^<[/?!\w]|\w:$|^- ",  # JSON, XML, YAML
    r"(?<!\w)\d+(?:[ ,;\t]+\d+){2}(?!\w)",  # a colour
    # A label value behind the name; in times and ratios a digit stands before the colon.
    r"^.*[^\d\s]\s*[:=|\t]\s*-?\d+$",
))  # fmt: skip
_EXPECTED = (
    "expected is a class a line, with its synonyms after commas, and if need be its label value "
    "before a colon (`0: cat`); a name that looks otherwise goes in double quotes"
)


@dataclasses.dataclass(frozen=True)
class NameFile:
    """What a file of names says.

    Attributes:
        classes: synonyms of every class, the first is its name; by their values where these are
            said, else in the order of the file.
        values: label value of every class, ascending; None: the file does not say them.
        background: whether it says that value 0 is none of the classes.
        ignored: values that it says do not count.
    """

    classes: tuple[tuple[str, ...], ...]
    values: tuple[int, ...] | None = None
    background: bool = False
    ignored: tuple[int, ...] = ()


def read_names(path: str | os.PathLike[str], what: str) -> NameFile:
    """Reads a file of names.

    Args:
        what: it is, for messages, as "class names 'a.txt'".

    Raises:
        InputError: if it cannot be read, or a line is no name; the message has its number.
    """
    with as_input_error(f"{what} cannot be read"):
        texts = [text.strip() for text in read_text(path).splitlines()]
    lines = [_Line(n, text) for n, text in enumerate(texts, 1) if text and text[0] != "#"]
    with as_input_error(what):
        return _parse(lines)


class _Line(NamedTuple):
    """A line of a file by its number, from 1."""

    number: int
    text: str

    @property
    def bare(self) -> str:
        """Quoted parts as letters: what they hold is a name whatever it looks like."""
        return re.sub('"[^"]*"', lambda found: "q" * len(found[0]), self.text)

    def error(self, why: str) -> ValueError:
        return ValueError(f"line {self.number}, {self.text[:60]!r}, {why}; {_EXPECTED}")

    def cells(self, separator: str, begin: int = 0) -> list[str]:
        """What stands between separators, without quotes, from a column of the line."""
        part = [self.text[begin:]]
        try:
            rows = csv.reader(part, delimiter=separator, skipinitialspace=True, strict=True)
            return [cell.strip() for cell in next(rows)]
        except csv.Error as error:
            raise self.error(f"has quotes that do not fit ({error})") from error

    def synonyms(self, begin: int = 0) -> tuple[str, ...]:
        """The names in the line from a column on."""
        names, bare = tuple(self.cells(",", begin)), self.bare[begin:]
        numbers = [name for name in bare.split(",") if _is_number(name)]
        if not all(names) or numbers or (begin and re.match(r"\d+\s", bare)):
            raise self.error("has a number for a name, or a comma too many")
        if re.search(r"[;|\t]", bare):
            raise self.error("has something else than commas between its names")
        return names


_Numbered: TypeAlias = list[tuple[_Line, int, tuple[str, ...]]]
"""Lines, each with its label value and synonyms."""


def _parse(lines: Sequence[_Line]) -> NameFile:
    numbered = _table(lines) or _numbered(lines)
    if numbered is not None:
        return _by_value(numbered)
    classes = [line.synonyms() for line in lines]
    names = [synonyms[0] for synonyms in classes]
    if BACKGROUND in names or names[:1] == [IGNORED]:
        values = range(-1 if names[0] == IGNORED else 0, len(names))
        return _by_value(list(zip(lines, values, classes, strict=False)))
    for line, name in zip(lines, names, strict=True):
        if name.lower() in _NOTHING:
            raise line.error("names no class; remove it, and give its value as ignored")
    return NameFile(tuple(classes))


def _table(lines: Sequence[_Line]) -> _Numbered | None:
    """The rows of a table, if the first line is a heading of names and of label values."""
    if not lines:
        return None
    first = lines[0]
    separator = next((s for s in ",;\t" if s in first.bare), " ")
    heading = [re.sub(r"\W+", "_", cell.lower()) for cell in first.cells(separator)]
    name = next((heading.index(h) for h in _NAME_HEADINGS if h in heading), None)
    columns = [heading.index(h) for h in _VALUE_HEADINGS if h in heading]
    value = next((column for column in columns if column != name), None)
    if separator == " " or name is None or value is None:
        all_headings = {*first.bare.lower().split()} <= {*_NAME_HEADINGS, *_VALUE_HEADINGS}
        if all_headings or (separator != " " and {"name", "names"} & {*heading}):
            raise first.error("is a heading, but not of a table of names and label values")
        return None
    found = []
    for line in lines[1:]:
        cells = [*line.cells(separator), *[""] * len(heading)]
        synonyms = [text.strip() for text in cells[name].split(";")]
        if not _is_number(cells[value]) or not all(synonyms):
            raise line.error(f"lacks {heading[value]!r}, a whole number, or a name")
        found.append((line, int(cells[value]), tuple(synonyms)))
    return found


def _numbered(lines: Sequence[_Line]) -> _Numbered | None:
    """Lines with their label values, if all have one; None if none has."""
    for line in lines:
        if re.search(_OTHER_FORMATS, line.bare):
            raise line.error("looks like JSON, YAML, XML, a colour or a value behind a name")
    matches = [re.match(_NUMBERED, line.bare) for line in lines]
    if not any(matches):
        if len(lines) > 1 and all(re.fullmatch(_MAY_BE_NUMBERED, line.bare) for line in lines):
            raise lines[0].error("may be a name with a number, or with a label value")
        return None
    found = []
    for line, match in zip(lines, matches, strict=True):
        if match is None:
            raise line.error("has no label value, and others have")
        found.append((line, int(match[1]), line.synonyms(match.end())))
    return found


def _by_value(numbered: _Numbered) -> NameFile:
    classes: dict[int, tuple[str, ...]] = {}
    ignored, background, seen = set(), False, set()
    for line, value, synonyms in numbered:
        if synonyms[0].lower() in _NOTHING:
            # -1 is written as the largest value that a PNG of 8 bits holds.
            ignored.add(255 if value == -1 else value)
        elif synonyms[0] == BACKGROUND and value == 0:
            background = True
        elif value < 0 or synonyms[0] == BACKGROUND or value in seen:
            raise line.error(f"has the label value {value}, which it cannot have")
        else:
            classes[value] = synonyms
        seen.add(value)
    values = tuple(sorted(classes))
    return NameFile(
        tuple(classes[value] for value in values), values, background, tuple(sorted(ignored))
    )


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*-?\d+\s*", text) is not None


def number_synonyms(classes: Iterable[Sequence[str]]) -> tuple[tuple[int, ...], ...]:
    """Of every class the indices of its synonyms among those of all classes, one behind another."""
    numbers = itertools.count()
    return tuple(tuple(next(numbers) for _ in synonyms) for synonyms in classes)


def describe_synonyms(classes: Sequence[Sequence[str]]) -> str:
    """Names with their synonyms in words, of those classes that have some."""
    return "; ".join(" = ".join(synonyms) for synonyms in classes if len(synonyms) > 1)
