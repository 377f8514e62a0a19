"""What is learned, from what, and by which loss: TCL on a frozen CLIP, and CLIP itself."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from tcl_jax.models.clip import CLIP, encode_image, encode_text
from tcl_jax.models.tcl import TCL, embed_pixels
from tcl_jax.ops import losses
from tcl_jax.ops.grounding import grounding_losses
from tcl_jax.ops.images import erase, normalize
from tcl_jax.ops.masking import l2_normalize, own_similarity, straight_through_mask
from tcl_jax.ops.resize import upsample_nearest

Batch = dict[str, jax.Array]
"""`image` [b, S, S, 3] uint8 (or float32, normalised) and `tokens` [b, l] int32; `erase` [b, 4]
int32 where rectangles of the normalised images are to become noise, as in `ops.images.erase`. For
TCL, `text_embedding` [b, d] float32 may be there instead of `tokens`."""

_ERASE_STREAM = 1
"""Folded into a step's key for the noise in erased rectangles; masks are drawn from the key."""


@struct.dataclass
class LossOutput:
    """One evaluation of an objective.

    Attributes:
        total: the loss that is differentiated.
        terms: its terms with their weights applied, by name; they sum to `total`.
        measures: other scalars worth watching.
    """

    total: jax.Array
    terms: dict[str, jax.Array]
    measures: dict[str, jax.Array]


@runtime_checkable
class Objective(Protocol):
    """A loss over learned and frozen parameters, and the order in which the learned ones join."""

    def group_of(self, path: str) -> str:
        """Group of a learned parameter: "head" trains from the start, "backbone" may join later."""
        ...

    def __call__(self, params: Any, frozen: Any, batch: Batch, key: jax.Array) -> LossOutput:
        """The loss of a global batch."""
        ...


@dataclasses.dataclass(frozen=True)
class TCLObjective:
    """TCL's objective (paper section 3.3); learned: all of `models.tcl.TCL` but its CLIP.

    Attributes:
        model: the network.
        weights: of the terms.
        temperature: of the straight-through mask.
        text_tile: texts whose masks exist at a time, see `ops.grounding`; chosen by size if None.
    """

    model: TCL
    weights: losses.LossWeights = losses.LossWeights()
    temperature: float = 1.0
    text_tile: int | None = None

    def group_of(self, path: str) -> str:
        """The copy of CLIP's blocks is the backbone."""
        return "backbone" if path.startswith("grounder/blocks_") else "head"

    def __call__(self, params: Any, frozen: Any, batch: Batch, key: jax.Array) -> LossOutput:
        """Loss with fresh mask noise; `frozen` is CLIP's parameter tree."""
        batch = with_erased(batch, key)
        size, (height, width) = batch["image"].shape[0], batch["image"].shape[1:3]
        patch = self.model.config.patch_size
        shape = (size, 4 * height // patch, 4 * width // patch)
        # Noise of exactly 0 or 1 would be infinite.
        tiny = float(jnp.finfo(jnp.float32).tiny)
        uniform = jax.random.uniform(key, shape, minval=tiny)
        return self.with_noise(params, frozen, batch, uniform)

    def with_noise(
        self, params: Any, frozen: Any, batch: Batch, uniform: Float[Array, "b h w"]
    ) -> LossOutput:
        """Loss with the given uniform mask noise, one map per image; nothing is erased."""
        clip = self.model.clip_model
        image = normalize(batch["image"])
        texts = embed_texts(clip, frozen, batch)
        pixels = embed_pixels(self.model, {**params, "clip": frozen}, image)
        sim2mask = params["sim2mask"]
        weight, bias = sim2mask["w"], sim2mask["b"]

        own_logits = weight * own_similarity(pixels, texts) + bias
        hard = straight_through_mask(own_logits, uniform, self.temperature)[..., None]
        masked = image * upsample_nearest(hard, image.shape[1] // hard.shape[1])
        vision = encode_image(clip, frozen, masked)

        w = self.weights
        pairs = grounding_losses(
            pixels,
            texts,
            weight,
            bias,
            params["tclf_logit_scale"],
            area_prior=w.area_prior,
            text_tile=self.text_tile,
        )
        channels_first = jnp.moveaxis(pixels, -1, 1)
        terms = {
            "tclf": w.tcl * pairs.tclf,
            "tcli": w.tcl
            * losses.image_text_loss(vision.embedding, texts, params["tcli_logit_scale"]),
            "area": w.area * pairs.area,
            "neg_area": w.area * pairs.neg_area,
            "tv_img": w.tv * losses.total_variation(channels_first),
            "tv_mask": w.tv * pairs.tv_mask,
        }
        measures = {
            "mask_area": pairs.mask_area,
            "sim2mask_w": weight,
            "sim2mask_b": bias,
        }
        return LossOutput(
            total=sum(terms.values(), start=jnp.zeros(())), terms=terms, measures=measures
        )


@dataclasses.dataclass(frozen=True)
class CLIPObjective:
    """CLIP's own contrastive objective (Radford et al., 2021); everything is learned."""

    model: CLIP

    def group_of(self, path: str) -> str:
        """One group."""
        del path
        return "head"

    def __call__(self, params: Any, frozen: Any, batch: Batch, key: jax.Array) -> LossOutput:
        """Symmetric InfoNCE of image and text embeddings over the global batch."""
        del frozen
        batch = with_erased(batch, key)
        images = encode_image(self.model, params, normalize(batch["image"])).embedding
        texts = encode_text(self.model, params, batch["tokens"])
        log_scale = params["logit_scale"]
        loss = losses.image_text_loss(images, texts, log_scale)
        similarity = jnp.einsum("id,jd->ij", l2_normalize(images), l2_normalize(texts))
        hits = jnp.argmax(similarity, axis=1) == jnp.arange(similarity.shape[0])
        measures = {"accuracy": jnp.mean(hits), "logit_scale": log_scale}
        return LossOutput(total=loss, terms={"contrastive": loss}, measures=measures)


def embed_texts(clip: CLIP, frozen: Any, batch: Batch) -> Float[Array, "b d"]:
    """Embeddings of a batch's texts: those it brings along, or else the frozen CLIP's."""
    if "text_embedding" in batch:
        return batch["text_embedding"]
    return encode_text(clip, frozen, batch["tokens"])


def with_erased(batch: Batch, key: jax.Array) -> Batch:
    """A batch whose images are normalised and erased, if it says what to erase; else the same."""
    if "erase" not in batch:
        return batch
    noise = jax.random.fold_in(key, _ERASE_STREAM)
    rest = {name: rows for name, rows in batch.items() if name != "erase"}
    return {**rest, "image": erase(normalize(batch["image"]), batch["erase"], noise)}
