"""What is learned, from what, and by which loss: TCL on frozen towers, CLIP itself, and Talk2DINO.

A term more in TCL's loss is its formula and its weight in `ops.losses`, a line in
`TCLObjective.combine` below, and its weight's field in configs/tcl.py. What it needs of each image
besides `GroundedImages` is computed in `embed`, and what it needs of each pair of an image and a
text in `ops.pair_statistics`.
"""

from __future__ import annotations

import abc
import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from tcl_jax.models import flops
from tcl_jax.models.clip import CLIP, INITIAL_LOGIT_SCALE, encode_image, encode_text
from tcl_jax.models.decoder import UPSAMPLING
from tcl_jax.models.talk2dino import choose_heads, project_text
from tcl_jax.models.talk2dino_method import Talk2DINO
from tcl_jax.models.tcl import TCL
from tcl_jax.models.text_encoder import TextEncoder
from tcl_jax.ops import losses
from tcl_jax.ops.images import IMAGENET, PixelStatistics, erase, normalize, renormalize
from tcl_jax.ops.masking import mask_logits, positive_similarity, straight_through_mask
from tcl_jax.ops.pair_statistics import PairStatistics, pair_statistics
from tcl_jax.ops.resize import resize_nearest

Batch = dict[str, jax.Array]
"""Rows by name: `image` [b, S, S, 3] uint8 (or float32, normalised) and `tokens` [b, l] int32.

TCL and Talk2DINO also take `text_embedding` [b, d] float32 instead of tokens, and Talk2DINO `heads`
[b, m, c], any float dtype, instead of images. Two are optional: `erase` [b, 4]
int32, rectangles of the normalised images that become noise (see `ops.images.erase`), and `uniform`
[b, h, w] float32 in (0, 1), the masks' noise."""

_ERASE_STREAM = 1
"""Folded into a row's key for the noise in erased rectangles; masks are drawn from the key."""


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


class Objective(abc.ABC):
    """A loss over learned and frozen parameters, in three parts.

    `prepare` and `embed` look at some rows of a batch, and only `combine`, which is cheap, needs
    what they return for all rows. So a large batch can be taken piece by piece with its exact loss.
    Learned and frozen parameters are entries of the tree of the method that is trained.

    Attributes:
        model: the network, with its compute dtype, `dtype`.
    """

    model: Any

    @property
    @abc.abstractmethod
    def text_encoder(self) -> TextEncoder:
        """What tokenizes the captions, and embeds them."""

    @abc.abstractmethod
    def frozen_text_params(self, frozen: Any) -> Any:
        """The parameters of `text_encoder`; None if they are learned."""

    @abc.abstractmethod
    def training_flops(self, batch: int, train_backbone: bool) -> flops.Parts:
        """FLOPs of one image with its text in a training step of a global batch, by part."""

    def group_of(self, path: str) -> str:
        """Group of a learned parameter: "head" trains from the start, "backbone" may join later."""
        del path
        return "head"

    @abc.abstractmethod
    def prepare(self, frozen: Any, rows: Batch) -> Batch:
        """What `embed` and other rows need that no learned parameter changes.

        Args:
            frozen: frozen parameters.
            rows: of a batch, with the `keys` of each row.
        """

    @abc.abstractmethod
    def embed(self, params: Any, frozen: Any, rows: Batch, batch: Batch) -> Any:
        """A tree of floating arrays [b, ...], one row for each example.

        Args:
            params, frozen: learned and frozen parameters.
            rows: prepared.
            batch: all rows, prepared; `rows` are some of them, or all.
        """

    @abc.abstractmethod
    def combine(self, params: Any, embedded: Any) -> LossOutput:
        """The loss of a global batch from what `embed` returned for all of its rows."""

    @property
    def head_shape(self) -> tuple[int, int] | None:
        """Of an image's `heads`, where training takes these, stored, in place of pixels."""
        return None

    def embed_images(self, frozen: Any, image: Float[Array, "b h w 3"]) -> Float[Array, "b m c"]:
        """The `heads` of normalised images, where there is a `head_shape`."""
        raise NotImplementedError(type(self).__name__)

    def embed_texts(self, frozen: Any, rows: Batch) -> Float[Array, "b d"]:
        """Embeddings of the rows' texts: those in them, or else the frozen text encoder's."""
        if "text_embedding" in rows:
            return rows["text_embedding"]
        return self.text_encoder.embed_texts(self.frozen_text_params(frozen), rows["tokens"])

    def project_texts(self, params: Any, texts: Float[Array, "b e"]) -> Float[Array, "b d"]:
        """What masks take, of `text_encoder`'s embeddings: the same, unless more is learned."""
        del params
        return texts

    def __call__(self, params: Any, frozen: Any, batch: Batch, key: jax.Array) -> LossOutput:
        """The loss of a global batch."""
        prepared = self.prepare(frozen, with_keys(batch, key))
        return self.combine(params, self.embed(params, frozen, prepared, prepared))


