"""Files that list images and their captions: tables as CSV, lines of JSON, JSON as COCO's.

Which columns (or fields) have the images and the captions is told by their names, or by the caller.
A table without a heading is one whose first row has the name of an image; its columns are counted
from 1. Several rows of an image, and lists in a field, are several captions.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

from absl import logging

from tcl_jax.data.captions import strings_in
from tcl_jax.errors import InputError, as_input_error, shorten
from tcl_jax.files import IMAGE_SUFFIXES, read_text, user_path

IMAGE_COLUMNS = (
    "image", "file_name", "filename", "file", "filepath", "file_path", "path", "image_path",
    "image_file", "image_name", "images", "img", "img_path", "jpg", "image_id", "name",
)  # fmt: skip
CAPTION_COLUMNS = (
    "caption", "captions", "text", "texts", "txt", "description", "sentence", "sentences",
    "comment", "prompt", "title", "alt_text", "raw",
)  # fmt: skip
"""Names of columns that are looked for, in this order, in any letter case."""

TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".txt")
LINES_SUFFIXES = (".jsonl", ".ndjson")
JSON_SUFFIX = ".json"
SUFFIXES = (*TABLE_SUFFIXES, *LINES_SUFFIXES, JSON_SUFFIX)

_SEPARATORS = ",;|"  # where there is no tab


class Row(NamedTuple):
    """What a file says of an image: its name, its captions, and where, as "line 3"; of an image
    within the file also its size in bytes and what reads it.
    """

    image: str
    captions: tuple[str, ...]
    where: str = ""
    size: int = 0
    read: Callable[[], bytes] | None = None


class Columns(NamedTuple):
    """Names of the columns that are read."""

    image: str
    caption: str


def read_caption_file(
    path: str | os.PathLike[str], image_column: str = "", caption_column: str = ""
) -> tuple[list[Row], str]:
    """Reads a file by its suffix, one of `SUFFIXES`.

    Args:
        path: of the file; UTF-8, or with a mark that tells otherwise.
        image_column, caption_column: names, or numbers from 1 of a table without a heading; empty:
            the first of `IMAGE_COLUMNS` and `CAPTION_COLUMNS` that is there.

    Returns:
        The rows in their order, and a sentence on what was read as what.

    Raises:
        InputError: it cannot be read, has other columns, or a row does not fit its heading.
    """
    path = user_path(path)
    what, suffix = f"--captions={str(path)!r}", path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(
            f"{what}: read are {', '.join(SUFFIXES)} and .parquet, by the suffix; save it as one "
            "of these"
        )
    with as_input_error(what):
        text = read_text(path)
        if suffix in TABLE_SUFFIXES:
            objects, wanted = _table(text, image_column)
        elif suffix == JSON_SUFFIX and (content := _whole_json(text)) is not None:
            if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
                return _coco(content), "as COCO's captions"
            objects, wanted = _objects(content), Columns("", "")
        else:
            objects, wanted = _lines(text), Columns("", "")
        if not objects:
            raise ValueError("it has no rows")
        names = list(dict.fromkeys(name for _, fields in objects for name in fields))
        columns = find_columns(
            names, image_column or wanted.image, caption_column or wanted.caption
        )
    rows = [
        Row(_name(fields.get(columns.image)), captions_in(fields.get(columns.caption)), where)
        for where, fields in objects
    ]
    return rows, f"images in column {columns.image!r}, captions in column {columns.caption!r}"


def find_columns(names: Sequence[str], image: str, caption: str) -> Columns:
    """The columns that are wanted, or else the first of `IMAGE_COLUMNS` and `CAPTION_COLUMNS`.

    Raises:
        ValueError: there is none, or one is both; the message names those that are there.
    """
    columns = Columns(
        _find_column(names, image, IMAGE_COLUMNS, "image"),
        _find_column(names, caption, CAPTION_COLUMNS, "caption"),
    )
    if columns.image == columns.caption:
        raise ValueError(
            f"column {columns.image!r} cannot hold both the images and the captions; it has "
            f"{shorten([repr(n) for n in names], 12)}: say which with --image_column=NAME and "
            "--caption_column=NAME"
        )
    return columns


def _find_column(names: Sequence[str], wanted: str, known: Iterable[str], what: str) -> str:
    folded = {_fold(name): name for name in reversed(names)}
    if wanted:
        if wanted in names or _fold(wanted) in folded:
            return wanted if wanted in names else folded[_fold(wanted)]
        raise ValueError(f"no column {wanted!r}; it has {shorten([repr(n) for n in names], 12)}")
    for name in known:
        if name in folded:
            return folded[name]
    raise ValueError(
        f"none of its columns is known to hold {what}s; it has "
        f"{shorten([repr(n) for n in names], 12)}: say which one with --{what}_column=NAME (of a "
        "table without a heading its number, from 1)"
    )


def captions_in(value: Any) -> tuple[str, ...]:
    """The captions of a field: a string, a list, or a string with a list as JSON; without white
    space around them, and each once. None of them is empty.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            listed = json.loads(value)
            value = listed if strings_in(listed, CAPTION_COLUMNS) else value
    texts = (text.strip() for text in strings_in(value, CAPTION_COLUMNS))
    return tuple(dict.fromkeys(text for text in texts if text))


