"""Counts of the images already scored, on disk, so that an evaluation can go on where it stopped.

Every process appends to a file of its own for each benchmark, NAME.HASH.IofN.jsonl: a line of JSON
for every image, as soon as it is scored. The hash is that of what the counts depend on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np

from tcl_jax.errors import RunError
from tcl_jax.evaluation.examples import Example
from tcl_jax.evaluation.scores import Counts
from tcl_jax.files import short_hash
from tcl_jax.parallel.processes import gather_texts

_PER_CLASS = ("intersection", "predicted", "labelled")


@dataclasses.dataclass(frozen=True)
class Record:
    """An image that is scored.

    Attributes:
        key: of the image.
        files: `describe_files` of it.
        counts: its pixels.
        seconds: time since the image before.
    """

    key: str
    files: tuple[int, ...]
    counts: Counts
    seconds: float

    def to_json(self) -> str:
        """One line, with the counts of classes that occur."""
        c = self.counts
        occur = np.flatnonzero(c.union.reshape(-1, c.labelled.size).any(0))
        fields = {
            "image": self.key,
            "files": self.files,
            "seconds": round(self.seconds, 4),
            "classes": c.labelled.size,
            "occur": occur.tolist(),
            "edges": c.edges.tolist(),
        }
        for name in _PER_CLASS:
            fields[name] = getattr(c, name)[..., occur].tolist()
        return json.dumps(fields)

    @classmethod
    def from_json(cls, line: str) -> Record:
        """Inverse of `to_json`.

        Raises:
            ValueError, LookupError, TypeError: if it is none.
        """
        fields = json.loads(line)
        edges = np.array(fields["edges"], np.int64)
        counts = Counts.zeros(fields["classes"], *edges.shape[:-1])
        counts.edges[...] = edges
        for name in _PER_CLASS:
            getattr(counts, name)[..., fields["occur"]] = fields[name]
        return cls(fields["image"], tuple(fields["files"]), counts, fields["seconds"])


def describe_files(example: Example) -> tuple[int, ...]:
    """Sizes in bytes and times of the image and the label, by which a change is seen."""
    values: list[int] = []
    for path in (example.image, example.label):
        with contextlib.suppress(OSError):
            status = path.stat()
            values += [status.st_size, status.st_mtime_ns]
    return tuple(values)


class ScoreLog:
    """The records of a benchmark, in a folder that all processes may share or not.

    Args:
        folder: of the records; None keeps them in memory alone.
        name: of the benchmark.
        depends_on: what moves the counts, for JSON; see `protocol.fingerprint`.

    Attributes:
        records: what is scored, by key of the image.
    """

    def __init__(self, folder: Path | None, name: str, depends_on: Mapping[str, Any]) -> None:
        start = f"{name}.{short_hash(depends_on)}."
        place = f"{jax.process_index()}of{jax.process_count()}"
        self._path = None if folder is None else folder / f"{start}{place}.jsonl"
        self._file: TextIO | None = None
        self.records: dict[str, Record] = {}
        for path in sorted(folder.iterdir()) if folder and folder.is_dir() else ():
            if path.name.startswith(start):
                self._read(path.read_text(encoding="utf-8", errors="replace"))

    def _read(self, lines: str) -> None:
        for line in lines.splitlines():
            # A line is cut short where a process was killed.
            with contextlib.suppress(ValueError, LookupError, TypeError):
                record = Record.from_json(line)
                self.records[record.key] = record

    def remaining(self, examples: Sequence[Example]) -> list[Example]:
        """Images without a score, or whose files changed since."""
        return [
            example
            for example in examples
            if (record := self.records.get(example.key)) is None
            or record.files != describe_files(example)
        ]

    def add(self, record: Record) -> None:
        """Keeps an image's counts, on disk at once."""
        try:
            if self._file is None and self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("a", encoding="utf-8")
                self._file.write("\n")  # ends a line that was cut short
            if self._file is not None:
                self._file.write(record.to_json() + "\n")
                self._file.flush()
        except OSError as error:
            raise RunError(
                f"{self._path} cannot be written: {error}; what is in it is kept"
            ) from error
        self.records[record.key] = record

    def gather(self, keys: Iterable[str]) -> dict[str, Record]:
        """The records of all processes; every process calls it.

        Args:
            keys: of the images that this process answers for; no other does.
        """
        for text in gather_texts("\n".join(self.records[key].to_json() for key in keys)):
            self._read(text)
        return self.records

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # `add` has raised it
                self._file.close()
            self._file = None
