"""The pieces of the input, each of which notes the time it takes."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int32

from tcl_jax.data.images import Rgb
from tcl_jax.data.training_examples import Source, Tokenizer
from tcl_jax.data.transforms import Compose, RandomResizedCrop

PARTS = ("read", "decode", "crop and resize", "augment", "tokenise")
"""What is told apart."""

PLACES = 1 << 24
"""Length of `Cycled`: a random order of very few places takes long to draw from."""

Times: TypeAlias = dict[str, float]
"""CPU seconds of each of `PARTS`, summed up."""


@dataclasses.dataclass(frozen=True)
class Cycled:
    """Some examples of a source, over and over."""

    source: Source
    indexes: Sequence[int]

    def __len__(self) -> int:
        """As many as the largest data sets have."""
        return PLACES

    def __getitem__(self, place: int) -> Mapping[str, Any]:
        """The example at a place."""
        return self.source[self.indexes[place % len(self.indexes)]]


@dataclasses.dataclass(frozen=True)
class TimedSource:
    """A source whose reading is timed."""

    source: Source
    times: Times

    def __len__(self) -> int:
        """Of the source."""
        return len(self.source)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Of the source."""
        with _timed(self.times, "read"):
            return self.source[index]


@dataclasses.dataclass(frozen=True)
class TimedTokenizer:
    """A tokenizer that is timed."""

    tokenizer: Tokenizer
    times: Times

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "n length"]:
        """The tokenizer's."""
        with _timed(self.times, "tokenise"):
            return self.tokenizer(texts)


@dataclasses.dataclass(frozen=True)
class TimedTransform:
    """A chain that begins with a crop of encoded images, and whose steps are timed."""

    chain: Compose
    times: Times

    def __call__(self, image: bytes | Rgb, rng: np.random.Generator) -> Rgb:
        """The chain's."""
        crop, *others = self.chain.steps
        assert isinstance(crop, RandomResizedCrop) and isinstance(image, bytes)
        with _timed(self.times, "decode"):
            stored, box, turn = crop.decode_part(image, rng)
        with _timed(self.times, "crop and resize"):
            pixels = turn.apply(crop.resize_part(stored, box))
        with _timed(self.times, "augment"):
            for step in others:
                pixels = step(pixels, rng)
        return pixels


@contextlib.contextmanager
def _timed(times: Times, part: str) -> Iterator[None]:
    begin = time.thread_time()
    yield
    times[part] = times.get(part, 0.0) + time.thread_time() - begin
