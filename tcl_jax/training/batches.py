"""The training batches of this process, once all processes agree on what they train on."""

from __future__ import annotations

import json

import jax
from ml_collections import ConfigDict

from tcl_jax.data.bad_samples import BadSampleLog
from tcl_jax.data.pipeline import BatchIterator, make_iterator
from tcl_jax.data.sources import make_erasing, make_source, make_transform
from tcl_jax.errors import as_input_error
from tcl_jax.inference.captions import text_tower_id
from tcl_jax.models.clip import CLIPConfig
from tcl_jax.parallel.processes import check_same, raise_on_all_processes
from tcl_jax.training.build import Experiment


def cached_text_tower(config: ConfigDict, experiment: Experiment) -> str | None:
    """The text tower whose embeddings of captions a run reads; None where it computes its own."""
    return text_tower_id(experiment.clip, experiment.frozen) if config.data.caption_cache else None


def open_batches(
    config: ConfigDict,
    clip: CLIPConfig,
    bad_samples: BadSampleLog,
    *,
    text_tower: str | None = None,
) -> BatchIterator:
    """The batches that `config.data` and `config.train` describe; every process must call it.

    Args:
        config: of the run.
        clip: sizes of the model's images and texts.
        bad_samples: records the samples that cannot be used.
        text_tower: as `cached_text_tower` tells it; batches then have `text_embedding` instead of
            `tokens`.

    Raises:
        InputError: the data cannot be used, here or on another process, or processes see different
            data; on all processes alike.
    """
    batches = raise_on_all_processes(lambda: _open(config, clip, bad_samples, text_tower))
    check_same(
        "training data",
        json.dumps(batches.identity),
        "Every process must read the same shards: use a shared folder, or copy all of them to "
        "every machine",
    )
    return batches


def _open(
    config: ConfigDict, clip: CLIPConfig, bad_samples: BadSampleLog, text_tower: str | None
) -> BatchIterator:
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    tokenizer = clip.tokenizer()
    source = make_source(config.data, clip.resolution, **processes, text_tower=text_tower)
    with as_input_error("the training data"):
        return make_iterator(
            source,
            tokenizer=tokenizer,
            transform=make_transform(config.data, clip.resolution),
            erasing=make_erasing(config.data),
            global_batch_size=config.train.global_batch_size,
            seed=config.seed,
            num_workers=config.data.num_workers,
            bad_samples=bad_samples,
            **processes,
        )
