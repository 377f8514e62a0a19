"""Zero-shot segmentation and retrieval on drawn scenes."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int32, UInt8

from tcl_jax.errors import InputError
from tcl_jax.evaluation.scores import Counts, count_pixels
from tcl_jax.inference.engine import ImageTask, MaskEngine
from tcl_jax.inference.masks import MaskOptions
from tcl_jax.inference.windows import SlidingWindow
from tcl_jax.models.clip import CLIP, encode_image, encode_text
from tcl_jax.models.dense import MaskCLIP
from tcl_jax.models.layers import matmul_precision
from tcl_jax.ops.images import normalize
from tcl_jax.ops.losses import image_text_similarity
from tcl_jax.parallel.processes import sum_over_processes
from tcl_jax.shapes.source import UNSEEN, ShapesSource, class_names

RETRIEVAL_SIZE = 128
"""Images (and captions) among which the right one has to be found."""


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


def patch_cosines(
    method: MaskCLIP,
    params: Any,
    image: Float[Array, "b H W 3"],
    texts: Float[Array, "n d"],
    options: MaskOptions,
) -> Float[Array, "b h w n"]:
    """Cosines of CLIP's patch features with the texts: MaskCLIP (Zhou et al., ECCV 2022)."""
    del options
    with matmul_precision(method.dtype):
        return method.cosines(params, image, texts)


def best_classes(
    engine: MaskEngine,
    params: Any,
    texts: Float32[np.ndarray, "n d"],
    options: MaskOptions,
    scenes: Iterable[dict[str, Any]],
) -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray]]:
    """Yields scenes in order, with the best class and its score at every pixel.

    So thresholds can be tried without the model.
    """

    def task(scene: dict[str, Any]) -> ImageTask[dict[str, Any]]:
        side = len(scene["image"])
        sliding = SlidingWindow.over((side, side), side, side, engine.patch_size)
        return ImageTask(scene, sliding, scene["image"])

    for done, masks in engine(params, map(task, scenes), texts, options):
        yield (done.item, *masks.best(masks.size))


def with_background(classes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Label map uint16: 0 where no class scores above the threshold, else the class plus 1."""
    return np.where(scores > threshold, classes + 1, 0).astype(np.uint16)


def segment_scenes(
    engine: MaskEngine,
    params: Any,
    texts: Float32[np.ndarray, "n d"],
    options: MaskOptions,
    source: ShapesSource,
    thresholds: Sequence[float],
) -> list[dict[str, float]]:
    """Scores of a method with every class name, at each background threshold.

    Every process calls it, and segments a share of the scenes.

    Args:
        engine: the method.
        params: all parameters it needs, on the engine's devices.
        texts: embeddings of `class_names()`, [24, d].
        options: post-processing of TCL's masks.
        source: scenes with label maps.
        thresholds: scores above which a pixel is not background.

    Returns:
        In per cent, `miou` over background and all classes, and `miou_unseen` over the classes that
        no training caption names.
    """
    names = ("background", *class_names())
    unseen = [names.index(name) for name in UNSEEN]
    counts = [Counts.zeros(len(names)) for _ in thresholds]
    mine = (source[i] for i in range(jax.process_index(), len(source), jax.process_count()))
    for scene, classes, values in best_classes(engine, params, texts, options, mine):
        for i, threshold in enumerate(thresholds):
            predicted = with_background(classes, values, threshold)
            counts[i] += count_pixels(predicted, scene["label"], len(names))
    totals = [count.reduced(sum_over_processes) for count in counts]
    return [
        {"miou": 100 * total.scores().miou, "miou_unseen": 100 * total.mean_iou(unseen)}
        for total in totals
    ]


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
