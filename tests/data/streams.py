"""What tests of the batch iterators share: examples that are numbers, and batches taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tcl_jax.data.pipeline import BatchIterator, make_iterator
from tcl_jax.data.training_examples import Source
from tcl_jax.data.transforms import Transform


class Numbers:
    """Examples begin, begin + 1, ...: the image is full of the number, which is the caption."""

    def __init__(self, begin: int, length: int, fingerprint: str = "", side: int = 4) -> None:
        self.begin, self.length, self.side = begin, length, side
        if fingerprint:
            self.fingerprint = fingerprint

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = self.begin + index
        image = np.full((self.side, self.side, 3), number % 256, np.uint8)
        return {"image": image, "text": str(number), "key": f"{number:03d}"}


def number_tokens(texts: Sequence[str]) -> np.ndarray:
    """A caption that is a number, as a token."""
    return np.array([[int(text)] for text in texts], np.int32)


def add_noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random transform."""
    return image + rng.integers(0, 100, image.shape, np.uint8)


def iterate(
    source: Source, batch: int, seed: int, transform: Transform = add_noise, **options: Any
) -> BatchIterator:
    """Batches of a source whose captions are numbers."""
    how = {"tokenizer": number_tokens, "transform": transform}
    return make_iterator(source, global_batch_size=batch, seed=seed, **how, **options)


def take(iterator: Iterator, count: int) -> list[dict[str, np.ndarray]]:
    """Copies of the next batches."""
    return [{name: np.array(value) for name, value in next(iterator).items()} for _ in range(count)]


def numbers(batches: Sequence[dict[str, np.ndarray]]) -> list[int]:
    """The captions, in their order."""
    return [int(token) for batch in batches for token in batch["tokens"][:, 0]]


def assert_same(batches: Sequence, expected: Sequence) -> None:
    """Bit by bit."""
    assert len(batches) == len(expected)
    for ours, theirs in zip(batches, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])
