"""Counts of the images already scored, on disk, so that an evaluation can go on where it stopped.

A file for each benchmark and process, with a JSON value a line: first what is judged, then an image
each, written as soon as it is scored. A line that was cut short counts as not written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np

from tcl_jax.errors import InputError, RunError
from tcl_jax.evaluation.examples import Example
from tcl_jax.evaluation.protocol import differences
from tcl_jax.evaluation.scores import Counts
from tcl_jax.files import whole_file
from tcl_jax.parallel.processes import gather_texts, raise_on_all_processes


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
        """One line."""
        c = self.counts
        fields = {
            "image": self.key,
            "files": self.files,
            "seconds": round(self.seconds, 4),
            "intersection_predicted_labelled": np.stack(
                [c.intersection, c.predicted, c.labelled]
            ).tolist(),
        }
        return json.dumps(fields)

    @classmethod
    def from_json(cls, line: str, classes: int) -> Record:
        """Inverse of `to_json`.

        Raises:
            ValueError, KeyError, TypeError: if it is none.
        """
        fields = json.loads(line)
        counts = np.array(fields["intersection_predicted_labelled"], np.int64).reshape(3, classes)
        return cls(fields["image"], tuple(fields["files"]), Counts(*counts), fields["seconds"])


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

    Every process makes one, at the same time, since they share what they found.

    Args:
        folder: of the records; None keeps them in memory alone.
        name: of the benchmark.
        classes: number of its labels.
        judged: what the counts depend on, see `protocol.fingerprint`; what concerns this benchmark
            alone is a dict.

    Attributes:
        records: those of all processes, by key of the image.

    Raises:
        InputError: if the folder has records of something else, also of other benchmarks.
    """

    def __init__(
        self, folder: Path | None, name: str, classes: int, judged: Mapping[str, Any]
    ) -> None:
        self._judged = json.loads(json.dumps(judged))  # as it reads in a file
        self._name, self._classes = name, classes
        place = f"{jax.process_index()}of{jax.process_count()}"
        self._path = None if folder is None else folder / f"{name}.{place}.jsonl"
        self._file: TextIO | None = None
        self.records: dict[str, Record] = {}
        paths = sorted(folder.glob("*.jsonl")) if folder else []
        self._share(raise_on_all_processes(lambda: [r for path in paths for r in self._read(path)]))

    def _read(self, path: Path) -> Iterator[Record]:
        with path.open(encoding="utf-8", errors="replace") as lines:
            try:
                there = json.loads(next(lines, ""))["judged"]
            except (ValueError, KeyError, TypeError):  # nothing in it can be used
                return
            now = self._judged
            own = re.fullmatch(re.escape(self._name) + r"\.\d+of\d+\.jsonl", path.name)
            if not own:
                there, now = (
                    {field: value for field, value in one.items() if not isinstance(value, dict)}
                    for one in (there, now)
                )
            if changed := differences(there, now):
                raise InputError(
                    f"{path.parent.parent} holds an evaluation of something else, which differs in "
                    + "; ".join(f"{'.'.join(k)}: {a} and {b}" for k, (a, b) in changed.items())
                    + " (there and now). Choose another folder, or delete that one"
                )
            for line in lines if own else ():
                # A line was cut short where a process was killed.
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    yield Record.from_json(line, self._classes)

    def _share(self, records: Iterable[Record]) -> None:
        """Adds what every process found to `records`."""
        for text in gather_texts("\n".join(record.to_json() for record in records)):
            for line in text.splitlines():
                record = Record.from_json(line, self._classes)
                self.records[record.key] = record

    def add(self, record: Record) -> None:
        """Keeps an image's counts, on disk at once."""
        try:
            if self._file is None and self._path is not None:
                # All once more, without what was cut short.
                with whole_file(self._path) as temporary:
                    lines = [json.dumps({"judged": self._judged})]
                    lines += [one.to_json() for one in self.records.values()]
                    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
                self._file = self._path.open("a", encoding="utf-8")
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
        self._share(self.records[key] for key in keys)
        return self.records

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # `add` has raised it
                self._file.close()
            self._file = None
