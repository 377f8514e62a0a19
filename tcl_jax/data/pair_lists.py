"""Images with their captions as people keep them, each image once: what `tcl_jax.pack` packs."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import os
import posixpath
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import logging

from tcl_jax.data import caption_files, image_tables
from tcl_jax.data.bad_samples import BadSampleError
from tcl_jax.data.caption_files import Row, captions_in, read_caption_file
from tcl_jax.data.captions import read_captions
from tcl_jax.data.image_names import ImageFolder
from tcl_jax.data.tar_members import JSON_SUFFIXES, TEXT_SUFFIXES
from tcl_jax.errors import InputError, shorten
from tcl_jax.files import user_path

_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # of `datasets`' imagefolder


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image with captions.

    Attributes:
        name: relative to the folder, or of a place in a table.
        captions: one or more, none empty, each once.
        size: of the encoded image in bytes.
        read: gives these bytes.
    """

    name: str
    captions: tuple[str, ...]
    size: int
    read: Callable[[], bytes]


@dataclasses.dataclass(frozen=True)
class PairList:
    """What can be packed, in the order of the list, and what cannot.

    Attributes:
        pictures: each image once, of equal ones the first, with the captions of all.
        left_out: by kind, as "missing_image", what was left out: its name and why.
    """

    pictures: list[Picture]
    left_out: dict[str, list[tuple[str, str]]]


def list_pairs(
    images: str, captions: str | None = None, image_column: str = "", caption_column: str = ""
) -> PairList:
    """Looks up images and captions; images are not decoded, and only those of one size are read.

    Args:
        images: a folder of image files; or an Arrow or Parquet file or a folder of them, as
            `datasets` writes it.
        captions: a file that `caption_files` or `image_tables` reads; None: what is in the folder:
            metadata as `datasets`' imagefolder has it, a text or JSON file beside each image, or
            tables.
        image_column, caption_column: as in `read_caption_file`.

    Raises:
        InputError: there are no pairs, or a file cannot be read; the message says what to do.
    """
    path = user_path(images)
    if not path.exists():
        raise InputError(f"IMAGES={images!r}: there is no such folder")
    if captions is not None and not user_path(captions).exists():
        raise InputError(f"--captions={captions!r}: there is no such file")
    if path.is_file() and path.suffix.lower() not in image_tables.SUFFIXES:
        raise InputError(
            f"IMAGES={images!r} is a file: give the folder of the images, and a list of captions "
            "by --captions"
        )
    source, folder = captions or images, ImageFolder(path)
    if captions is None and (beside := [name for name in _METADATA if (path / name).is_file()]):
        source = captions = os.fspath(path / beside[0])
    if captions is None:
        found = _beside_images(folder)
        if found.pictures:
            return found
    place = user_path(source)
    tables, said = image_tables.find_tables(place, () if captions else folder.files)
    if tables:
        rows, columns = image_tables.read_tables(tables, place, image_column, caption_column)
        said = f"{said}, {columns}" if said else columns
    elif captions is not None:
        rows, said = read_caption_file(captions, image_column, caption_column)
    else:
        raise InputError(_none_beside(images, folder))
    logging.info("%s: %d rows, %s", source, len(rows), said)
    found = _merged(_joined(rows, folder))
    if found.pictures:
        return found
    counts = {kind: len(these) for kind, these in found.left_out.items() if these}
    first = ", ".join(repr(row.image) for row in rows[:2])
    there = ", ".join(map(repr, folder.images[:2])) or "no images"
    raise InputError(
        f"{source!r}: none of its {len(rows)} rows is an image with a caption ({counts}); it names "
        f"{first}, and in {str(folder.path)!r} there are {there}. Give the folder that its names "
        "begin in, or other columns by --image_column and --caption_column"
    )


