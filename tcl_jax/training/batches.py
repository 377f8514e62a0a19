"""The training batches of this process, once all processes agree on what they train on."""

from __future__ import annotations

import json
from typing import Any

import jax
from ml_collections import ConfigDict

from tcl_jax.data.bad_samples import BadSampleLog
from tcl_jax.data.pipeline import BatchIterator, make_iterator
from tcl_jax.data.sources import make_erasing, make_source, make_transform
from tcl_jax.errors import InputError, as_input_error
from tcl_jax.files import short_hash
from tcl_jax.inference.texts import text_tower_id
from tcl_jax.models.text_encoder import TextEncoder
from tcl_jax.parallel.processes import check_same, raise_on_all_processes
from tcl_jax.training.build import Experiment
from tcl_jax.weights.identity import decisive


def caption_tower(config: ConfigDict, experiment: Experiment) -> tuple[TextEncoder, Any]:
    """The frozen text tower of a run, whose embeddings of captions can be computed in advance.

    Raises:
        InputError: it is trained.
    """
    objective = experiment.objective
    params = objective.frozen_text_params(experiment.frozen)
    if params is None:
        raise InputError(
            f"objective={config.objective!r} trains the text tower, so no embedding of a caption "
            "stays as it is; data.caption_cache is for those that leave it frozen, such as 'tcl'"
        )
    return objective.text_encoder, params


def feature_towers(config: ConfigDict, experiment: Experiment) -> str:
    """Sixteen hexadecimal digits, equal where the features of the frozen towers are.

    Raises:
        InputError: training takes pixels, or embeddings of captions are asked for besides.
    """
    if experiment.objective.head_shape is None:
        raise InputError(
            f"objective={config.objective!r} learns from pixels, and "
            f"data.features={config.data.features!r} holds features in their place, as 'talk2dino' "
            "takes; set it to ''"
        )
    if config.data.caption_cache:
        raise InputError("data.caption_cache=True: data.features has the captions; set it to False")
    text_tower = text_tower_id(*caption_tower(config, experiment))
    others = {name: decisive(one) for name, one in experiment.identities.items()}
    return short_hash([text_tower, others, experiment.method.resolution, config.model.dtype])


def open_batches(
    config: ConfigDict, experiment: Experiment, bad_samples: BadSampleLog
) -> BatchIterator:
    """The batches that `config.data` and `config.train` describe; every process must call it.

    With `data.caption_cache` they have `text_embedding` instead of `tokens`, and with
    `data.features` also `heads` instead of images.

    Args:
        config: of the run.
        experiment: what is trained.
        bad_samples: records the samples that cannot be used.

    Raises:
        InputError: the data cannot be used, here or on another process, or processes see different
            data; on all processes alike.
    """
    batches = raise_on_all_processes(lambda: _open(config, experiment, bad_samples))
    check_same(
        "training data",
        json.dumps(batches.identity),
        "Every process must read the same shards: use a shared folder, or copy all of them to "
        "every machine",
    )
    return batches


def _open(config: ConfigDict, experiment: Experiment, bad_samples: BadSampleLog) -> BatchIterator:
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    tokenizer, size = experiment.objective.text_encoder.tokenizer(), experiment.method.resolution
    tower = towers = None
    if config.data.features:
        towers = feature_towers(config, experiment)
    elif config.data.caption_cache:
        tower = text_tower_id(*caption_tower(config, experiment))
    source = make_source(config.data, size, **processes, text_tower=tower, towers=towers)
    with as_input_error("the training data"):
        return make_iterator(
            source,
            tokenizer=tokenizer,
            transform=make_transform(config.data, size),
            erasing=make_erasing(config.data),
            global_batch_size=config.train.global_batch_size,
            seed=config.seed,
            num_workers=config.data.num_workers,
            bad_samples=bad_samples,
            **processes,
        )
