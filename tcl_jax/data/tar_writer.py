"""Image-caption pairs as tar shards with indexes, the same bytes for the same pairs.

OUT/train/00000.tar and so on have the pairs in the order of their list, OUT/held_out/*.tar those
that are held out, and OUT/pack.json says what is in them and what was left out. A shard takes its
place when it is whole; one that pack.json has is not made again. Where none of its images can be
read there is no such file.
"""

from __future__ import annotations

import collections
import concurrent.futures
import hashlib
import io
import itertools
import json
import math
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from tqdm import tqdm

from tcl_jax.data.images import ImageDecodeError, load_rgb, open_bytes
from tcl_jax.data.pair_lists import PairList, Picture
from tcl_jax.data.shard_names import find_shards
from tcl_jax.data.tar_index import ShardIndex, open_indexes
from tcl_jax.data.tokenizer import ClipTokenizer
from tcl_jax.errors import InputError, RunError, raise_machine_fault
from tcl_jax.files import short_hash, user_path, whole_file, why_unwritable, write_json
from tcl_jax.parallel.lock import locked

TRAIN, HELD_OUT, REPORT = "train", "held_out", "pack.json"
SHARD_PAIRS = 10_000
SHARD_BYTES = 1 << 30
"""What a shard has at most, of images as they were listed."""

_VERSION = 1  # of what is written of the same pairs
_SUFFIXES = {"JPEG": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}  # others are the format's own name
_AHEAD = 64  # images decoded at a time
_NAME = 48  # letters of an image's name in its key


class _Shard(NamedTuple):
    """A shard to be: its name in OUT, and its pictures by their numbers in the list."""

    name: str
    pictures: list[tuple[int, Picture]]


def pack(
    pairs: PairList, out: str, *, held_out: int | float = 0, shard_pairs: int = SHARD_PAIRS
) -> dict[str, Any]:
    """Writes the shards of a list that are not there yet, and their indexes.

    Args:
        pairs: images and captions.
        out: a folder, new or of the same list.
        held_out: how many images are for validation: a number, or as a float a share, of two at
            least. The same images are chosen whatever else is in the list, but for as many as the
            list has more.
        shard_pairs: most pairs of a shard.

    Returns:
        What OUT/pack.json has.

    Raises:
        InputError: the folder has something else, another run writes to it, or numbers do not fit.
        RunError: the machine fails; finished shards are kept.
    """
    folder = user_path(out)
    if why := why_unwritable(folder):
        raise InputError(f"OUT={out!r}: {why}; give another folder")
    plan = _plan(pairs.pictures, held_out, shard_pairs)
    with locked(folder, f"OUT={out!r}"):
        return _pack(plan, pairs, folder)


