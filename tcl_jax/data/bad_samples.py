"""Samples that cannot be used: what is wrong with each, how many there are, and how many may be."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int64

from tcl_jax.errors import InputError, RunError

KINDS = ("unreadable_image", "no_caption", "empty_caption", "not_utf8")
"""What can be wrong: an image that cannot be read; no caption; one of white space alone; one in
another encoding."""

MIN_SEEN = 500
"""Samples that must have been looked at before their bad share can stop a run."""


class BadSampleError(ValueError):
    """A sample that cannot be used; `kind` is one of `KINDS`, `reason` a sentence."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind, self.reason = kind, reason

    def __str__(self) -> str:
        return self.reason


@dataclasses.dataclass(frozen=True)
class BadSample:
    """A sample that was replaced: its name or number, the file it is in if the source tells, one of
    `KINDS`, and a sentence.
    """

    key: str
    shard: str
    kind: str
    reason: str


def choose_caption(text: Any, rng: np.random.Generator) -> str:
    """The caption, or one of several that are not empty, drawn at random.

    Args:
        text: a string, a sequence of them, or None.
        rng: used only where there is a choice.

    Raises:
        BadSampleError: there is none, or it is empty.
    """
    captions = [] if text is None else [text] if isinstance(text, str) else list(text)
    if not captions:
        raise BadSampleError("no_caption", "there is no caption")
    usable = [caption for caption in captions if caption.strip()]
    if not usable:
        raise BadSampleError("empty_caption", "the caption is empty")
    return usable[int(rng.integers(len(usable)))] if len(usable) > 1 else usable[0]


class BadSampleLog:
    """Counts bad samples, writes each to a file, and stops a run that has too many.

    The file has one JSON object a line: the number of the `batch`, and a `BadSample`. The process
    that trains writes it in the order of the batches; a run that resumes adds the lines of the
    batches that come again once more, and counts from none, so that one whose data was mended goes
    on.

    Args:
        path: file to add to, made with the first bad sample; None: only count.
        max_share: largest share of bad samples among those looked at, in [0, 1].

    Raises:
        InputError: `max_share` is no share.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, max_share: int | float = 1.0
    ) -> None:
        if not 0 <= max_share <= 1:
            raise InputError(
                f"data.max_bad_share={max_share}: must be between 0 (stop at any bad sample) and 1"
            )
        self.path = None if path is None else Path(path)
        self.max_share = max_share
        self._good = 0
        self._bad: collections.Counter[str] = collections.Counter()
        self.first: dict[str, BadSample] = {}
        """The first of each kind."""
        self._warned_of = 0

    def add(self, samples: Sequence[BadSample], *, good: int, batch: int) -> None:
        """Takes what batch number `batch` met: bad samples, and the `good` ones it consists of."""
        self._good += good
        self._bad.update(sample.kind for sample in samples)
        self.first = {**{sample.kind: sample for sample in reversed(samples)}, **self.first}
        if samples and self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                for sample in samples:
                    file.write(json.dumps({"batch": batch, **dataclasses.asdict(sample)}) + "\n")

    def totals(self) -> Int64[np.ndarray, "n"]:
        """Good samples, then bad ones by `KINDS`; those of several processes may be added up."""
        return np.array([self._good, *(self._bad[kind] for kind in KINDS)], np.int64)

    def check(self, totals: Int64[np.ndarray, "n"]) -> float:
        """Warns of new bad samples, and ends a run with too many.

        Args:
            totals: of this process, or the sum over all.

        Returns:
            The bad share of the samples looked at, in [0, 1].

        Raises:
            RunError: it is above `max_share`, and at least `MIN_SEEN` were looked at.
        """
        seen, bad = int(totals.sum()), int(totals[1:].sum())
        if not bad:
            return 0.0
        kinds = [f"{n} {kind}" for kind, n in zip(KINDS, totals[1:], strict=True) if n]
        message = f"{bad} of {seen} samples are bad ({bad / seen:.2%}): {', '.join(kinds)}"
        where = "" if self.path is None else f"; their keys are in {self.path}"
        if bad / seen > self.max_share and seen >= MIN_SEEN:
            raise RunError(
                f"{message}{where}. No more than {self.max_share:.2%} are allowed "
                "(data.max_bad_share). Look whether the shards were downloaded whole; checkpoints "
                "written so far are good"
            )
        if bad > self._warned_of:
            logging.warning("%s; others take their places%s", message, where)
            self._warned_of = bad
        return bad / seen
