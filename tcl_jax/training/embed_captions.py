"""Embeddings of captions in advance: one file for each tar shard of a training."""

from __future__ import annotations

import itertools
from functools import partial
from typing import TypeAlias

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from tcl_jax.data.caption_cache import caption_path, write_caption_file
from tcl_jax.data.mixture import parts_of
from tcl_jax.data.sources import make_source
from tcl_jax.data.tar_source import TarSource
from tcl_jax.data.tokenizer import Tokenizer
from tcl_jax.data.training_examples import Source
from tcl_jax.errors import InputError
from tcl_jax.inference.texts import embed_tokens, text_tower_id
from tcl_jax.parallel.mesh import local_mesh, put_replicated
from tcl_jax.parallel.processes import raise_on_all_processes
from tcl_jax.training.batches import caption_tower
from tcl_jax.training.build import build_experiment
from tcl_jax.training.in_advance import own_first, read_ahead

_Shard: TypeAlias = tuple[TarSource, int]
"""A source, and the number of one of its shards."""
_Captions: TypeAlias = tuple[list[list[str]], list[int], np.ndarray]
"""Captions of each pair; which of all are not empty, by their number; and the tokens of these."""


def embed(config: ConfigDict, *, batch_size: int = 512) -> str:
    """Writes the files that the shards of a config lack; each process its share, or what is left.

    Args:
        config: of a training with a frozen text tower.
        batch_size: captions that a device computes together.

    Returns:
        A sentence that says what was made.

    Raises:
        InputError: weights or shards cannot be read, pairs do not come from tar shards, or a file
            cannot be written.
    """
    process, processes = jax.process_index(), jax.process_count()
    experiment = raise_on_all_processes(lambda: build_experiment(config))
    encoder, params = caption_tower(config, experiment)
    tokenizer, tower = encoder.tokenizer(), text_tower_id(encoder, params)
    source = make_source(
        config.data, experiment.method.resolution, process_index=process, process_count=processes
    )
    shards = [(tar, number) for tar in _tar_sources(source) for number in range(len(tar.indexes))]
    lacking = [shard for shard in shards if not _has_file(shard, tower)]
    logging.info(
        "%d of %d tar shards lack the embeddings of their captions by text tower %s",
        len(lacking), len(shards), tower,
    )  # fmt: skip
    mesh = local_mesh()
    params = put_replicated(params, mesh)
    written = count = size = 0
    total = sum(tar.indexes[number].pairs for tar, number in lacking)
    with tqdm(desc="captions", total=total, unit=" pairs", unit_scale=True) as bar:
        turns, read = own_first(lacking, process, processes), partial(_read, tower, tokenizer)
        for (tar, number), content in read_ahead(turns, read):
            if content is not None:
                captions, usable, tokens = content
                embeddings = np.zeros((sum(map(len, captions)), encoder.embed_dim), np.float32)
                found = embed_tokens(encoder, params, tokens, mesh=mesh, batch_size=batch_size)
                # Of a bfloat16 tower no more digits are kept, which halves the file.
                embeddings[usable] = found.astype(encoder.dtype)
                size += write_caption_file(tar.indexes[number], tower, captions, embeddings)
                written, count = written + 1, count + len(embeddings)
            bar.update(tar.indexes[number].pairs)
    return (
        f"embedded {count:,} captions of {written:,} tar shards ({size / 1e9:.3g} GB); "
        f"{len(shards) - written:,} shards had theirs. Train with --config.data.caption_cache=True"
    )


def _tar_sources(source: Source) -> list[TarSource]:
    """The tar shards of a source, or of the parts of a mixture.

    Raises:
        InputError: there are others.
    """
    sources = parts_of(source)
    tars = [one for one in sources if isinstance(one, TarSource)]
    if len(tars) < len(sources):
        others = ", ".join(repr(one) for one in sources if not isinstance(one, TarSource))
        raise InputError(
            f"the captions of {others} cannot be embedded in advance: data.source must be 'tar', "
            "or a mixture of such"
        )
    return tars


def _has_file(shard: _Shard, tower: str) -> bool:
    source, number = shard
    return caption_path(source.indexes[number], tower).is_file()


def _read(tower: str, tokenizer: Tokenizer, shard: _Shard) -> _Captions | None:
    """The captions of a shard; None where another process has written the file since."""
    source, number = shard
    if _has_file(shard, tower):
        return None
    captions = source.captions(number)
    every = list(itertools.chain.from_iterable(captions))
    # Empty ones are no samples, see `bad_samples.choose_caption`.
    usable = [i for i, caption in enumerate(every) if caption.strip()]
    return captions, usable, tokenizer([every[i] for i in usable])
