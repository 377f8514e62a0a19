"""Zero-shot segmentation and retrieval on drawn scenes."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int32, UInt8

from tcl_jax.errors import InputError
from tcl_jax.evaluation.scores import Counts, count_levels
from tcl_jax.evaluation.thresholds import ThresholdSearch
from tcl_jax.inference.engine import ImageTask, MaskEngine
from tcl_jax.inference.masks import MaskOptions
from tcl_jax.inference.merging import SoftMasks
from tcl_jax.inference.windows import SlidingWindow
from tcl_jax.models.clip import CLIP, encode_image, encode_text
from tcl_jax.ops.images import normalize
from tcl_jax.ops.losses import image_text_similarity
from tcl_jax.parallel.processes import sum_over_processes
from tcl_jax.shapes.source import UNSEEN, ShapesSource, class_names

RETRIEVAL_SIZE = 128
"""Images (and captions) among which the right one has to be found."""
THRESHOLDS = tuple(i / 50 for i in range(1, 50))
"""Scores of the background that are tried with every method."""


def check_scenes(num_scenes: int, batch_size: int, mesh: Mesh) -> None:
    """Checks `eval.num_scenes` and `eval.batch_size`, the scenes at a time over all devices.

    Raises:
        InputError: if there are fewer scenes than retrieval takes, or a batch does not divide over
            the devices.
    """
    if num_scenes < RETRIEVAL_SIZE:
        raise InputError(
            f"eval.num_scenes={num_scenes} is too few: retrieval finds one scene among "
            f"{RETRIEVAL_SIZE}; set it to {RETRIEVAL_SIZE} or more"
        )
    if batch_size < 1 or batch_size % mesh.size:
        raise InputError(
            f"eval.batch_size={batch_size} does not divide over {mesh.size} devices; choose a "
            f"multiple of {mesh.size}"
        )


def scene_masks(
    engine: MaskEngine,
    params: Any,
    texts: Float32[np.ndarray, "n d"],
    options: MaskOptions,
    scenes: Iterable[dict[str, Any]],
) -> Iterator[tuple[dict[str, Any], SoftMasks]]:
    """Yields scenes in order, with a method's masks of all texts."""

    def task(scene: dict[str, Any]) -> ImageTask[dict[str, Any]]:
        side = len(scene["image"])
        sliding = SlidingWindow.over((side, side), side, side, engine.patch_size)
        return ImageTask(scene, sliding, scene["image"])

    for done, masks in engine(params, map(task, scenes), texts, options):
        yield done.item, masks


def count_scenes(
    engine: MaskEngine,
    params: Any,
    texts: Float32[np.ndarray, "n d"],
    options: MaskOptions,
    source: ShapesSource,
    own: float,
) -> ThresholdSearch:
    """Counts of a method with every class name, at all thresholds of the background at once.

    Every process calls it, and segments a share of the scenes.

    Args:
        engine: the method.
        params: all parameters it needs, on the engine's devices.
        texts: embeddings of `class_names()`, [24, d].
        options: post-processing of the masks.
        source: scenes with label maps.
        own: a threshold that is tried beside `THRESHOLDS`.
    """
    tried, classes = tuple(sorted({*THRESHOLDS, own})), 1 + len(class_names())
    counts = Counts.zeros(classes, len(tried))
    mine = (source[i] for i in range(jax.process_index(), len(source), jax.process_count()))
    for scene, masks in scene_masks(engine, params, texts, options, mine):
        labels, levels = masks.levels(masks.size, tried)
        counts += count_levels(labels, levels, scene["label"], classes, len(tried))
    return ThresholdSearch(tried, own, counts.reduced(sum_over_processes))


def scores_at(search: ThresholdSearch, threshold: float) -> dict[str, float]:
    """Scores of scenes at one of the thresholds that were tried.

    Returns:
        `miou` over background and all classes, `miou_unseen` over the classes that no training
        caption names, and `boundary`, see `scores.Scores`, in per cent; and the `threshold`.
    """
    counts = search.counts.at(search.tried.index(threshold))
    names, scores = ("background", *class_names()), counts.scores()
    return {
        "miou": 100 * scores.miou,
        "miou_unseen": 100 * counts.mean_iou([names.index(name) for name in UNSEEN]),
        "boundary": 100 * scores.boundary,
        "threshold": threshold,
    }


def retrieval_at_1(model: CLIP, params: Any, source: ShapesSource) -> float:
    """Captions and images that find their partner among 128, mean of both directions, in per cent.

    Every process computes all of it; the scenes are few.
    """
    tokenizer = model.tokenizer()
    right, shares = np.arange(RETRIEVAL_SIZE), []
    for start in range(0, len(source) - RETRIEVAL_SIZE + 1, RETRIEVAL_SIZE):
        scenes = [source[i] for i in range(start, start + RETRIEVAL_SIZE)]
        images = np.stack([scene["image"] for scene in scenes])
        tokens = tokenizer([scene["text"] for scene in scenes])
        similarity = np.asarray(_similarity(model, params, images, tokens))
        shares += [np.mean(similarity.argmax(axis) == right) for axis in (0, 1)]
    return 100 * float(np.mean(shares))


# Of the module, so that a run compiles it once and not at every evaluation.
@functools.partial(jax.jit, static_argnums=0)
def _similarity(
    model: CLIP, params: Any, image: UInt8[Array, "b h w 3"], tokens: Int32[Array, "n l"]
) -> Float[Array, "b n"]:
    """Cosines of images with texts."""
    images = encode_image(model, params, normalize(image)).embedding
    return image_text_similarity(images, encode_text(model, params, tokens))
