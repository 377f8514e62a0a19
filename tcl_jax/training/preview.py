"""The first images of a training, and what each was made from."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Int32, UInt8
from ml_collections import ConfigDict

from tcl_jax.data.bad_samples import KINDS, BadSample, BadSampleLog
from tcl_jax.data.images import Rgb, decode
from tcl_jax.data.pipeline import make_iterator
from tcl_jax.data.rand_augment import RandAugment
from tcl_jax.data.sources import make_erasing, make_source, make_transform
from tcl_jax.data.tokenizer import Tokenizer
from tcl_jax.data.training_examples import left_out_of
from tcl_jax.data.transforms import Compose, HorizontalFlip, RandomResizedCrop
from tcl_jax.errors import as_input_error
from tcl_jax.ops.images import IMAGENET, PixelStatistics, erase, normalize
from tcl_jax.pictures.contact_sheet import Card
from tcl_jax.training.build import abstract_experiment

CAPTIONS = 8
"""Captions that are printed."""
KEEPS_WHAT_IS_NAMED = 1 / 3
"""Share of an image's area; what is smaller is likely to lose what the caption names."""
FEW_PAIRS = 1_000_000
"""Fewer of them do not make up for captions that are wrong."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a training image was made from.

    Attributes:
        original: RGB, uint8 [h, w, 3], upright; None where it is the image itself.
        part: (left, top, right, bottom) in it, of the crop; None without crop.
        changes: what else was done, in words.
    """

    original: Rgb | None
    part: tuple[int, int, int, int] | None
    changes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Preview:
    """The first images of training.

    Attributes:
        pairs: number of pairs of the source.
        images: uint8 [n, S, S, 3], nothing erased.
        erase: (top, left, height, width) of each, all zero where nothing is erased.
        tokens: of the captions.
        captions: one for each image.
        origins: one for each image.
        totals: good samples, then bad ones by `KINDS`, among those looked at.
        bad: the first bad sample of each kind.
        left_out: what the source does not use, in words.
        statistics: mean and deviation that the method normalises images with.
        smallest_crop: share of an image's area that a crop may have.
    """

    pairs: int
    images: UInt8[np.ndarray, "n s s 3"]
    erase: Int32[np.ndarray, "n 4"]
    tokens: Int32[np.ndarray, "n length"]
    captions: Sequence[str]
    origins: Sequence[Origin]
    totals: Sequence[int]
    bad: Sequence[BadSample] = ()
    left_out: str = ""
    statistics: PixelStatistics = IMAGENET
    smallest_crop: float = 1.0

    def cards(self) -> list[Card]:
        """One for each image."""
        erased = np.any(self.erase[:, 2:] > 0, axis=1)
        shown = with_noise(self.images, self.erase, self.statistics)
        rows = zip(shown, self.captions, self.origins, erased, strict=True)
        return [
            Card(
                image,
                caption,
                ", ".join([*origin.changes, *(["erased"] if gone else [])]),
                origin.original,
                origin.part,
            )
            for image, caption, origin, gone in rows
        ]

    def describe(self) -> str:
        """The figures as text."""
        lines = [f"pairs: {self.pairs:,}"]
        lines += [f"left out: {self.left_out}"] if self.left_out else []
        lines.append("captions:")
        lines += [f"  {' '.join(caption.split())}" for caption in self.captions[:CAPTIONS]]
        context = self.tokens.shape[1]
        lengths = (self.tokens != 0).sum(axis=1)
        lines.append(
            f"tokens of a caption, start and end included: {lengths.mean():.1f} on average, "
            f"{lengths.max()} at most; {(lengths == context).mean():.0%} fill all {context}, what "
            "is longer is cut"
        )
        if self.smallest_crop < KEEPS_WHAT_IS_NAMED and self.pairs < FEW_PAIRS:
            lines.append(
                f"crops: down to {self.smallest_crop:.0%} of an image, likely to lose what its "
                "caption names, and there are few pairs to make up for it; "
                "--config.data.crop_scale='(0.6,1.0)' keeps more"
            )
        seen, bad = sum(self.totals), sum(self.totals[1:])
        kinds = [f"{n} {kind}" for kind, n in zip(KINDS, self.totals[1:], strict=True) if n]
        lines.append(
            f"bad samples: {bad} of {seen} looked at ({bad / seen:.1%})"
            + (f", replaced by others: {', '.join(kinds)}" if bad else "")
        )
        lines += [f"  {sample.key} ({sample.kind}): {sample.reason}" for sample in self.bad]
        return "\n".join(lines)


