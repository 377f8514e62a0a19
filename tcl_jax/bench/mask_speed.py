"""How fast masks of a window are made, and where the time goes."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from tcl_jax.bench.timing import PartTimer, Program, Timing, compile_timed, time_calls
from tcl_jax.inference.masks import MaskOptions, make_masks
from tcl_jax.inference.model import Model
from tcl_jax.models.clip import encode_image
from tcl_jax.models.dense import MaskCLIP
from tcl_jax.models.grounder import embed_tokens
from tcl_jax.models.layers import matmul_precision
from tcl_jax.models.vit import patch_grid, project
from tcl_jax.ops.masking import pixel_text_similarity
from tcl_jax.ops.pamr import pamr
from tcl_jax.ops.resize import resize


@dataclasses.dataclass(frozen=True)
class MaskSpeed:
    """Figures of mask making.

    Attributes:
        window: side of the square windows, in pixels.
        classes: number of texts.
        pamr: whether the masks are refined.
        batch_size: windows that are computed together.
        dtype: that the network computes in.
        seconds: of a batch, on the device.
        seconds_per_image: in the middle round.
        flops_per_image: that the method needs by formula, PAMR and resizing left out.
        mfu: those FLOPs over time and the device's bfloat16 peak, in 0..1; None if the peak is not
            known.
        segmenter_seconds: of an image by `Segmenter.masks_normalized`, which pads the texts and
            brings the masks to the host, in the middle round.
        program: what the compiler says.
        peak_bytes: most memory of a device in use since the process began; None if not told.
    """

    window: int
    classes: int
    pamr: bool
    batch_size: int
    dtype: str
    seconds: Timing
    seconds_per_image: float
    flops_per_image: float
    mfu: float | None
    segmenter_seconds: float
    program: Program
    peak_bytes: int | None


class MaskRunner:
    """Compiled mask making, again and again of one batch on one device.

    Args:
        model: TCL.
        images: [b, H, W, 3] normalised.
        texts: [n, d] embeddings.
        options: post-processing.
        dtype: compute dtype.
    """

    def __init__(
        self,
        model: Model,
        images: Float32[np.ndarray, "b H W 3"],
        texts: Float32[np.ndarray, "n d"],
        options: MaskOptions,
        dtype: Any = jnp.float32,
    ) -> None:
        make = jax.jit(partial(make_masks, model.module(dtype)), static_argnames="options")
        self._arguments = jax.device_put((model.params, images, texts))
        traced = make.trace(*self._arguments, options=options)
        self._compiled, self.program = compile_timed(traced)

    def run(self, calls: int) -> float:
        """Seconds that calls in a row take."""
        return time_calls(lambda: self._compiled(*self._arguments), calls)

    def masks(self) -> Float32[np.ndarray, "b H W n"]:
        """What is made."""
        return np.asarray(self._compiled(*self._arguments), np.float32)


def made_up_windows(
    model: Model, side: int, batch: int, classes: int
) -> tuple[Float32[np.ndarray, "b H W 3"], Float32[np.ndarray, "n d"]]:
    """Images and text embeddings of random numbers.

    Args:
        model: that they are for.
        side: of the images, in pixels.
        batch: number of images.
        classes: number of texts.
    """
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, side, side, 3)).astype(np.float32)
    texts = rng.standard_normal((classes, model.config.embed_dim)).astype(np.float32)
    return images, texts


def time_mask_parts(
    model: Model,
    images: Float32[np.ndarray, "b H W 3"],
    texts: Float32[np.ndarray, "n d"],
    dtype: Any = jnp.float32,
    *,
    calls: int,
    rounds: int,
    warm_up: int,
) -> dict[str, float]:
    """Seconds of the parts of mask making with PAMR, each a program of its own.

    They do not add up to the whole, which fuses what these cannot.

    Args:
        model, images, texts, dtype: as of `MaskRunner`; sides are multiples of the patch size.
        calls, rounds, warm_up: see `timing.time_rounds`.

    Returns:
        The fastest round of each part, for the whole batch.
    """
    network, params = model.module(dtype), jax.device_put(model.params)
    layer, maskclip = network.describe()["tap_layer"], MaskCLIP(model.config, dtype)
    vision = network.clip_model.vision
    rows, columns = patch_grid(images.shape, network.patch_size)
    fine, full = (4 * rows, 4 * columns), (images.shape[1], images.shape[2])
    placed, placed_texts = jax.device_put((images, texts))
    timed = PartTimer(calls=calls, rounds=rounds, warm_up=warm_up)

    def tower(params: Any, images: jax.Array) -> Any:
        features = encode_image(network.clip_model, params["clip"], images).features
        patches = maskclip.patch_tokens(params["clip"], features)
        return features.after(layer), project(vision, params["clip"]["visual"], patches)

    def similarity(params: Any, pixels: jax.Array, texts: jax.Array) -> Any:
        w, b = params["sim2mask"]["w"], params["sim2mask"]["b"]
        return jnp.moveaxis(jax.nn.sigmoid(w * pixel_text_similarity(pixels, texts) + b), 1, -1)

    def refine(images: jax.Array, masks: jax.Array) -> Any:
        return pamr(resize(images, fine, align_corners=True), masks)

    # As `inference.masks` computes.
    with matmul_precision(dtype):
        tokens, _ = timed("image tower", tower, params, placed)
        pixels = timed(
            "grounder with decoder",
            lambda p, x: embed_tokens(vision, p, x, (rows, columns)),
            params["grounder"],
            tokens,
        )
        masks = timed("similarity", similarity, params, pixels, placed_texts)
        timed("PAMR", refine, placed, masks)
        timed("upsampling", lambda masks: resize(masks, full), masks)
    return timed.seconds
