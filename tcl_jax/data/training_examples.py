"""What training batches consist of: examples of a source, augmented and tokenised.

An example is a pure function of the seed and its place in the stream, and so is the sample of the
same source that replaces one which cannot be used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from tcl_jax.data.bad_samples import BadSample, BadSampleError, choose_caption
from tcl_jax.data.images import ImageDecodeError
from tcl_jax.data.order import EpochOrder
from tcl_jax.data.random_erasing import RandomErasing
from tcl_jax.data.tokenizer import Tokenizer
from tcl_jax.data.transforms import Transform
from tcl_jax.errors import RunError

MAX_TRIES = 20
"""Samples looked at for one example before the run gives up."""

BAD = "bad"
"""Field of a batch before it is handed out: the `BadSample`s it met."""

_EXAMPLE, _REPLACEMENT = 0, 1
_ENDLESS = 1 << 40


@runtime_checkable
class Source(Protocol):
    """Random access to examples with `image` and `text` (training) or `label` (evaluation)."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        """Example `index`."""
        ...


def fingerprint_of(source: Source) -> str:
    """Equal for equal examples in equal order; "" of a source that cannot tell."""
    return getattr(source, "fingerprint", "")


def left_out_of(source: Source) -> str:
    """What and how much a source does not use of what it was given, in words; "": nothing."""
    return getattr(source, "left_out", "")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TrainingBatches:
    """{"image": uint8 [b, S, S, 3], "tokens": int32 [b, L], "bad": list of `BadSample`} by number.

    Batch k has the examples at the places from k b on. With `erasing` there is also "erase", int32
    [b, 4]. Where the source gives the embeddings of its captions, "text_embedding", float32 [b, d],
    takes the place of "tokens". Of a source of `features` all rows are "heads", float16 [b, m, c],
    and "text_embedding".

    Attributes:
        source: has `image` (bytes or uint8 array, as `transform` takes it), `text` (a caption,
            several to draw from, or None), and may have `key`, `shard`, `problem` (why there is
            no caption) and, of a list of captions, `text_embedding`, float32 [n, d].
        order: which example is at a place.
        tokenizer: texts to int32 [n, L].
        transform: `(image, rng)` to uint8 [S, S, 3]; S must be the same for all.
        erasing: draws what part of each picture the training step erases; None: no part of any.
        seed: of everything random in an example.
        batch_size: examples of a batch, b.
    """

    source: Source
    order: EpochOrder
    tokenizer: Tokenizer
    transform: Transform
    erasing: RandomErasing | None
    seed: int
    batch_size: int

    def __len__(self) -> int:
        """More batches than any run takes."""
        return _ENDLESS

    def __getitem__(self, k: int) -> dict[str, Any]:
        """Batch number `k`.

        Raises:
            RunError: `MAX_TRIES` samples one after the other are bad.
            ValueError: the transform fails for another reason than a bad image; names the example.
            Exception: whatever the source raises.
        """
        batch: dict[str, Any] = {}
        bad: list[BadSample] = []
        for i in range(self.batch_size):
            example, replaced = self._example(k * self.batch_size + i)
            bad += replaced
            for name, value in example.items():
                if i == 0:  # filled row by row, which takes half the memory of stacking
                    batch[name] = np.empty((self.batch_size, *value.shape), value.dtype)
                batch[name][i] = value
        return {**batch, BAD: bad}

    def _example(self, place: int) -> tuple[dict[str, np.ndarray], list[BadSample]]:
        """The example at a place, and the bad samples that it takes the place of."""
        index = self.order(place)
        bad: list[BadSample] = []
        for attempt in range(MAX_TRIES):
            example = self.source[index]
            try:
                return self._make(example, self._rng(place, attempt, _EXAMPLE)), bad
            except BadSampleError as error:
                key, shard = str(example.get("key", index)), str(example.get("shard", ""))
                bad.append(BadSample(key, shard, error.kind, error.reason))
            part = self.order.part_of(index)
            index = part.begin + int(self._rng(place, attempt, _REPLACEMENT).integers(part.size))
        named = ", ".join(f"{sample.key} ({sample.kind})" for sample in bad[:5])
        raise RunError(
            f"{MAX_TRIES} samples drawn one after the other from {self.source!r} are all bad: "
            f"{named} and so on. Of the first, {bad[0].reason}. Look at the data; checkpoints "
            "written so far are good"
        )

    def _make(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if "heads" in example:
            return {name: example[name] for name in ("heads", "text_embedding")}
        if "problem" in example:
            raise example["problem"]
        text = choose_caption(example["text"], rng)
        try:
            pixels = self.transform(example["image"], rng)
        except ImageDecodeError as error:
            raise BadSampleError("unreadable_image", str(error)) from error
        except ValueError as error:
            raise ValueError(f"example {example.get('key', '?')!r}: {error}") from error
        made = {"image": pixels}
        if "text_embedding" in example:
            made["text_embedding"] = example["text_embedding"][example["text"].index(text)]
        else:
            made["tokens"] = self.tokenizer([text])[0]
        if self.erasing is not None:
            made["erase"] = self.erasing(pixels.shape[0], pixels.shape[1], rng)
        return made

    def _rng(self, place: int, attempt: int, purpose: int) -> np.random.Generator:
        """Random numbers of one try; no two tries share any, as Philox counts up the first word."""
        counter = np.array([0, purpose, attempt, place], np.uint64)
        return np.random.Generator(np.random.Philox(key=self.seed, counter=counter))