def take_preview(config: ConfigDict, count: int) -> Preview:
    """The first images of the training that a config describes, made without workers.

    No weights are read.

    Args:
        config: of a training.
        count: number of images, at least 1.

    Raises:
        InputError: the data cannot be used.
        RunError: samples are bad, and so are those drawn in their place.
    """
    experiment = abstract_experiment(config)
    image_size = experiment.method.resolution
    source = make_source(config.data, image_size)
    chain = make_transform(config.data, image_size)
    assert isinstance(chain, Compose)
    crops = [step.scale[0] for step in chain.steps if isinstance(step, RandomResizedCrop)]
    log, bad = _Log(chain, experiment.objective.text_encoder.tokenizer()), BadSampleLog()
    batch = config.train.global_batch_size
    if len(source) < batch:
        logging.warning(
            "%d pairs do not fill a batch of %d (train.global_batch_size), which training refuses",
            len(source),
            batch,
        )
        batch = len(source)
    # The first rows of each global batch, as if there were as many processes as need be.
    enough = min(count, batch)
    share = next(n for n in range(enough, batch + 1) if batch % n == 0)
    with as_input_error("the training data"):
        batches = make_iterator(
            source,
            tokenizer=log.tokenize,
            transform=log.transform,
            erasing=make_erasing(config.data),
            global_batch_size=batch,
            seed=config.seed,
            process_count=batch // share,
            bad_samples=bad,
        )
    with contextlib.closing(batches):
        taken = [next(batches) for _ in range(-(-count // share))]
    rows = {name: np.concatenate([b[name] for b in taken])[:count] for name in taken[0]}
    return Preview(
        pairs=len(source),
        images=rows["image"],
        erase=rows.get("erase", np.zeros((count, 4), np.int32)),
        tokens=rows["tokens"],
        captions=log.captions[:count],
        origins=log.origins[:count],
        totals=bad.totals().tolist(),
        bad=tuple(bad.first.values()),
        left_out=left_out_of(source),
        statistics=experiment.method.pixel_statistics,
        smallest_crop=min(crops, default=1.0),
    )


class _Log:
    """Makes rows as training does, one after the other, and keeps what they were made from."""

    def __init__(self, chain: Compose, tokenizer: Tokenizer) -> None:
        self.origins: list[Origin] = []
        self.captions: list[str] = []
        self._chain = chain
        self._tokenizer = tokenizer

    def transform(self, image: bytes | Rgb, rng: np.random.Generator) -> Rgb:
        """The chain, step by step; what a step draws is read from a copy of the random stream."""
        original: Rgb | None = None
        part: tuple[int, int, int, int] | None = None
        changes: list[str] = []
        current = image
        for step in self._chain.steps:
            ahead = copy.deepcopy(rng)
            result = step(current, rng)
            if isinstance(step, RandomResizedCrop):
                original = decode(current) if isinstance(current, bytes) else current
                height, width = original.shape[:2]
                part = step.sample_box(height, width, ahead)
            elif isinstance(step, HorizontalFlip):
                changes += ["flipped"] if ahead.random() < step.probability else []
            elif isinstance(step, RandAugment):
                changes += [_in_words(*operation) for operation in step.sample(ahead)]
            if original is None and changes and not isinstance(current, bytes):
                original = current
            current = result
        pixels = decode(current) if isinstance(current, bytes) else current
        self.origins.append(Origin(original, part, tuple(changes)))
        return pixels

    def tokenize(self, texts: Sequence[str]) -> Int32[np.ndarray, "n length"]:
        """Only good samples come so far, each right after its image."""
        self.captions += texts
        return self._tokenizer(texts)


def _in_words(name: str, arguments: Sequence[int | float]) -> str:
    return " ".join([name, *(f"{argument:.3g}" for argument in arguments)])


def with_noise(
    images: UInt8[np.ndarray, "n s s 3"],
    boxes: Int32[np.ndarray, "n 4"],
    statistics: PixelStatistics = IMAGENET,
) -> UInt8[np.ndarray, "n s s 3"]:
    """Images whose rectangles are noise as in training, in bytes as far as these go."""
    keys = jax.random.split(jax.random.key(0), len(images))
    pixels = normalize(jnp.asarray(images), statistics)
    erased = np.asarray(erase(pixels, jnp.asarray(boxes), keys))
    mean, deviation = (255 * np.asarray(values, np.float32) for values in statistics)
    return np.clip(np.rint(erased * deviation + mean), 0, 255).astype(np.uint8)