def _pack(plan: Sequence[_Shard], pairs: PairList, folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = {"complete": False, "of": _identity(plan), "shards": {}}
    if (folder / REPORT).exists():
        report = _begun(folder, report)
    elif not all(file.match(f".{REPORT}.*.part") for file in folder.iterdir()):
        raise InputError(
            f"OUT={str(folder)!r}: it is there and not made by this command; give a new folder"
        )
    known = report["shards"]
    lacking = [shard for shard in plan if not _is_whole(folder / shard.name, known.get(shard.name))]
    # Of a run that was killed.
    for part in (*folder.glob(f".{REPORT}.*.part"), *folder.glob("*/.*.tar.*.part")):
        part.unlink()
    if lacking:
        write_json(folder / REPORT, report)  # by which OUT is known as this command's
    if known and lacking:
        logging.info("%d of %d shards are there already", len(plan) - len(lacking), len(plan))
    total = sum(len(shard.pictures) for shard in lacking)
    with (
        tqdm(total=total, desc="packing", unit="image", disable=None) as bar,
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        for shard in lacking:
            known[shard.name] = _write(folder / shard.name, shard.pictures, pool, bar)
            write_json(folder / REPORT, report)
    report = {**_summary(plan, known, pairs), **report, "complete": True}
    if not report["pairs"][TRAIN]:
        first = report["left_out"]["unreadable_image"]["images"][0]
        raise InputError(f"none of the images can be read, as {first['image']}: {first['why']}")
    _index(folder, known)
    write_json(folder / REPORT, report)
    return report


def _plan(pictures: Sequence[Picture], held_out: int | float, shard_pairs: int) -> list[_Shard]:
    count = held_out
    if isinstance(count, float):
        count = max(math.ceil(count * len(pictures)), 2) if count else 0
    if not 0 <= count < len(pictures):
        raise InputError(
            f"--held_out={held_out}: of {len(pictures)} images some must be left to train on"
        )
    if count == 1:
        raise InputError(
            f"--held_out={held_out}: that is one of {len(pictures)} images, and whoever looks for "
            "it needs others to choose from; hold out more, or none"
        )
    # By their names, so that others in the list hardly change which.
    ranked = sorted(range(len(pictures)), key=lambda i: _digest(pictures[i].name))
    chosen = set(ranked[:count])
    plan = []
    for part, held in ((TRAIN, False), (HELD_OUT, True)):
        numbers = (i for i in range(len(pictures)) if (i in chosen) is held)
        rows = _parts(((i, pictures[i]) for i in numbers), shard_pairs)
        plan += [_Shard(f"{part}/{k:05d}.tar", row) for k, row in enumerate(rows)]
    return plan


def _parts(rows: Iterator[tuple[int, Picture]], most: int) -> Iterator[list[tuple[int, Picture]]]:
    part: list[tuple[int, Picture]] = []
    size = 0
    for row in rows:
        if part and (len(part) >= most or size + row[1].size > SHARD_BYTES):
            yield part
            part, size = [], 0
        part.append(row)
        size += row[1].size
    if part:
        yield part


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode(errors="surrogateescape")).digest()


def _identity(plan: Sequence[_Shard]) -> str:
    rows = [(s.name, i, p.name, p.captions, p.size) for s in plan for i, p in s.pictures]
    return short_hash([_VERSION, rows])


def _begun(folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run has left."""
    try:
        old = json.loads((folder / REPORT).read_bytes())
        if old["of"] == report["of"] or not old["shards"]:
            return {**report, "shards": dict(old["shards"])}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / REPORT} is damaged ({error}); remove {folder}") from error
    raise InputError(
        f"OUT={str(folder)!r}: its shards are of other images, captions or flags than these; give "
        "another folder, or remove it first"
    )


def _is_whole(path: Path, record: dict[str, Any] | None) -> bool:
    return record is not None and (path.stat().st_size if path.is_file() else 0) == record["bytes"]


# ---------------------------------------------------------------------------------------- one shard


def _write(
    path: Path, pictures: Sequence[tuple[int, Picture]], pool: concurrent.futures.Executor, bar: Any
) -> dict[str, Any]:
    """Writes a shard, if any image can be read; says what is in it, and which cannot."""
    unreadable, captions = [], 0
    sides: collections.Counter[int] = collections.Counter()
    with (
        whole_file(path) as temporary,
        # Of GNU's format, which has no time of writing in it.
        tarfile.open(temporary, "w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for begin in range(0, len(pictures), _AHEAD):
            batch = pictures[begin : begin + _AHEAD]
            read = [_read(picture) for _, picture in batch]
            for (number, picture), data, looked in zip(
                batch, read, pool.map(_look, read), strict=True
            ):
                bar.update()
                if isinstance(looked, str):
                    unreadable.append((picture.name, looked))
                    continue
                suffix, side = looked
                key = f"{number:09d}-{_safe(picture.name)}"
                assert isinstance(data, bytes)
                _add(tar, f"{key}.{suffix}", data)
                several = len(picture.captions) > 1
                text = json.dumps(picture.captions) if several else picture.captions[0]
                # JSON may have had half of a character.
                data = text.encode("utf-8", "replace")
                _add(tar, f"{key}.json" if several else f"{key}.txt", data)
                captions += len(picture.captions)
                sides[side] += 1
    if not sides:
        path.unlink()
    return {
        "pairs": sides.total(),
        "captions": captions,
        "bytes": path.stat().st_size if sides else 0,
        "shorter_side": [min(sides), max(sides)] if sides else [],
        "unreadable": unreadable,
    }


def _read(picture: Picture) -> bytes | str:
    """The bytes of an image, or why there are none."""
    try:
        return picture.read()
    except OSError as error:
        raise_machine_fault(picture.name, error)
        return error.strerror or str(error)


def _look(data: bytes | str) -> tuple[str, int] | str:
    """The suffix that an image has by its content, and its shorter side; or why it is none."""
    if isinstance(data, str):
        return data
    try:
        with open_bytes(data) as image:
            suffix = _SUFFIXES.get(image.format or "", (image.format or "").lower())
            return suffix, min(load_rgb(image).size)
    except ImageDecodeError as error:
        return str(error)


def _safe(name: str) -> str:
    """The end of a name without its suffix and what readers of shards give a meaning."""
    return re.sub(r"[^A-Za-z0-9_]+", "_", os.path.splitext(name)[0])[-_NAME:]


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


# --------------------------------------------------------------------------------------- all of it


def _index(folder: Path, known: dict[str, Any]) -> None:
    """Makes the indexes, and by them sees that each shard has what was written."""
    names = sorted(name for name in known if known[name]["pairs"])
    shards = find_shards([str(folder / name) for name in names]).shards
    for name, index in zip(names, open_indexes(shards), strict=True):
        if not isinstance(index, ShardIndex) or index.pairs != known[name]["pairs"]:
            raise RunError(f"{folder / name} is not what was written; remove it, and start again")


def _summary(plan: Sequence[_Shard], known: dict[str, Any], pairs: PairList) -> dict[str, Any]:
    records = {part: [known[s.name] for s in plan if s.name.startswith(part)] for part in
               (TRAIN, HELD_OUT)}  # fmt: skip
    every = [record for several in records.values() for record in several]
    left_out = {**pairs.left_out, "unreadable_image": [x for r in every for x in r["unreadable"]]}
    sides = [side for record in every for side in record["shorter_side"]]
    # Also of the few images that cannot be read: `lengths` takes a hundredth of what decoding does.
    captions = itertools.chain.from_iterable(x.captions for x in pairs.pictures)
    lengths = np.fromiter(ClipTokenizer().lengths(captions), np.int64)
    return {
        "pairs": {part: sum(r["pairs"] for r in several) for part, several in records.items()},
        "captions": sum(record["captions"] for record in every),
        "tokens": {
            "mean": round(float(lengths.mean()), 2),
            "longest": int(lengths.max()),
            "longest_of_99_percent": int(np.quantile(lengths, 0.99, method="inverted_cdf")),
        },
        "bytes": sum(record["bytes"] for record in every),
        "shorter_side": [min(sides), max(sides)] if sides else [],
        "left_out": {
            kind: {"count": len(these), "images": [{"image": n, "why": why} for n, why in these]}
            for kind, these in left_out.items()
            if these
        },
    }
