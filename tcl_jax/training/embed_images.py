"""Features of images and captions in advance, for training that takes these in their place."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Float16, UInt8
from ml_collections import ConfigDict
from tqdm import tqdm

from tcl_jax.data.bad_samples import MIN_SEEN, BadSampleError
from tcl_jax.data.features import blocks_of, feature_folder, write_block
from tcl_jax.data.images import ImageDecodeError
from tcl_jax.data.mixture import parts_of
from tcl_jax.data.sources import make_source, make_transform
from tcl_jax.data.training_examples import Source
from tcl_jax.data.transforms import Transform
from tcl_jax.errors import InputError, RunError
from tcl_jax.inference.texts import embed_tokens
from tcl_jax.ops.images import normalize
from tcl_jax.ops.masking import l2_normalize
from tcl_jax.parallel.cores import available_cores
from tcl_jax.parallel.mesh import batch_sharded, local_mesh, put_replicated
from tcl_jax.parallel.processes import raise_on_all_processes
from tcl_jax.training.batches import feature_towers
from tcl_jax.training.build import Experiment, build_experiment
from tcl_jax.training.in_advance import own_first, read_ahead

_TEXTS = 512
"""Captions that a device computes together."""


@dataclasses.dataclass(frozen=True)
class _Block:
    """A file of `data.features`, and the examples of a source that it is of."""

    path: Path
    source: Source
    examples: range


@dataclasses.dataclass(frozen=True)
class _Content:
    """What a block is made of.

    Attributes:
        images: uint8 [S, S, 3] each, of the examples that can be used.
        captions: of each example that are not empty; none of those that cannot be used.
        bad: why the others cannot be used.
    """

    images: list[np.ndarray]
    captions: list[list[str]]
    bad: list[str]


def embed(config: ConfigDict, *, batch_size: int = 64) -> str:
    """Writes the files that `data.features` lacks; each process its share, or what is left.

    Args:
        config: of a training that takes features.
        batch_size: images that a device computes together.

    Returns:
        A sentence that says what was made.

    Raises:
        InputError: weights or pairs cannot be read, training takes pixels, or a file cannot be
            written.
        RunError: more pairs cannot be used than `data.max_bad_share` allows.
    """
    if not config.data.features:
        raise InputError("data.features='' must name the folder for what is computed")
    process, processes = jax.process_index(), jax.process_count()
    experiment = raise_on_all_processes(lambda: build_experiment(config))
    towers = feature_towers(config, experiment)
    encoder = experiment.objective.text_encoder
    side = experiment.method.resolution
    transform, tokenizer = make_transform(config.data, side), encoder.tokenizer()
    source = make_source(config.data, side, process_index=process, process_count=processes)
    blocks = [
        _Block(path, one, examples)
        for one in parts_of(source)
        for path, examples in blocks_of(feature_folder(config.data.features, one, towers), len(one))
    ]
    lacking = [block for block in blocks if not block.path.is_file()]
    logging.info("%d of %d files of features are lacking", len(lacking), len(blocks))
    mesh = local_mesh()
    frozen = put_replicated(experiment.frozen, mesh)
    text_params = experiment.objective.frozen_text_params(frozen)
    sizes = [len(block.examples) for block in blocks]
    longest, enough = max(sizes), min(sum(sizes), MIN_SEEN)
    batch_size = mesh.size * min(batch_size, -(-longest // mesh.size))
    compute = jax.jit(partial(_heads, experiment))
    seen = bad = written = captions = size = 0
    last = ""  # of those that cannot be used
    with (
        tqdm(desc="images", total=sum(len(block.examples) for block in lacking)) as bar,
        contextlib.ExitStack() as stack,
    ):
        pool = concurrent.futures.ThreadPoolExecutor(available_cores())
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        turns = own_first(lacking, process, processes)
        for block, content in read_ahead(turns, partial(_read, pool, transform)):
            bar.update(len(block.examples))
            if content is None:
                continue
            seen, bad = seen + len(block.examples), bad + len(content.bad)
            if content.bad:
                last = content.bad[-1]
                logging.warning("%d of %d images are left out: %s", bad, seen, last)
            if seen >= enough and bad > config.data.max_bad_share * seen:
                raise RunError(
                    f"{bad} of {seen} pairs cannot be used, more than data.max_bad_share="
                    f"{config.data.max_bad_share} allows; the last: {last}"
                )
            every = [caption for several in content.captions for caption in several]
            tokens = tokenizer(every)
            texts = embed_tokens(encoder, text_params, tokens, mesh=mesh, batch_size=_TEXTS)
            counts = [len(several) for several in content.captions]
            heads = []
            for start in range(0, len(content.images) or 1, batch_size):
                batch = content.images[start : start + batch_size]
                rows = np.zeros((batch_size, side, side, 3), np.uint8)
                for row, image in zip(rows, batch, strict=False):
                    row[:] = image
                found = compute(frozen, jax.device_put(rows, batch_sharded(mesh)))
                heads.append(np.asarray(found)[: len(batch)])
            size += write_block(block.path, counts, np.concatenate(heads), texts)
            written, captions = written + 1, captions + len(every)
    return (
        f"embedded {seen - bad:,} images and {captions:,} captions in {written:,} files "
        f"({size / 1e9:.3g} GB), and left out {bad:,}; {len(blocks) - written:,} files were there"
    )


def _heads(
    experiment: Experiment, frozen: Any, images: UInt8[Array, "n h w 3"]
) -> Float16[Array, "n m c"]:
    pixels = normalize(images, experiment.method.pixel_statistics)
    # Means over many patches, divided by their number, are so small that float16 has fewer digits
    # for them, and some devices none; of a head its direction counts.
    return l2_normalize(experiment.objective.embed_images(frozen, pixels)).astype(jnp.float16)


def _read(
    pool: concurrent.futures.Executor, transform: Transform, block: _Block
) -> _Content | None:
    """The pairs of a block; None where another process has written its file since."""
    if block.path.is_file():
        return None
    rng = np.random.default_rng(0)  # that nothing is drawn from

    def read(number: int) -> tuple[Any, Any]:
        example = block.source[number]
        try:
            if "problem" in example:
                raise example["problem"]
            text = example["text"]
            several = [text] if isinstance(text, str) else text or []
            usable = [caption for caption in several if caption.strip()]
            if not usable:
                raise BadSampleError("empty_caption", "it has no caption that is not empty")
            return transform(example["image"], rng), usable
        except (BadSampleError, ImageDecodeError) as error:
            return None, f"{example.get('key', number)}: {error}"

    found = list(pool.map(read, block.examples))
    return _Content(
        images=[image for image, _ in found if image is not None],
        captions=[[] if image is None else captions for image, captions in found],
        bad=[problem for image, problem in found if image is None],
    )
