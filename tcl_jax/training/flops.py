"""FLOPs of the method itself, by formula: what any implementation has to compute, nothing twice.

Only products of matrices and convolutions count, a multiplication and an addition as two. What is
computed again to save memory does not count, so that these FLOPs over time and peak give MFU
(Chowdhery et al., PaLM, appendix B).

For ViT-B/16, in GFLOP an image: 35 for the image tower forward, 6 for the text tower, 83 for the
decoder forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax

from tcl_jax.models.clip import CLIP, CLIPConfig
from tcl_jax.models.decoder import STAGES
from tcl_jax.models.tcl import TCL
from tcl_jax.parallel.chips import peak_flops
from tcl_jax.training.objectives import CLIPObjective, Objective, TCLObjective

Parts = dict[str, float]
"""FLOPs of one image (with its text) by what they are for."""

_CONVS, _KERNEL = 2, 9


def image_tower(config: CLIPConfig, blocks: int | None = None, side: int | None = None) -> float:
    """Forward FLOPs of the patches and of `blocks` blocks (None: all, and the projection).

    Args:
        config: sizes.
        blocks: with full attention, from the first.
        side: of a square image in pixels, a multiple of the patch; None: the trained resolution.
    """
    width, patches = config.vision_width, _patches(config, side)
    embed = 2 * patches * config.patch_size**2 * 3 * width
    count = config.vision_layers if blocks is None else blocks
    total = embed + count * _block(1 + patches, width)
    return total + (2 * width * config.embed_dim if blocks is None else 0)


def text_tower(config: CLIPConfig) -> float:
    """Forward FLOPs of a text of full length."""
    width, length = config.text_width, config.context_length
    return config.text_layers * _block(length, width) + 2 * width * config.embed_dim


def decoder(config: CLIPConfig, side: int | None = None) -> float:
    """Forward FLOPs of the grounder's decoder, two stages of two 3x3 convolutions."""
    patches, width = _patches(config, side), config.vision_width
    pixels = sum(patches * 4 ** (stage + 1) for stage in range(STAGES))
    return _CONVS * 2 * _KERNEL * width**2 * pixels


def training_flops(objective: Objective, batch: int, train_backbone: bool) -> Parts:
    """FLOPs of one image with its text in a training step, forward and backward, by part.

    Args:
        objective: what is trained.
        batch: the global batch, whose texts are all contrasted with the image.
        train_backbone: whether the grounder's copies of CLIP's blocks train, phase 2.
    """
    if isinstance(objective, TCLObjective):
        return _tcl(objective.model, batch, train_backbone)
    assert isinstance(objective, CLIPObjective)
    config = objective.model.config
    return {
        "image tower": 3 * image_tower(config),
        "text tower": 3 * text_tower(config),
        "contrast": 3 * 2 * batch * config.embed_dim,
    }


def evaluation_flops(model: TCL | CLIP, side: int, texts: int, mixes_clip: bool) -> Parts:
    """FLOPs of making the masks of one window.

    Args:
        model: TCL, or CLIP alone.
        side: of the window in pixels, a multiple of the patch.
        texts: number of masks.
        mixes_clip: whether CLIP's own dense prediction is computed (of CLIP alone it is).
    """
    config = model.config
    patches, width = _patches(config, side), config.vision_width
    unit = 2 * patches * texts * config.embed_dim
    last = _own_value_block(1 + patches, width) + 2 * patches * width * config.embed_dim
    parts = {"image tower": image_tower(config, config.vision_layers - 1, side), "masks": 0.0}
    if mixes_clip or isinstance(model, CLIP):
        parts["image tower"] += last
        parts["masks"] += unit
    if isinstance(model, TCL):
        later = _after_tap(model) - 1
        parts["grounder's blocks"] = later * _block(1 + patches, width)
        parts["grounder's blocks"] += _own_value_block(1 + patches, width)
        parts["decoder"] = decoder(config, side)
        parts["projection"] = 16 * 2 * patches * width * config.embed_dim
        parts["masks"] += 16 * unit
    return parts


def total(parts: Mapping[str, float]) -> float:
    """The sum of all parts."""
    return float(sum(parts.values()))


def mfu(
    flops_per_step: float, seconds_per_step: float, devices: Sequence[jax.Device]
) -> float | None:
    """Model FLOPs utilisation in 0..1 (Chowdhery et al., PaLM, appendix B), None if unknown.

    Args:
        flops_per_step: that the method itself needs for a global batch.
        seconds_per_step: measured time.
        devices: all devices that share the batch.
    """
    peaks = [peak_flops(device) for device in devices]
    known = [peak for peak in peaks if peak is not None]
    if not known or len(known) < len(peaks) or seconds_per_step <= 0:
        return None
    return flops_per_step / seconds_per_step / sum(known)


def _tcl(model: TCL, batch: int, train_backbone: bool) -> Parts:
    config = model.config
    width, embed, tokens = config.vision_width, config.embed_dim, 1 + _patches(config, None)
    pixels = 16 * (tokens - 1)
    blocks = (_after_tap(model) - 1) * _block(tokens, width) + _own_value_block(tokens, width)
    projection = 2 * pixels * width * embed
    masked = image_tower(config)
    # Towards the mask alone, as the weights are frozen; both factors of attention have gradients.
    towards_mask = masked + config.vision_layers * _attention(tokens, width)
    # Similarity and region of each pair; then two for the region's gradient and, as texts are
    # frozen, one for the similarity's.
    pairs = (2 + 3) * 2 * pixels * embed * batch
    return {
        "image tower": image_tower(config, config.vision_layers - _after_tap(model)),
        "text tower": text_tower(config),
        "grounder's blocks": (3 if train_backbone else 1) * blocks,
        "decoder": 3 * decoder(config),
        "projection": 3 * projection,
        "masked image": masked + towards_mask,
        "masks of all pairs": pairs,
        # Two contrasts of [n] cosines of d, each with a gradient on one side; the own mask's too.
        "contrast": 2 * 2 * 2 * batch * embed + 2 * 2 * pixels * embed,
    }


def _after_tap(model: TCL) -> int:
    return model.config.vision_layers - model.config.tap_of(model.tap_layer)


def _patches(config: CLIPConfig, side: int | None) -> int:
    return ((config.resolution if side is None else side) // config.patch_size) ** 2


def _block(tokens: int, width: int) -> float:
    """Queries, keys, values and output 4, the MLP 8 of the width's square; and attention."""
    return 24 * tokens * width**2 + _attention(tokens, width)


def _attention(tokens: int, width: int) -> float:
    return 4 * tokens**2 * width


def _own_value_block(tokens: int, width: int) -> float:
    """A block whose tokens attend to themselves alone: value, output and the MLP."""
    return 20 * tokens * width**2
