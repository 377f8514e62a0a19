"""What a benchmark is: classes, where images and labels lie, how labels are read.

The built-in ones are TOML files of the schema that `benchmark_schema` describes: to add one, put
its file into assets/benchmarks and its name into `BENCHMARKS`. A user's own is a file of the same
schema, or made of folders by `custom_benchmark`.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tcl_jax.data.name_file import NameFile, read_names
from tcl_jax.data.words import BACKGROUND_NAME, check_words
from tcl_jax.errors import InputError, as_input_error, shorten
from tcl_jax.evaluation.benchmark_schema import (
    MAX_LABEL,
    check_table,
    complete_pattern,
    is_text,
    read_table,
)
from tcl_jax.files import short_hash, user_path

BENCHMARKS: tuple[str, ...] = (
    "voc", "context", "coco_object", "voc20", "context59", "coco_stuff", "cityscapes", "ade20k",
)  # fmt: skip
"""The built-in benchmarks, in the order of tables; each is a TOML file in assets/benchmarks."""

_FOLDER = Path(__file__).parent.parent / "assets" / "benchmarks"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark, for one of its splits; `benchmark_schema` has the meaning of most fields.

    Attributes:
        classes: synonyms of every class, the first is its name; the background is not among them.
        background: whether label 0 is a background class, which the threshold decides.
        images, labels: paths with {key}, and possibly {split}, below the data's root or absolute;
            at the end of `images` `.*` stands for any usual extension.
        list: the same, without {key}, of the file that lists the keys; None: every image counts.
        splits: number of images of each split; empty where not known.
        short_side, window, stride, threshold, cleaning: override the protocol's; None leaves it.
        folders: what {split} stands for, where it is not the split's name.
        values: label values of the classes, where they do not count on from 0, or from 1 behind a
            background or an ignored 0.
        exif: "apply" or "ignore"; None: as "apply".
    """

    name: str
    title: str
    classes: tuple[tuple[str, ...], ...]
    background: bool
    reduce_zero_label: bool
    ignore: tuple[int, ...]
    images: str
    labels: str
    list: str | None = None
    split: str = "val"
    splits: Mapping[str, int] = dataclasses.field(default_factory=dict, hash=False)
    hint: str = ""
    published: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)
    short_side: int | None = None
    window: int | None = None
    stride: int | None = None
    threshold: float | None = None
    folders: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    values: tuple[int, ...] | None = None
    exif: str | None = None
    cleaning: bool | None = None

    @property
    def has_splits(self) -> bool:
        """Whether its paths have {split} in them."""
        return "{split}" in f"{self.images} {self.labels} {self.list}"

    @property
    def names(self) -> tuple[str, ...]:
        """Name of every label, "background" first where there is one."""
        names = tuple(synonyms[0] for synonyms in self.classes)
        return (BACKGROUND_NAME, *names) if self.background else names

    @property
    def label_values(self) -> tuple[int, ...]:
        """Label value of every one of `names`."""
        first = int(self.reduce_zero_label and not self.background)
        if self.values is None:
            return tuple(range(first, first + len(self.names)))
        return (0, *self.values) if self.background else self.values

    @property
    def ignored_values(self) -> tuple[int, ...]:
        """Label values that do not count."""
        return (0, *self.ignore) if self.reduce_zero_label else self.ignore

    @property
    def classes_hash(self) -> str:
        """16 hexadecimal digits of the SHA-256 of names and synonyms."""
        return short_hash([self.names, self.classes])


def load_benchmark(name_or_path: str | os.PathLike[str], *, split: str | None = None) -> Benchmark:
    """A built-in benchmark by its name, or a user's own by the path of its TOML file.

    Args:
        name_or_path: one of `BENCHMARKS`, or a path that ends with .toml.
        split: instead of the file's own.

    Raises:
        InputError: if there is no such benchmark or split, the file cannot be read, or what it
            says is wrong or incomplete. The message names file and key.
    """
    text = os.fspath(name_or_path)
    built_in = text in BENCHMARKS
    path = _FOLDER / f"{text}.toml" if built_in else user_path(text)
    if path.suffix.lower() != ".toml":
        raise InputError(
            f"benchmark {text!r} is not known; choose one of {', '.join(BENCHMARKS)}, or give the "
            "path of a .toml file that describes your own"
        )
    folder = None if built_in else path.absolute().parent
    return _from_table(read_table(path), str(path), name=path.stem, folder=folder, split=split)


def paper_benchmarks() -> tuple[str, ...]:
    """The built-in benchmarks that the paper has a score of, over which its mean is taken."""
    return tuple(name for name in BENCHMARKS if "TCL" in load_benchmark(name).published)


def custom_benchmark(
    images: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    classes: str | os.PathLike[str] | Sequence[str | Sequence[str]],
    *,
    image_list: str | os.PathLike[str] | None = None,
    name: str = "custom",
    split: str | None = None,
    **settings: Any,
) -> Benchmark:
    """A benchmark from folders, without a TOML file.

    Args:
        images: a folder, or a pattern with {key}; relative to the working directory.
        labels: the same; a folder means {key}.png below it.
        classes: path of a text file (see `data.name_file`), or the names or synonyms themselves.
        image_list: file that lists the keys.
        name: a word that can be a file's name.
        split: what {split} stands for; None: "val".
        settings: other keys of the TOML schema, such as background=True; None is the default.

    Raises:
        InputError: as `load_benchmark`.
    """
    table = {key: value for key, value in settings.items() if value is not None}
    table |= {"images": os.fspath(images), "labels": os.fspath(labels)}
    if isinstance(classes, str | os.PathLike):
        table["classes"] = os.fspath(classes)
    else:
        table["classes"] = [text if isinstance(text, str) else [*text] for text in classes]
    if image_list is not None:
        table["list"] = os.fspath(image_list)
    return _from_table(table, f"benchmark {name!r}", name=name, folder=Path.cwd(), split=split)


