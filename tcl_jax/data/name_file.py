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
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn, TypeAlias

from tcl_jax.errors import InputError, as_input_error
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
_NUMBERED = r"(?P<value>-?\d+)\s*(?:[:,;=|\t]|[.)]\s)\s*(?P<name>.+)"
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
        path: of a text file, see above.
        what: it is, for messages, as "class names 'a.txt'".

    Raises:
        InputError: if it cannot be read, or a line is no name; the message has its number.
    """
    with as_input_error(f"{what} cannot be read"):
        stripped = [line.strip() for line in read_text(path).splitlines()]
    lines = {n: line for n, line in enumerate(stripped, start=1) if line and line[0] != "#"}
    return _Reader(what, lines).read()


_Numbered: TypeAlias = Mapping[int, tuple[int, tuple[str, ...]]]
"""Value and synonyms by number of the line."""


class _Reader:
    """The lines of a file by their numbers, and how they are understood."""

    def __init__(self, what: str, lines: Mapping[int, str]) -> None:
        self._what, self._lines = what, lines
        # Quoted parts as letters: what they hold is a name whatever it looks like.
        self._bare = {
            number: re.sub('"[^"]*"', lambda found: "q" * len(found[0]), line)
            for number, line in lines.items()
        }

    def read(self) -> NameFile:
        numbered = self._table() or self._numbered()
        if numbered is not None:
            return self._by_value(numbered)
        names = {number: self._synonyms(number) for number in self._lines}
        first = {synonyms[0]: i for i, synonyms in enumerate(names.values())}
        if first.get(IGNORED) == 0 or BACKGROUND in first:
            start = -1 if first.get(IGNORED) == 0 else 0
            return self._by_value(
                {n: (value, synonyms) for value, (n, synonyms) in enumerate(names.items(), start)}
            )
        for number, synonyms in names.items():
            if synonyms[0].lower() in _NOTHING:
                self._refuse(number, "names no class; remove it, and give its value as ignored")
        return NameFile(tuple(names.values()))

    def _refuse(self, number: int, why: str) -> NoReturn:
        line = self._lines[number]
        raise InputError(f"{self._what}: line {number}, {line[:60]!r}, {why}; {_EXPECTED}")

    # ------------------------------------------------------------------------- lines with values

    def _table(self) -> _Numbered | None:
        """Values and names by line, if the first line is the heading of a table of both."""
        if not self._lines:
            return None
        first = min(self._lines)
        separator = next((s for s in ",;\t" if s in self._bare[first]), " ")

        def words(line: str) -> list[str]:
            cells = self._cells(first, line, separator)
            return [re.sub(r"\W+", "_", cell.lower()).strip("_") for cell in cells]

        heading, bare = words(self._lines[first]), words(self._bare[first])
        name = next((heading.index(h) for h in _NAME_HEADINGS if h in heading), None)
        columns = [heading.index(h) for h in _VALUE_HEADINGS if h in heading]
        value = next((column for column in columns if column != name), None)
        if separator == " ":
            if {*bare} <= {*_NAME_HEADINGS, *_VALUE_HEADINGS}:
                self._refuse(first, "looks like a heading and not like a class")
            return None
        if name is None:
            return None
        if value is None:
            # Some programs put all in quotes; people only what is no heading.
            if bare[name] == heading[name] or not any(map(str.__eq__, bare, heading)):
                self._refuse(first, "is the heading of a table without label values")
            return None
        found = {}
        for number, line in self._lines.items():
            if number == first:
                continue
            cells = [*self._cells(number, line, separator), *[""] * len(heading)]
            synonyms = cells[name].split(";") if separator != ";" else [cells[name]]
            if not _is_number(cells[value]) or not all(text.strip() for text in synonyms):
                self._refuse(number, f"lacks {heading[value]!r}, a whole number, or a name")
            found[number] = int(cells[value]), tuple(text.strip() for text in synonyms)
        return found

    def _numbered(self) -> _Numbered | None:
        """Values and names by line, if all lines have both; None if none has."""
        for number, line in self._bare.items():
            if re.search(_OTHER_FORMATS, line):
                self._refuse(
                    number, "looks like JSON, YAML, XML, a colour or a value behind a name"
                )
        matches = {n: re.fullmatch(_NUMBERED, line) for n, line in self._bare.items()}
        found = {n: match for n, match in matches.items() if match}
        if not found:
            doubtful = [re.fullmatch(_MAY_BE_NUMBERED, line) for line in self._bare.values()]
            if len(doubtful) > 1 and all(doubtful):
                self._refuse(min(self._bare), "may be a name with a number, or with a label value")
            return None
        if others := self._bare.keys() - found.keys():
            self._refuse(min(others), f"has no label value, as line {min(found)} seems to have")
        return {
            n: (int(match["value"]), self._synonyms(n, slice(*match.span("name"))))
            for n, match in found.items()
        }

    def _by_value(self, numbered: _Numbered) -> NameFile:
        classes: dict[int, tuple[str, ...]] = {}
        seen: dict[int, int] = {}
        ignored, background = set(), False
        for number, (value, synonyms) in numbered.items():
            if value in seen:
                self._refuse(number, f"has the label value of line {seen[value]}")
            seen[value] = number
            if synonyms[0].lower() in _NOTHING:
                # -1 is written as the largest value that a PNG of 8 bits holds.
                ignored.add(255 if value == -1 else value)
            elif synonyms[0] == BACKGROUND and value == 0:
                background = True
            elif value < 0 or synonyms[0] == BACKGROUND:
                self._refuse(number, f"has the label value {value}, which it cannot have")
            else:
                classes[value] = synonyms
        values = tuple(sorted(classes))
        return NameFile(
            tuple(classes[value] for value in values), values, background, tuple(sorted(ignored))
        )

    # ------------------------------------------------------------------------------------- names

    def _cells(self, number: int, line: str, separator: str) -> list[str]:
        try:
            rows = csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True)
            return [cell.strip() for cell in next(rows)]
        except csv.Error as error:
            self._refuse(number, f"has quotes that do not fit ({error})")

    def _synonyms(self, number: int, part: slice = slice(None)) -> tuple[str, ...]:
        """The names in a line, or in a part of it."""
        synonyms = tuple(self._cells(number, self._lines[number][part], ","))
        bare = self._bare[number][part]
        two_numbers = part != slice(None) and re.match(r"\d+\s", bare)
        names = [name.strip() for name in bare.split(",")]
        if not all(synonyms) or any(map(_is_number, names)) or two_numbers:
            self._refuse(number, "has a number for a name, or a comma too many")
        if re.search(r"[;|\t]", bare):
            self._refuse(number, "has something else than commas between its names")
        return synonyms


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+", text) is not None


def number_synonyms(classes: Iterable[Sequence[str]]) -> tuple[tuple[int, ...], ...]:
    """Of every class the indices of its synonyms among those of all classes, one behind another."""
    numbers = itertools.count()
    return tuple(tuple(next(numbers) for _ in synonyms) for synonyms in classes)


def describe_synonyms(classes: Sequence[Sequence[str]]) -> str:
    """Names with their synonyms in words, of those classes that have some."""
    return "; ".join(" = ".join(synonyms) for synonyms in classes if len(synonyms) > 1)
