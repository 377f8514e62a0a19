"""Image-text pairs that a run does not train on, read once, and what counts as right among them."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Int, UInt8
from ml_collections import ConfigDict

from tcl_jax.data.bad_samples import BadSampleError, choose_caption
from tcl_jax.data.images import ImageDecodeError
from tcl_jax.data.tar_source import TarSource
from tcl_jax.data.tokenizer import clean
from tcl_jax.data.transforms import CenterCrop
from tcl_jax.errors import InputError, as_input_error, shorten
from tcl_jax.parallel.cores import available_cores
from tcl_jax.parallel.processes import (
    gather_texts,
    max_over_processes,
    raise_on_all_processes,
    sum_over_processes,
)

MOST_PAIRS = 512
"""Pairs that are read, the first of the shards: TCL compares each image with each text."""
RANKS = (1, 5)
"""Among so many best ones the right one has to be."""


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOut:
    """The pairs that can be used; images are those of this process.

    Attributes:
        images: the middle of each, as `CenterCrop` makes it.
        mine: of every one of `images` its number among all pairs.
        captions: all captions of every pair.
        chosen: of every pair one caption.
        texts: these, each once.
        right: whether a text is one of a pair's captions.
        left_out: how many other pairs were read.
    """

    images: UInt8[np.ndarray, "mine side side 3"]
    mine: Int[np.ndarray, " mine"]
    captions: tuple[tuple[str, ...], ...]
    chosen: tuple[str, ...]
    texts: tuple[str, ...]
    right: Bool[np.ndarray, "pairs texts"]
    left_out: int


def read_held_out(config: ConfigDict, side: int) -> HeldOut:
    """The first `MOST_PAIRS` of `eval.shards`; every process must call it and decodes its share.

    Args:
        config: reads `eval.shards`, and of `data` how shards are read.
        side: of the images in pixels.

    Raises:
        InputError: the shards cannot be read, or have fewer than two pairs that can be used.
    """
    index, count = jax.process_index(), jax.process_count()
    crop, unused = CenterCrop(side), np.random.default_rng(0)

    def read(source: TarSource, i: int) -> tuple[tuple[str, ...], str, Any]:
        """Captions of a pair, the one that counts, and pixels or what is wrong with it."""
        example = source[i]
        captions = tuple(text for text in example["text"] if text.strip())
        try:
            if "problem" in example:
                raise example["problem"]
            text = choose_caption(example["text"], np.random.default_rng(i))
            # What is wrong with a caption is seen by all; one process is enough to tell it.
            return captions, text, crop(example["image"], unused) if i % count == index else None
        except (BadSampleError, ImageDecodeError) as error:
            return captions, "", f"{example['key']} in {example['shard']} ({error})"

    def read_all() -> list[tuple[tuple[str, ...], str, Any]]:
        with as_input_error("eval.shards"):
            source = TarSource(
                config.eval.shards,
                index_dir=config.data.index_dir or None,
                caption_field=config.data.caption_field,
                process_index=index,
                process_count=count,
            )
            numbers = range(min(len(source), MOST_PAIRS))
            with concurrent.futures.ThreadPoolExecutor(available_cores()) as pool:
                return list(pool.map(lambda i: read(source, i), numbers))

    rows = raise_on_all_processes(read_all)
    own = {i: row[2] for i, row in enumerate(rows) if isinstance(row[2], str)}
    bad: dict[int, str] = {}
    for found in gather_texts(json.dumps(own)):
        bad |= {int(i): why for i, why in json.loads(found).items()}
    if bad:
        logging.warning(
            "eval.shards: %d of %d pairs cannot be used and are left out: %s",
            len(bad), len(rows), shorten([bad[i] for i in sorted(bad)], 3),
        )  # fmt: skip
    good = [i for i in range(len(rows)) if i not in bad]
    if len(good) < 2:
        raise InputError(
            f"eval.shards={config.eval.shards!r} has {len(good)} pair(s) that can be used, among "
            "which nothing can be found; hold out more, 100 at least tell something"
        )
    chosen = tuple(rows[i][1] for i in good)
    texts = tuple(dict.fromkeys(chosen))
    captions = tuple(rows[i][0] for i in good)
    places = {text: u for u, text in enumerate(texts)}
    right = np.zeros((len(good), len(texts)), bool)
    for k, several in enumerate(captions):
        right[k, [places[text] for text in several if text in places]] = True
    mine = np.array([k for k, i in enumerate(good) if i % count == index], int)
    images = [rows[good[k]][2] for k in mine]
    stacked = np.stack(images) if images else np.zeros((0, side, side, 3), np.uint8)
    return HeldOut(stacked, mine, captions, chosen, texts, right, len(bad))


def retrieval(similarity: Float[np.ndarray, "mine texts"], pairs: HeldOut) -> dict[str, float]:
    """How often the right one is among the best, in per cent, by direction and `RANKS`.

    Of an image every caption of its pair is right, and of a text every image with that caption.
    Wrong ones that are as similar as the best right one go before it, so that equal similarities
    gain nothing. Every process calls it with its images.
    """
    right, score = pairs.right[pairs.mine], similarity
    found = np.max(score, axis=1, where=right, initial=-np.inf)
    ahead = np.count_nonzero(~right & (score >= found[:, None]), axis=1)
    best = max_over_processes(np.max(score, axis=0, where=right, initial=-np.inf))
    before = sum_over_processes(np.count_nonzero(~right & (score >= best), axis=0))
    scores = {}
    for direction, ranks in (("image_to_text", ahead), ("text_to_image", before)):
        for k in RANKS:
            hits = np.array([np.count_nonzero(ranks < k), len(ranks)])
            hits = sum_over_processes(hits) if direction == "image_to_text" else hits
            scores[f"{direction}_at_{k}"] = 100 * float(hits[0] / hits[1])
    return scores


def named_in(
    captions: Sequence[Sequence[str]], classes: Sequence[Sequence[str]]
) -> Bool[np.ndarray, "pairs classes"]:
    """Whether one of a pair's captions has a class's name, or a synonym of it, as whole words."""

    def words(text: str) -> str:
        return " ".join(["", *re.findall(r"\w+", clean(text)), ""])

    names = [[words(name) for name in synonyms] for synonyms in classes]
    found = [[words(text) for text in texts] for texts in captions]
    rows = [[any(n in t for n in some for t in texts) for some in names] for texts in found]
    return np.array(rows, bool).reshape(len(captions), len(classes))


def naming(
    similarity: Float[np.ndarray, "mine names"],
    owner: Int[np.ndarray, " names"],
    named: Bool[np.ndarray, "pairs classes"],
    mine: Int[np.ndarray, " mine"],
) -> float:
    """Images whose most similar name is one that their captions have, in per cent of those whose
    captions have any. Every process calls it with its images.

    Args:
        similarity: of images with all names.
        owner: class of each name.
        named: of `named_in`, for all pairs.
        mine: numbers of these images.
    """
    best = owner[similarity.argmax(axis=1)]
    hits = sum_over_processes(np.array([np.count_nonzero(named[mine, best])]))
    return 100 * float(hits[0] / np.count_nonzero(named.any(axis=1)))


def threshold_for_share(counts: Int[np.ndarray, " bins"], share: float) -> float:
    """The threshold above which that share of the values lies, of a histogram over [0, 1].

    Within a bin values are taken to be spread evenly, so that the result is at most a bin's width
    off.
    """
    above = np.concatenate([np.cumsum(counts[::-1])[::-1], [0]]) / max(counts.sum(), 1)
    edges = np.linspace(0, 1, len(counts) + 1)
    # Ascending for `interp`, from the last edge on.
    return float(np.interp(share, above[::-1], edges[::-1]))