def _name(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _fold(name: str) -> str:
    return re.sub(r"\W+", "_", name.strip().lower()).strip("_")


# ------------------------------------------------------------------------------------------- tables


_Object: TypeAlias = tuple[str, dict[str, Any]]
"""Where it is, and the fields of a row."""


def _table(text: str, image_column: str) -> tuple[list[_Object], Columns]:
    """The rows under their heading, and, where there is none, which columns count."""
    heading_line = text.lstrip().partition("\n")[0]
    separator = "\t" if "\t" in heading_line else max(_SEPARATORS, key=heading_line.count)
    lines = _cells(text, separator)
    if not lines:
        return [], Columns("", "")
    heading, wanted = [cell.strip() for cell in lines[0][1]], Columns("", "")
    images = [number for number, cell in enumerate(heading, 1) if is_image_name(cell)]
    if image_column.isdigit() and image_column not in heading:
        images = [int(image_column)]
    if images:
        others = [number for number in range(1, len(heading) + 1) if number != images[0]]
        wanted = Columns(str(images[0]), str(others[-1]) if others else "")
        heading = [str(number) for number in range(1, len(heading) + 1)]
    rows = []
    for line, cells in lines if images else lines[1:]:
        if any(cell.strip() for cell in cells[len(heading) :]):
            raise ValueError(
                f"line {line} has {len(cells)} cells and the first one {len(heading)}: put cells "
                f"that have {separator!r} in them in double quotes"
            )
        rows.append((f"line {line}", dict(zip(heading, cells, strict=False))))
    return rows, wanted


def is_image_name(name: str) -> bool:
    """Whether it ends as names of images do, also before Flickr8k's `#0`."""
    return os.path.splitext(strip_number(name))[1].lower() in IMAGE_SUFFIXES


def strip_number(name: str) -> str:
    """`a.jpg#2`, the third caption of an image, without its number."""
    return re.sub(r"#\d+$", "", name.strip())


def _cells(text: str, separator: str) -> list[tuple[int, list[str]]]:
    """The cells of each row with the number of its last line; empty rows do not count.

    Quotes that are not of the format are letters, where all lines then have as many cells.
    """
    found: list[tuple[int, list[str]]] = []
    problem = ""
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE):
        reader = csv.reader(
            io.StringIO(text, newline=""), delimiter=separator, quoting=quoting,
            skipinitialspace=True, strict=True,
        )  # fmt: skip
        found = []
        try:
            for cells in reader:
                if any(cells):
                    found.append((reader.line_num, cells))
        except csv.Error as error:
            problem = problem or f"line {reader.line_num}: {error}"
        else:
            if problem and len({len(cells) for _, cells in found}) != 1:
                break
            if problem:
                logging.warning("%s; quotes are taken as letters", problem)
            return found
    raise ValueError(f"{problem}; quotes within a cell are doubled, and the cell is in quotes")


# --------------------------------------------------------------------------------------------- JSON


def _whole_json(text: str) -> Any:
    """The content; None where it may be lines of JSON."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
    except ValueError as error:
        if "Extra data" in str(error):
            return None
        raise ValueError(f"its JSON cannot be read: {error}") from error


def _lines(text: str) -> list[_Object]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                fields = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number} is no JSON: {error}") from error
            if not isinstance(fields, dict):
                raise ValueError(f"line {number} is no JSON object, such as {_EXAMPLE}")
            rows.append((f"line {number}", fields))
    return rows


_EXAMPLE = '{"image": "a.jpg", "caption": "a cat"}'


def _objects(content: Any) -> list[_Object]:
    """A list of objects, also as the only one in an object, or captions by the names of images."""
    if isinstance(content, dict):
        lists = [value for value in content.values() if _is_rows(value)]
        if len(lists) != 1:
            pairs = content.items()
            return [("", {"image": name, "caption": captions}) for name, captions in pairs]
        content = lists[0]
    if not _is_rows(content):
        raise ValueError(f"it is no list of objects as {_EXAMPLE}, and not of COCO's captions")
    return [(f"object {number}", fields) for number, fields in enumerate(content, 1)]


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _coco(content: dict[str, Any]) -> list[Row]:
    """Images in their order, each with its captions, some with none."""
    try:
        captions: dict[Any, list[str]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
        files = [(image["file_name"], image["id"]) for image in content["images"]]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"it has images and annotations as COCO's files, but {error} is not there as in "
            "captions_train2017.json; instances and keypoints have no captions"
        ) from error
    return [Row(_name(file), captions_in(captions[key]), f"image {key}") for file, key in files]
