"""TCL: a frozen CLIP, the grounder, and the similarity-to-mask mapping.

The grounder builds on the CLIP's own vision tower here, and in `tcl_dino` on another.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Key

from tcl_jax.models import flops
from tcl_jax.models.clip import CLIP, INITIAL_LOGIT_SCALE
from tcl_jax.models.clip_method import CLIPMethod
from tcl_jax.models.decoder import init_decoder
from tcl_jax.models.dense import MaskCLIP, clip_masks
from tcl_jax.models.grounder import embed_patches, run_copies
from tcl_jax.models.layers import matmul_precision
from tcl_jax.models.method import REFINEMENTS, Dense, Image, MaskOptions, Masks, Texts, refine_masks
from tcl_jax.models.sc_clip import aggregate, similarities
from tcl_jax.models.vit import Features, ViT, encode, project
from tcl_jax.ops.masking import mask_logits, pixel_text_cosines, pixel_text_similarity
from tcl_jax.ops.resize import resize

LEAST_AFFINITY = 0.8
"""Cosine below which patches are not averaged by `average_similar`."""


@struct.dataclass
class Grounding:
    """Results for a batch of images and a set of texts.

    Attributes:
        features: of the frozen tower that the grounder builds on, every block's.
        pixel_embeddings: [b, h, w, d] float32, not normalised; of the masks' pixels, of which there
            are four times as many rows and columns as of patches.
        mask_logits: [b, n, h, w] float32, `w * similarity + b` of every image with every text;
            their sigmoid is the soft mask.
    """

    features: Features
    pixel_embeddings: jax.Array
    mask_logits: jax.Array


@dataclasses.dataclass(frozen=True)
class TCL(CLIPMethod):
    """Text-grounded Contrastive Learning (Cha et al., CVPR 2023).

    Parameters: `clip` (frozen), `grounder`, `sim2mask` (w and b), and the logarithms of the two
    learned inverse temperatures of the losses, `tclf_logit_scale` and `tcli_logit_scale`. Norms,
    softmax and similarities are float32 whatever the compute dtype.

    Attributes:
        config: sizes of the CLIP it builds on.
        feature_layer: block of the tower, counted from 1, whose output feeds the grounder
            (`ie_freeze` in the original): 11 of 12 for ViT-B/16. 0: the one before the last.
        remat: a key of `layers.REMAT`, what the blocks keep for the gradient.

    Raises:
        ValueError: if the feature layer leaves no block to copy.
    """

    feature_layer: int = 0
    dtype: Any = jnp.float32
    remat: str = "none"

    name = "tcl"
    title = "TCL"
    parameters: ClassVar[tuple[str, ...]] = ("clip", "grounder", "sim2mask")
    mixes_clip = True
    refinements = REFINEMENTS
    described: ClassVar[tuple[str, ...]] = ("config", "feature_layer")
    grounder: ClassVar[str] = "grounder"
    """The entry of the grounder's parameters."""

    def __post_init__(self) -> None:
        blocks = self.tower.vision_layers
        layer = self.feature_layer or blocks - 1
        if not 0 < layer < blocks:
            raise ValueError(
                f"feature_layer={layer} leaves the grounder no block to copy; choose 1 to "
                f"{blocks - 1} for this tower of {blocks} blocks, or 0 for the one before the last"
            )
        object.__setattr__(self, "feature_layer", layer)

    @property
    def clip_model(self) -> CLIP:
        return CLIP(self.config, self.dtype, self.remat)

    @property
    def tower(self) -> flops.Tower:
        """Sizes of the vision tower that the grounder builds on."""
        return self.config.tower

    @property
    def vision(self) -> ViT:
        """Settings of that tower."""
        return self.clip_model.vision

    def tower_params(self, params: Any) -> Any:
        """Parameters of that tower, of the whole tree."""
        return params["clip"]["visual"]

    @property
    def copied_blocks(self) -> int:
        """Number of the tower's blocks that the grounder has a copy of."""
        return self.tower.vision_layers - self.feature_layer

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        clip, learned = jax.random.split(key)
        params = {"clip": self.clip_model.init(clip)}
        return {**self.init_learned(learned, self.tower_params(params)), **params}

    def init_learned(self, key: Key[Array, ""], tower: Any) -> dict[str, Any]:
        """What is learned, at the start: copies of the tower's blocks, and a fresh decoder."""
        first = self.feature_layer
        copies = {f"blocks_{i}": tower[f"blocks_{first + i}"] for i in range(self.copied_blocks)}
        scale = jnp.asarray(INITIAL_LOGIT_SCALE, jnp.float32)
        return {
            self.grounder: {
                **copies,
                "decoder": init_decoder(key, self.tower.vision_width),
                "ln_post": tower["ln_post"],
                "proj": tower["proj"],
            },
            "sim2mask": {"w": jnp.float32(10.0), "b": jnp.float32(-2.5)},
            "tclf_logit_scale": scale,
            "tcli_logit_scale": scale,
        }

    def dense_features(self, params: Any, image: Image) -> Dense:
        """Pixel embeddings, as in `Grounding`, on four times the patch grid."""
        with matmul_precision(self.dtype):
            _, patches = _run(self, params, image)
            return embed_patches(self.vision, params[self.grounder], patches)

    def masks(
        self, params: Any, image: Image, text_embeddings: Texts, options: MaskOptions
    ) -> Masks:
        """Soft masks on four times the patch grid, MaskCLIP's mixed in by `kp_weight`.

        With `options.refine` "affinity" they are of cosines that are averaged, see
        `average_similar`.
        """
        affinity = options.refine == "affinity"
        grounding = ground(self, params, image, text_embeddings, affinity=affinity)
        masks = jnp.moveaxis(jax.nn.sigmoid(grounding.mask_logits), 1, -1)
        if options.refine == "pamr":
            masks = refine_masks(image, masks, masks.shape[1:3])
        if options.kp_weight and self.mixes_clip:
            maskclip = MaskCLIP(self.config, self.dtype)
            patches = maskclip.embed_patches(params["clip"], grounding.features)
            dense = clip_masks(pixel_text_cosines(patches, text_embeddings))
            dense = resize(dense, masks.shape[1:3])
            masks = options.kp_weight * dense + (1 - options.kp_weight) * masks
        return masks

    def flops(self, side: int, texts: int, options: MaskOptions) -> flops.Parts:
        mixes_clip = self.mixes_clip and options.kp_weight > 0
        affinity = options.refine == "affinity"
        return flops.tcl_masks(
            self.tower, self.copied_blocks, side, texts, mixes_clip=mixes_clip, affinity=affinity
        )

    @property
    def summary(self) -> str:
        return f"TCL, feature layer {self.feature_layer} of {self.config.title}"


