"""Arrow and Parquet files with images and captions, as Hugging Face's `datasets` writes them.

An image is a struct of `bytes` and `path`, bytes, or a string, which is the name of a file.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from tcl_jax.data.caption_files import Row, captions_in, find_columns
from tcl_jax.errors import InputError, as_input_error, shorten

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".parquet", ".arrow")

_SPLIT = re.compile(
    r"(?<![a-z])(train(ing)?|val(id(ation)?)?|dev|test(ing)?|eval(uation)?)(?![a-z])"
)
_PART = re.compile(r"[-_.]?\d+(?P<of>-of-\d+)?$")  # of a split in several files


def find_tables(path: Path, below: Sequence[str] = ()) -> tuple[list[Path], str]:
    """The tables of a data set: a file, or in a folder what `save_to_disk` wrote, or Parquet files
    as the hub has them, of the split `train` where their names or folders tell several.

    Args:
        path: of the file or folder.
        below: the files below it, relative.

    Returns:
        The files in order, none where it is no such data set; and which split it is, in words.

    Raises:
        InputError: there are splits, and none is called train.
    """
    if path.is_file():
        return ([path] if path.suffix.lower() in SUFFIXES else []), ""
    said = ""
    if (path / "dataset_dict.json").is_file():
        with as_input_error(f"{path / 'dataset_dict.json'}"):
            splits = json.loads((path / "dataset_dict.json").read_bytes()).get("splits", [])
        split = _chosen(path, splits)
        path, said = path / split, f"split {split!r} of {shorten(splits)}"
    if (path / "state.json").is_file():
        with as_input_error(f"{path / 'state.json'}"):
            state = json.loads((path / "state.json").read_bytes())
            files = [path / entry["filename"] for entry in state.get("_data_files", [])]
        if state.get("_indices_data_files"):
            raise InputError(f"{path}: its rows are chosen by indices; save it flattened")
        return files, said
    tables = [name for name in below if name.lower().endswith(SUFFIXES)]
    splits = sorted(set(map(_split_of, tables)))
    if len(splits) > 1:
        split = _chosen(path, splits)
        tables = [name for name in tables if _split_of(name) == split]
        said = f"split {split!r} of {shorten(splits)}"
    return [path / name for name in tables], said


def _split_of(name: str) -> str:
    """Which split a file is of: by its own name, else by the nearest folder that tells; "others" of
    those that neither tells.
    """
    *folders, stem = PurePosixPath(name.lower()).with_suffix("").parts
    for text in (stem, *reversed(folders)):
        if _SPLIT.search(text):
            return _PART.sub("", text)
    part = _PART.search(stem)
    return (stem[: part.start()] if part and part["of"] else "") or "others"


def _chosen(path: Path, splits: list[str]) -> str:
    if len(splits) != 1 and "train" not in splits:
        raise InputError(
            f"{path}: it has the splits {shorten(splits)}; give the folder or file of one"
        )
    return splits[0] if len(splits) == 1 else "train"


def read_tables(
    files: list[Path], path: Path, image_column: str = "", caption_column: str = ""
) -> tuple[list[Row], str]:
    """The rows of the tables of a data set; images within them are read later, one by one, and
    named by their table, relative to the data set, and their row.

    Raises:
        InputError: a file cannot be read, or has other columns.
    """
    rows: list[Row] = []
    said = ""
    folder = path if path.is_dir() else path.parent
    for file in files:
        with as_input_error(str(file)):
            names = _names(str(file))
            image, caption = find_columns(names, image_column, caption_column)
            place = os.path.relpath(file, folder).replace(os.sep, "/")
            rows += _rows(str(file), place, image, caption)
        said = f"images in column {image!r}, captions in column {caption!r}"
    return rows, said


def _rows(file: str, table: str, image: str, caption: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.compute as pc

    number = 0
    for group in range(_groups(file)):
        images, captions = _column(file, group, image), _column(file, group, caption).to_pylist()
        stored, paths = images, [None] * len(images)
        if pa.types.is_struct(images.type):
            parts = {field.name for field in images.type}
            if "path" in parts:
                paths = pc.struct_field(images, "path").to_pylist()
            stored = pc.struct_field(images, "bytes") if "bytes" in parts else pa.nulls(len(images))
        kind = stored.type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            names = paths if pa.types.is_null(kind) else stored.to_pylist()
            sizes = [None] * len(images)
        else:
            names, sizes = paths, pc.binary_length(stored).to_pylist()
        for place, (name, size, texts) in enumerate(zip(names, sizes, captions, strict=True)):
            name, where = "" if name is None else str(name), f"row {number} of {table}"
            read = None
            if size is not None:
                name = f"{table}:{number} {name}".strip()
                read = functools.partial(_read, file, group, image, place)
            yield Row(name, captions_in(texts), where, size or 0, read)
            number += 1


def _read(file: str, group: int, column: str, place: int) -> bytes:
    value = _column(file, group, column)[place].as_py()
    data: bytes = value["bytes"] if isinstance(value, dict) else value
    return data


# ------------------------------------------------------------------------------------------- files


def _is_parquet(file: str) -> bool:
    return file.lower().endswith(".parquet")


def _arrow(file: str) -> pa.Table:
    """A mapped file, of which no more is read than is asked for."""
    import pyarrow as pa

    try:
        return pa.ipc.open_stream(pa.memory_map(file)).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_file(pa.memory_map(file)).read_all()


def _names(file: str) -> list[str]:
    if _is_parquet(file):
        import pyarrow.parquet as pq

        return list(pq.read_schema(file).names)
    return list(_arrow(file).column_names)


def _groups(file: str) -> int:
    if _is_parquet(file):
        import pyarrow.parquet as pq

        return int(pq.read_metadata(file).num_row_groups)
    return 1


@functools.lru_cache(maxsize=2)  # images are read in order
def _column(file: str, group: int, column: str) -> Any:
    if _is_parquet(file):
        import pyarrow.parquet as pq

        with pq.ParquetFile(file) as table:
            return table.read_row_group(group, columns=[column]).column(column)
    return _arrow(file).column(column)
