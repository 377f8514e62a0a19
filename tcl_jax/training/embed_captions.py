"""Embeddings of captions in advance: one file for each tar shard of a training."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from absl import logging
from jaxtyping import Int32
from ml_collections import ConfigDict
from tqdm import tqdm

from tcl_jax.data.caption_cache import find_caption_file, write_caption_file
from tcl_jax.data.mixture import Mixture
from tcl_jax.data.sources import make_source
from tcl_jax.data.tar_source import TarSource
from tcl_jax.data.tokenizer import Tokenizer
from tcl_jax.errors import InputError
from tcl_jax.inference.captions import CaptionEmbedder, text_tower_id
from tcl_jax.training.build import build_frozen_clip


@dataclasses.dataclass(frozen=True)
class Done:
    """What was made.

    Attributes:
        shards, captions, size: files written by this process, their captions, and their bytes.
        there: shards that had their file, or got it from another process.
    """

    shards: int
    captions: int
    size: int
    there: int

    def describe(self) -> str:
        """A sentence."""
        return (
            f"embedded {self.captions:,} captions of {self.shards:,} tar shards "
            f"({self.size / 1e9:.3g} GB); {self.there:,} shards had theirs. Train with "
            "--config.data.caption_cache=True"
        )


@dataclasses.dataclass(frozen=True)
class _Job:
    """Shard `number` of a source."""

    source: TarSource
    number: int

    @property
    def size(self) -> int:
        return self.source.indexes[self.number].pairs


def embed(config: ConfigDict, *, batch_size: int = 512) -> Done:
    """Writes the files that the shards of a config lack; each process its share, or what is left.

    Args:
        config: of a training of TCL.
        batch_size: captions that a device computes together.

    Raises:
        InputError: weights or shards cannot be read, pairs do not come from tar shards, or a file
            cannot be written.
    """
    process, processes = jax.process_index(), jax.process_count()
    clip, params = build_frozen_clip(config)
    tokenizer = clip.tokenizer()
    tower = text_tower_id(clip, params)
    source = make_source(
        config.data, clip.config.resolution, process_index=process, process_count=processes
    )
    jobs = [_Job(tar, number) for tar in _tar_sources(source) for number in range(len(tar.indexes))]
    lacking = [job for job in jobs if not _is_there(job, tower)]
    count, width = sum(job.size for job in lacking), np.dtype(clip.dtype).itemsize
    logging.info(
        "%d of %d tar shards lack the embeddings of their captions by text tower %s: %d pairs, "
        "%.3g GB", len(lacking), len(jobs), tower, count,
        count * (width * clip.config.embed_dim + 4) / 1e9,
    )  # fmt: skip
    own = lacking[process::processes]
    # What is left of the others' shares, from the end, where they have not come yet.
    left = [
        job
        for p in range(1, processes)
        for job in reversed(lacking[(process + p) % processes :: processes])
    ]
    embedder = CaptionEmbedder(clip, params, batch_size)
    shards = captions = size = 0
    with tqdm(
        desc="captions", total=sum(job.size for job in own), unit=" captions", unit_scale=True
    ) as bar:
        for i, (job, loaded) in enumerate(_read_ahead([*own, *left], tower, tokenizer)):
            if (loaded is None) == (i < len(own)):  # other work than was expected
                bar.total += job.size if loaded else -job.size
            if loaded is None:
                continue
            count = sum(map(len, loaded.captions))
            bar.total += count - job.size
            embeddings = np.zeros((count, clip.config.embed_dim), np.float32)
            embeddings[loaded.usable] = embedder(loaded.tokens, bar.update)
            bar.update(count - len(loaded.usable))
            index = job.source.indexes[job.number]
            size += write_caption_file(index, tower, loaded.captions, embeddings)
            shards, captions = shards + 1, captions + count
    return Done(shards, captions, size, len(jobs) - shards)


def _tar_sources(source: object) -> list[TarSource]:
    """The tar shards of a source, or of the parts of a mixture.

    Raises:
        InputError: there are others.
    """
    sources = list(source.sources.values()) if isinstance(source, Mixture) else [source]
    tars = [one for one in sources if isinstance(one, TarSource)]
    if len(tars) < len(sources):
        others = ", ".join(repr(one) for one in sources if not isinstance(one, TarSource))
        raise InputError(
            f"the captions of {others} cannot be embedded in advance: data.source must be 'tar', "
            "or a mixture of such"
        )
    return tars


def _is_there(job: _Job, tower: str) -> bool:
    return find_caption_file(job.source.indexes[job.number], tower) is not None


# ------------------------------------------------------------------------------------ what is read


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """The captions of a shard.

    Attributes:
        captions: of each pair.
        usable: places of those that are not empty, among all.
        tokens: of those.
    """

    captions: list[list[str]]
    usable: list[int]
    tokens: Int32[np.ndarray, "n length"]


def _load(job: _Job, tower: str, tokenizer: Tokenizer) -> _Loaded | None:
    """None where another process has written the file since."""
    if _is_there(job, tower):
        return None
    captions = job.source.captions(job.number)
    # The others are no samples, see `bad_samples.choose_caption`.
    every = itertools.chain.from_iterable(captions)
    texts = {i: caption for i, caption in enumerate(every) if caption.strip()}
    return _Loaded(captions, list(texts), tokenizer(list(texts.values())))


def _read_ahead(
    jobs: Sequence[_Job], tower: str, tokenizer: Tokenizer
) -> Iterator[tuple[_Job, _Loaded | None]]:
    """Each job with its captions, which are read while those before are computed."""
    load: Callable[[_Job], _Loaded | None] = lambda job: _load(job, tower, tokenizer)  # noqa: E731
    pool = concurrent.futures.ThreadPoolExecutor(1, "captions")
    try:
        following = [pool.submit(load, job) for job in jobs[:1]]
        for i, job in enumerate(jobs):
            loaded = following.pop().result()
            following += [pool.submit(load, job) for job in jobs[i + 1 : i + 2]]
            yield job, loaded
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