def ground(
    model: TCL,
    params: Any,
    image: Float[Array, "b H W 3"],
    text_embeddings: Float[Array, "n d"],
    *,
    affinity: bool = False,
) -> Grounding:
    """Grounds texts in images, both as in `Method.masks`.

    Args:
        model, params: TCL and all its parameters, `clip` included.
        affinity: whether cosines are averaged over similar patches, see `average_similar`.
    """
    with matmul_precision(model.dtype):
        features, patches = _run(model, params, image)
        pixels = embed_patches(model.vision, params[model.grounder], patches)
        similarity = pixel_text_similarity(pixels, text_embeddings)
        if affinity:
            similarity = average_similar(features, similarity)
        sim2mask = params["sim2mask"]
        logits = mask_logits(similarity, sim2mask["w"], sim2mask["b"])
        return Grounding(features, pixels, logits)


def average_similar(
    features: Features, cosines: Float[Array, "b n h w"]
) -> Float[Array, "b n h w"]:
    """Cosines of texts averaged over patches that an early block of the frozen tower finds similar.

    SC-CLIP's aggregation (Bai et al., 2024): `a_i = sum_j T_ij c_j / (sum_j T_ij + 1e-6)`, where
    c_j is the mean cosine of the pixels in patch j, S_ij the cosine of patches i and j after block
    `round(L / 3)` of the tower's L (4 of 12), and T_ij is S_ij, or 0 where that is below
    `LEAST_AFFINITY`; then bilinear to the pixels' grid. Each image by itself. The cosines are
    float32, on `UPSAMPLING` times the grid of the features.

    This was best among those measured with 240 steps of configs/shapes.py (README has the figures).
    Later blocks, the authors' least cosine of 0.4, ProxyCLIP's weights, and averages of tokens
    before the decoder gain less; with PAMR after them averages gain nothing over PAMR alone. No
    larger model is measured yet.
    """
    batch, texts, height, width = cosines.shape
    rows, columns = features.grid
    cells = cosines.reshape(batch, texts, rows, height // rows, columns, width // columns)
    pooled = jnp.moveaxis(cells.mean(axis=(3, 5)), 1, -1).reshape(batch, rows * columns, texts)
    early = features.patches(features.after((4 * len(features.blocks) + 6) // 12))
    similarity = similarities(early.reshape(batch, rows * columns, -1))
    averaged = aggregate(similarity, pooled, LEAST_AFFINITY)
    averaged = averaged.reshape(batch, rows, columns, texts)
    return jnp.moveaxis(resize(averaged, (height, width)), -1, 1)


def mean_patches(model: TCL, params: Any, image: Float[Array, "b H W 3"]) -> Float[Array, "b c"]:
    """Mean of an image's patches as the projection takes them at the start, float32.

    The decoder, whose gates are closed then, only repeats patches, and is left out.
    """
    with matmul_precision(model.dtype):
        _, patches = _run(model, params, image)
        norm = {"ln_post": params[model.grounder]["ln_post"]}
        return project(model.vision, norm, patches).astype(jnp.float32).mean(axis=(1, 2))


def _run(
    model: TCL, params: Any, image: Float[Array, "b H W 3"]
) -> tuple[Features, Float[Array, "b h w c"]]:
    """Features of the frozen tower, and the patches after the grounder's blocks."""
    tower, copies = model.tower_params(params), params[model.grounder]
    features = encode(model.vision, tower, image)
    return features, run_copies(model.vision, copies, tower, features, model.feature_layer)
