"""What the TOML file of a benchmark may say, and the class names and patterns in it.

The files of the built-in ones, in `tcl_jax/assets/benchmarks`, and of a user's own are alike:

    # birds.toml; paths are relative to the folder of this file, or absolute
    images = "photos"                 # a folder, or a pattern with {key}: "photos/{key}.jpg"
    labels = "labels/{key}_mask.png"  # a folder means {key}.png below it
    classes = ["sparrow", ["great tit", "tit"], "crow"]  # or "classes.txt", see data/name_file.py
    background = true                 # label 0 is none of the classes; false: 0 is the first one

    # All others have defaults:
    title = "Birds of my garden"  # name of the file
    list = "lists/{split}.txt"    # one {key} a line; without it every image is taken
    reduce_zero_label = false     # label 0 is ignored, and class 1 is the first one
    ignore = 255                  # label value that is ignored too; or several, [11, 255]
    exif = "apply"                # photos are turned as their EXIF data says; or "ignore"
    split = "val"                 # what {split} stands for in images, labels and list
    splits = {val = 120, train = 900}  # numbers of images, if known; no other split is taken
    folders = {val = "validation"}     # what {split} stands for instead of the split's name
    hint = "Ask Ann for the photos."   # shown where files are missing
    published = {"Ann's model" = 41.2} # mIoU in per cent
    short_side = 448              # these five override the protocol
    window = 448
    stride = 224
    threshold = 0.4               # score of the background, or least probability: the protocol's
    cleaning = false              # true: Talk2DINO and CLIP-DINOiser find the background

{key} may stand for folders too (`town/photo_1`). Where images is a folder, its files of the usual
extensions are taken, those of folders in it included. Entries of classes are names as the text
encoder shall see them, or lists of synonyms. Their label values are 0, 1, ... (behind a background
or an ignored 0: 1, 2, ...), or those of `values = [3, 7, 255]`, or those that the text file says.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tcl_jax.errors import InputError, as_input_error
from tcl_jax.files import read_text, user_path

MAX_LABEL = 65535
"""Largest value a label may have: that of a 16-bit PNG."""

_REQUIRED = ("images", "labels", "classes")
_PLACEHOLDERS = {"images": ("key", "split"), "labels": ("key", "split"), "list": ("split",)}


def read_table(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        InputError: if it cannot be read, or is no TOML.
    """
    with as_input_error(f"benchmark {str(path)!r} is not a TOML file that can be read"):
        return tomllib.loads(read_text(path))


def check_table(table: Mapping[str, Any], source: str) -> None:
    """Whether a table has all keys it needs, and no other, each with what it must hold.

    Raises:
        InputError: if not; it names `source` and the key.
    """
    for key, value in table.items():
        if key not in _KINDS:
            raise InputError(f"{source}: there is no key {key!r}; known are {', '.join(_KINDS)}")
        fits, kind = _KINDS[key]
        if not fits(value):
            raise InputError(f"{source}: {key} is {value!r}; it must be {kind}")
    for key in _REQUIRED:
        if key not in table:
            raise InputError(f"{source}: the key {key!r} is missing; it has no default")


def complete_pattern(pattern: str, key: str, source: str, *, below: Path | None) -> str:
    """Checks a path pattern and completes it where it is a folder.

    Args:
        pattern: what was given.
        key: "images", "labels" or "list".
        source: what it was given in, for messages.
        below: folder that relative patterns start from; None leaves them relative.

    Raises:
        InputError: if a placeholder is unknown or there twice.
    """
    allowed = _PLACEHOLDERS[key]
    found = re.findall(r"\{([^{}/]*)\}", pattern)
    star = key != "list" and "*" in (pattern.removesuffix(".*") if key == "images" else pattern)
    if star or not {*found} <= {*allowed} or found.count("key") > 1:
        words = " and ".join(f"{{{word}}}" for word in allowed)
        once = "" if key == "list" else ", {key} once and in place of *"
        raise InputError(f"{source}: {key} is {pattern!r}; it may have {words}{once}")
    if key != "list" and "key" not in found:
        file = {"images": "{key}.*", "labels": "{key}.png"}[key]
        pattern = f"{pattern.rstrip('/')}/{file}"
    path = user_path(pattern)
    return str(path if below is None else below / path)


# ------------------------------------------------------------------------------ what a key may hold


def is_text(value: Any) -> bool:
    """Whether it is a text that is not blank."""
    return isinstance(value, str) and bool(value.strip())


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


# By type, since a bool is an int to isinstance.
def _is_integer(value: Any, low: int = 1, high: int | float = math.inf) -> bool:
    return type(value) is int and low <= value <= high


def _is_number(value: Any, high: int) -> bool:
    return type(value) in (int, float) and 0 <= value <= high


def _are_labels(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(_is_integer(v, 0, MAX_LABEL) for v in value)


def _is_table(value: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(of, value.values()))


# What a key must hold: a test, and the words for it.
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("name", "title", "images", "labels", "list", "split"), (is_text, "a text")),
    **dict.fromkeys(("background", "reduce_zero_label", "cleaning"), (_is_bool, "true or false")),
    **dict.fromkeys(("short_side", "window", "stride"), (_is_integer, "a positive whole number")),
    "hint": (lambda value: isinstance(value, str), "a text"),
    "classes": (lambda value: is_text(value) or (isinstance(value, list) and bool(value)),
                "a list of one or more names, or the path of a text file"),
    "ignore": (lambda value: _is_integer(value, 0, MAX_LABEL) or _are_labels(value),
               f"one or a list of whole numbers from 0 to {MAX_LABEL}"),
    "values": (_are_labels, f"a list of whole numbers from 0 to {MAX_LABEL}"),
    "exif": (lambda value: value in ("apply", "ignore"), "'apply' or 'ignore'"),
    "splits": (lambda value: _is_table(value, _is_integer),
               "a table of numbers of images, as {val = 100}"),
    "folders": (lambda value: _is_table(value, is_text), "a table of folders' names"),
    "published": (lambda value: _is_table(value, lambda miou: _is_number(miou, 100)),
                  "a table of mIoU in per cent, as {TCL = 51.2}"),
    "threshold": (lambda value: _is_number(value, 1), "a number from 0 to 1"),
}  # fmt: skip