def with_keys(batch: Batch, key: jax.Array) -> Batch:
    """A batch with a key for each row, on which all noise of that row depends."""
    return {**batch, "keys": jax.random.split(key, len(next(iter(batch.values()))))}


@struct.dataclass
class GroundedImages:
    """What TCL's terms need of each image; float32.

    Attributes:
        pairs: of its masks of all texts, [b, n] each.
        image: [b, d] CLIP's embedding of the masked image.
        text: [b, d] embedding of its own text.
        variation: [b] total variation of its pixel embeddings.
    """

    pairs: PairStatistics
    image: jax.Array
    text: jax.Array
    variation: jax.Array


@dataclasses.dataclass(frozen=True)
class TCLObjective(Objective):
    """TCL's objective (paper section 3.3, the original's `TCL.forward`).

    Learned is all of `models.tcl.TCL` but its frozen towers.

    Attributes:
        model: the network.
        weights: of the terms.
        temperature: of the straight-through mask.
    """

    model: TCL
    weights: losses.LossWeights = losses.LossWeights()
    temperature: float = 1.0

    @property
    def text_encoder(self) -> TextEncoder:
        """CLIP's text tower."""
        return self.model.text_encoder

    def frozen_text_params(self, frozen: Any) -> Any:
        """CLIP's, all of which is frozen."""
        return self.model.text_params(frozen)

    def training_flops(self, batch: int, train_backbone: bool) -> flops.Parts:
        """By formula, see `models.flops`."""
        model = self.model
        return flops.tcl_step(model.config, model.tower, model.copied_blocks, batch, train_backbone)

    def group_of(self, path: str) -> str:
        """The copy of the tower's blocks is the backbone."""
        return "backbone" if path.startswith(f"{self.model.grounder}/blocks_") else "head"

    def prepare(self, frozen: Any, rows: Batch) -> Batch:
        """Embeds the texts and draws the masks' noise, unless the rows have them."""
        rows = {**rows, "text_embedding": self.embed_texts(frozen, rows)}
        if "uniform" not in rows:
            patch = self.model.patch_size
            height, width = (UPSAMPLING * side // patch for side in rows["image"].shape[1:3])
            # Noise of exactly 0 or 1 would be infinite.
            tiny = float(jnp.finfo(jnp.float32).tiny)
            draw = partial(jax.random.uniform, shape=(height, width), minval=tiny)
            rows["uniform"] = jax.vmap(draw)(rows["keys"])
        return rows

    def embed(self, params: Any, frozen: Any, rows: Batch, batch: Batch) -> GroundedImages:
        """Grounds all texts in each image, and encodes each image under the mask of its own text.

        The latter is CLIP's ordinary embedding (the original's `clip_forward`), of the image as
        CLIP's own statistics normalise it, whatever tower the grounder builds on; the gradient of
        `tcli` reaches the learned parameters through the mask alone.
        """
        texts, image = rows["text_embedding"], augmented(rows, self.model.pixel_statistics)
        w, b = params["sim2mask"]["w"], params["sim2mask"]["b"]
        pixels = self.model.dense_features({**params, **frozen}, image)
        logits = mask_logits(positive_similarity(pixels, texts), w, b)
        hard = straight_through_mask(logits, rows["uniform"], self.temperature)[..., None]
        clip, own = self.model.clip_model, self.model.pixel_statistics
        seen = renormalize(image, own, clip.pixel_statistics)
        masked = seen * resize_nearest(hard, image.shape[1:3])
        encoded = encode_image(clip, frozen["clip"], masked)
        variation = losses.total_variation(jnp.moveaxis(pixels, -1, 1))
        return GroundedImages(
            pairs=pair_statistics(pixels, batch["text_embedding"], w, b),
            image=encoded.embedding.astype(jnp.float32),
            text=texts,
            variation=jnp.mean(variation, axis=1),
        )

    def combine(self, params: Any, embedded: GroundedImages) -> LossOutput:
        """All terms over the global batch (paper, section 3.3)."""
        weight, pairs, sim2mask = self.weights, embedded.pairs, params["sim2mask"]
        similarity = losses.image_text_similarity(embedded.image, embedded.text)
        area, neg_area = losses.area_losses(pairs.area, weight.area_prior, weight.area_group)
        terms = {
            "tclf": weight.tcl * losses.info_nce(pairs.similarity, params["tclf_logit_scale"]),
            "tcli": weight.tcl * losses.info_nce(similarity, params["tcli_logit_scale"]),
            "area": weight.area * area,
            "neg_area": weight.area * neg_area,
            "tv_img": weight.tv * jnp.mean(embedded.variation),
            "tv_mask": weight.tv * jnp.mean(pairs.variation),
        }
        measures = {
            "mask_area": jnp.mean(losses.positives(pairs.area)),
            "sim2mask_w": sim2mask["w"],
            "sim2mask_b": sim2mask["b"],
        }
        return LossOutput(
            total=sum(terms.values(), start=jnp.zeros(())), terms=terms, measures=measures
        )


@struct.dataclass
class ImagesAndTexts:
    """Embeddings of images and of their texts, [b, d] float32, not normalised."""

    image: jax.Array
    text: jax.Array


@dataclasses.dataclass(frozen=True)
class CLIPObjective(Objective):
    """CLIP's own contrastive objective (Radford et al., 2021); everything is learned."""

    model: CLIP

    @property
    def text_encoder(self) -> TextEncoder:
        """Its text tower."""
        return self.model

    def frozen_text_params(self, frozen: Any) -> None:
        """The text tower is learned."""
        del frozen

    def training_flops(self, batch: int, train_backbone: bool) -> flops.Parts:
        """By formula, see `models.flops`."""
        del train_backbone  # no part of it is ever frozen
        return flops.clip_step(self.model.config, batch)

    def prepare(self, frozen: Any, rows: Batch) -> Batch:
        """The rows as they are."""
        del frozen
        return rows

    def embed(self, params: Any, frozen: Any, rows: Batch, batch: Batch) -> ImagesAndTexts:
        """Both towers."""
        del frozen, batch
        image = augmented(rows, self.model.pixel_statistics)
        vision = encode_image(self.model, params["clip"], image)
        text = encode_text(self.model, params["clip"], rows["tokens"])
        return ImagesAndTexts(image=vision.embedding.astype(jnp.float32), text=text)

    def combine(self, params: Any, embedded: ImagesAndTexts) -> LossOutput:
        """Symmetric InfoNCE of image and text embeddings over the global batch."""
        logit_scale = params["clip"]["logit_scale"]
        similarity = losses.image_text_similarity(embedded.image, embedded.text)
        loss = losses.info_nce(similarity, logit_scale)
        measures = {"accuracy": losses.accuracy(similarity), "logit_scale": logit_scale}
        return LossOutput(total=loss, terms={"contrastive": loss}, measures=measures)


@dataclasses.dataclass(frozen=True)
class Talk2DINOObjective(Objective):
    """Talk2DINO's objective (Barsellotti et al., 2025); only the projection is learned.

    Of an image counts the head that is most like its own text, for all texts. The inverse
    temperature, 1 / 0.07, is not learned, and the original divides the loss by the batch's square,
    which moves Adam through its epsilon alone.
    """

    model: Talk2DINO

    @property
    def text_encoder(self) -> TextEncoder:
        """The frozen text tower, before the projection."""
        return self.model.text_encoder.frozen

    def frozen_text_params(self, frozen: Any) -> Any:
        """The text tower's."""
        return {"text": frozen["text"]}

    def project_texts(self, params: Any, texts: Float[Array, "b e"]) -> Float[Array, "b d"]:
        """The projection that is learned."""
        return project_text(params["projection"], texts)

    def training_flops(self, batch: int, train_backbone: bool) -> flops.Parts:
        """Of the projection and the pairs; features of the frozen towers are stored."""
        del train_backbone
        return self.model.training_flops(batch)

    def prepare(self, frozen: Any, rows: Batch) -> Batch:
        """Both frozen towers' features, unless the rows have them."""
        rows = {**rows, "text_embedding": self.embed_texts(frozen, rows)}
        if "heads" not in rows:
            image = augmented(rows, self.model.pixel_statistics)
            rows["heads"] = self.embed_images(frozen, image)
        return rows

    @property
    def head_shape(self) -> tuple[int, int]:
        """Heads and channels of the backbone."""
        return self.model.head_shape

    def embed_images(self, frozen: Any, image: Float[Array, "b h w 3"]) -> Float[Array, "b m c"]:
        """What each of the backbone's heads looks at."""
        return self.model.head_features(frozen, image).disentangled

    def embed(self, params: Any, frozen: Any, rows: Batch, batch: Batch) -> ImagesAndTexts:
        """Each projected text, and the head of its image that is most like it."""
        del frozen, batch
        text = self.project_texts(params, rows["text_embedding"])
        image, _ = choose_heads(text, rows["heads"].astype(jnp.float32))
        return ImagesAndTexts(image=image, text=text)

    def combine(self, params: Any, embedded: ImagesAndTexts) -> LossOutput:
        """Symmetric InfoNCE over the global batch, divided by its square."""
        del params
        similarity = losses.image_text_similarity(embedded.image, embedded.text)
        scale = jnp.asarray(INITIAL_LOGIT_SCALE, jnp.float32)
        loss = losses.info_nce(similarity, scale) / len(similarity) ** 2
        measures = {
            "accuracy": losses.accuracy(similarity),
            "similarity": jnp.mean(losses.positives(similarity)),
        }
        return LossOutput(total=loss, terms={"contrastive": loss}, measures=measures)


def augmented(rows: Batch, statistics: PixelStatistics = IMAGENET) -> Float[Array, "b h w 3"]:
    """Normalised images, with noise in the rectangles `erase` of the rows."""
    image = normalize(rows["image"], statistics)
    if "erase" not in rows:
        return image
    keys = jax.vmap(partial(jax.random.fold_in, data=_ERASE_STREAM))(rows["keys"])
    return erase(image, rows["erase"], keys)