def spans(values: Iterable[int]) -> str:
    """Whole numbers in words, as "0 to 3, 7"; of very many the first."""
    parts: list[list[int]] = []
    for value in sorted({*values}):
        if parts and value == parts[-1][1] + 1:
            parts[-1][1] = value
        else:
            parts.append([value, value])
    return shorten([f"{a}" if a == b else f"{a} to {b}" for a, b in parts])


def describe_labels(benchmark: Benchmark) -> str:
    """What the values of a benchmark's labels stand for, in a line."""
    classes = dict(zip(benchmark.label_values, benchmark.names, strict=True))
    if benchmark.background:
        classes[0] = "none of them (by the threshold)"
    message = (
        f"{benchmark.name}: labels {shorten([f'{v} = {name}' for v, name in classes.items()])}; "
        f"ignored: {spans(benchmark.ignored_values) or 'none'}"
    )
    if classes.get(0, "").lower() == BACKGROUND_NAME:
        message += (
            f". {classes[0]!r} is looked for as a word, as the others are; to have it where no "
            "other class has a score beyond the threshold, leave it out of the classes and give "
            "--background (background = true)"
        )
    return message


# --------------------------------------------------------------------- from a table to a benchmark


def _from_table(
    table: Mapping[str, Any], source: str, *, name: str, folder: Path | None, split: str | None
) -> Benchmark:
    """Checks a table and makes a benchmark of it; a folder of None means a built-in one."""
    check_table(table, source)
    name = table.get("name", name)
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(
            f"{source}: the name {name!r} cannot be that of a file; set name to one word of "
            "letters, digits, '_', '.' and '-'"
        )
    if folder is not None and name in BENCHMARKS:
        raise InputError(
            f"{source}: {name!r} is the name of a built-in benchmark; set name to another, so that "
            "results are not mixed up"
        )
    listed = _read_classes(table, source, folder)
    background = table.get("background", False) or listed.background
    with as_input_error(f"{source}: classes"):
        check_words(itertools.chain(*listed.classes), background=background)
    first = int(background or table.get("reduce_zero_label", False))
    values = listed.values
    if values == tuple(range(first, first + len(listed.classes))):
        values = None
    ignore = table.get("ignore", () if 255 in (values or ()) else 255)
    ignore = {*ignore} if isinstance(ignore, list | tuple) else {ignore}
    paths = {
        key: complete_pattern(table[key], key, source, below=folder)
        for key in ("images", "labels", "list")
        if key in table
    }
    settings: dict[str, Any] = {
        **table,
        **paths,
        "name": name,
        "title": table.get("title", name),
        "classes": listed.classes,
        "background": background,
        "reduce_zero_label": table.get("reduce_zero_label", False),
        "ignore": tuple(sorted(ignore | {*listed.ignored})),
        "values": values,
    }
    if "threshold" in table:
        settings["threshold"] = float(table["threshold"])
    benchmark = Benchmark(**settings)
    benchmark = dataclasses.replace(benchmark, split=split or benchmark.split)
    _check_labels(benchmark, source)
    known = benchmark.splits or benchmark.folders
    if known and benchmark.split not in known:
        raise InputError(
            f"{source}: there is no split {benchmark.split!r}; choose one of {', '.join(known)}"
        )
    return benchmark


def _read_classes(table: Mapping[str, Any], source: str, folder: Path | None) -> NameFile:
    """The classes that a table names, or those of the file that it names."""
    given, values = table["classes"], table.get("values")
    if isinstance(given, str):
        path = str((folder or _FOLDER) / user_path(given))
        listed = read_names(path, f"class names {path!r}")
        if values is None:
            return listed
        if listed.values is not None:
            raise InputError(f"{source}: both values and {path!r} give the classes' label values")
        given = listed.classes
    classes = tuple(tuple(one) if isinstance(one, list | tuple) else (one,) for one in given)
    for synonyms in classes:
        if not synonyms or not all(is_text(text) for text in synonyms):
            raise InputError(
                f"{source}: classes has the entry {[*synonyms]!r}; an entry is a name, or a list "
                "of one or more synonyms, none of them empty"
            )
    if values is None:
        return NameFile(classes)
    if len(values) != len(classes):
        raise InputError(f"{source}: values has {len(values)}, and classes {len(classes)} entries")
    return NameFile(classes, tuple(values))


def _check_labels(benchmark: Benchmark, source: str) -> None:
    """Refuses a label value that stands for two things, or is larger than a label can be."""
    values = benchmark.label_values
    if max(values) > MAX_LABEL:
        raise InputError(
            f"{source}: the classes' label values, {spans(values)}, exceed {MAX_LABEL}"
        )
    known: dict[int, str] = {}
    for value, name in zip(values, benchmark.names, strict=True):
        other = known.setdefault(value, name)
        if other != name or value in benchmark.ignored_values:
            what = f"of {other!r}" if other != name else "ignored (ignore or reduce_zero_label)"
            free = MAX_LABEL if 255 in values else 255
            raise InputError(
                f"{source}: label value {value} is that of the class {name!r}, and also {what}; "
                "change background, reduce_zero_label, ignore or values, so that it has one "
                f"meaning. The classes have {spans(values)}; a value to ignore may be {free}"
            )