def _none_beside(images: str, folder: ImageFolder) -> str:
    near = [*map(folder.path.joinpath, folder.files), *sorted(folder.path.parent.iterdir())]
    lists = [str(f) for f in near if f.suffix.lower() in caption_files.SUFFIXES and f.is_file()]
    hint = f"; there are {shorten(lists, 3)}" if lists else ""
    return (
        f"IMAGES={images!r}: {len(folder.images)} images, and none has captions in a text file of "
        f"its name beside it{hint}. Give --captions=FILE, a CSV, TSV, JSONL or JSON file with the "
        "names of the images and their captions"
    )


def _joined(rows: Sequence[Row], folder: ImageFolder) -> PairList:
    """The images of a list with the captions of all their rows."""
    left_out: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    outside = [row.image for row in rows if row.read is None]
    matches, lead = folder.find_all(outside)
    if lead:
        logging.info("%s before the names of images does not count", lead)
    match = iter(matches)
    missing: dict[str, str] = {}  # of several rows of an image the first
    texts: dict[str, list[str]] = collections.defaultdict(list)
    reads: dict[str, tuple[int, Callable[[], bytes]]] = {}
    for row in rows:
        name = row.image
        if row.read is None:
            name, why = next(match)
            if not name:
                missing.setdefault(row.image, f"{row.where}: {why}" if row.where else why)
                continue
        if not row.captions:
            left_out["empty_caption"].append((row.image, row.where))
        texts[name] += row.captions
        if row.read is not None:
            reads[name] = row.size, row.read
    left_out["missing_image"] = list(missing.items())
    pictures = []
    for name, captions in texts.items():
        if captions:
            size, read = reads.get(name) or _file(folder.path / name)
            pictures.append(Picture(name, tuple(dict.fromkeys(captions)), size, read))
    if outside:
        unlisted = [name for name in folder.images if name not in texts]
        left_out["no_caption"] += [(name, "no row names it") for name in unlisted]
    return PairList(pictures, left_out)


def _file(path: Path) -> tuple[int, Callable[[], bytes]]:
    return path.stat().st_size, functools.partial(path.read_bytes)


def _beside_images(folder: ImageFolder) -> PairList:
    """Images with the text or JSON files of the same name beside them."""
    left_out: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    by_stem: dict[tuple[str, bool], str] = {}
    for file in folder.files:
        stem, suffix = posixpath.splitext(file)
        if suffix.lower() in (*TEXT_SUFFIXES, *JSON_SUFFIXES):
            by_stem.setdefault((stem, suffix.lower() in JSON_SUFFIXES), file)
    pictures = []
    for name in folder.images:
        stem = posixpath.splitext(name)[0]
        files = [by_stem.get((stem, is_json)) for is_json in (False, True)]
        text, json = (None if f is None else (folder.path / f).read_bytes() for f in files)
        try:
            captions = captions_in(read_captions(text, json))
        except BadSampleError as error:
            left_out[error.kind].append((name, str(error)))
            continue
        if captions:
            pictures.append(Picture(name, captions, *_file(folder.path / name)))
        else:
            left_out["empty_caption"].append((name, str(files[0] or files[1])))
    return _merged(PairList(pictures, left_out))


def _merged(pairs: PairList) -> PairList:
    """Each image once: files of the same bytes are one with the captions of all.

    Only files of equal sizes are read.
    """
    sizes = collections.Counter(picture.size for picture in pairs.pictures)
    merged: dict[object, Picture] = {}
    for picture in pairs.pictures:
        key: object = picture.name
        if sizes[picture.size] > 1 and picture.size:
            with contextlib.suppress(OSError):  # which is told when it is packed
                key = hashlib.sha256(picture.read()).digest()
        if key in merged:
            first = merged[key]
            pairs.left_out.setdefault("duplicate_image", []).append(
                (picture.name, f"the same as {first.name}, which has its captions, too")
            )
            captions = tuple(dict.fromkeys((*first.captions, *picture.captions)))
            picture = dataclasses.replace(first, captions=captions)
        merged[key] = picture
    return PairList(list(merged.values()), pairs.left_out)
