"""Talk2DINO (Barsellotti et al., ICCV 2025, arXiv 2411.19331): CLIP's texts among DINO's patches.

Both towers are frozen, and a small projection of a text's embedding is all that is learned. An
image is `n` patches on a grid of rows and columns, `h` `w`, and `m` is the heads of the vision
tower's last attention, each of which the class token looks through at another part of the image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.nn.initializers import lecun_normal
from jaxtyping import Array, Float, Int, Key

from tcl_jax.data.tokenizer import ClipTokenizer
from tcl_jax.errors import InputError
from tcl_jax.models.clip import CLIP, CLIPConfig
from tcl_jax.models.flops import Parts
from tcl_jax.models.layers import dense, matmul_precision
from tcl_jax.models.method import MaskOptions, Method
from tcl_jax.models.text_encoder import TextEncoder
from tcl_jax.models.tower import Tower
from tcl_jax.models.vit import Features, ViT, encode, project
from tcl_jax.ops.images import PixelStatistics
from tcl_jax.ops.masking import l2_normalize, pixel_text_similarity
from tcl_jax.ops.pamr import pamr
from tcl_jax.ops.resize import resize

QUERY_SCALE = 64**-0.5
"""What the class token's query is multiplied by, whatever the size of a head (the original's)."""
CLEANING = 0.2
"""Weight of background cleaning (the original's lambda)."""
RESIZE_DIM = 448
"""Side of the square that every window is resized to (the original's `resize_dim`), in pixels."""
THRESHOLDS = {1024: 0.54}
THRESHOLD = 0.55
"""The authors' score of the background: by width of the patches (ViT-L), and of all others."""


# -------------------------------------------------------------------------------- the text's side


def init_projection(key: Key[Array, ""], text_width: int, width: int) -> dict[str, Any]:
    """A projection to learn, from texts of a width to patches of another; kernels by LeCun's rule.

    Returns:
        {hidden: {kernel [text_width, width], bias [width]}, out: {kernel [width, width], bias}}.
    """
    first, second = jax.random.split(key)
    return {
        "hidden": {
            "kernel": lecun_normal()(first, (text_width, width)), "bias": jnp.zeros(width),
        },
        "out": {"kernel": lecun_normal()(second, (width, width)), "bias": jnp.zeros(width)},
    }  # fmt: skip


def project_text(projection: Any, features: Float[Array, "... t"]) -> Float[Array, "... c"]:
    """`W2 tanh(W1 t + b1) + b2` of CLIP's text features, float32.

    Args:
        projection: as of `init_projection`.
        features: not normalised.

    Returns:
        Not normalised.
    """
    with matmul_precision(jnp.float32):
        hidden = jnp.tanh(dense(features, projection["hidden"], jnp.float32))
        return dense(hidden, projection["out"], jnp.float32)


def embed_templates(
    projection: Any, features: Float[Array, "classes templates t"]
) -> Float[Array, "classes c"]:
    """Embedding of a class: the mean of its templates' features, projected, then normalised."""
    return l2_normalize(project_text(projection, features.mean(axis=1)))


# ------------------------------------------------------------------------------- the image's side


@struct.dataclass
class HeadFeatures:
    """What Talk2DINO takes of images; float32. `jit` drops what the caller leaves unread.

    Attributes:
        patches: [b, h, w, c] after the tower's final norm (DINOv2's `x_norm_patchtokens`).
        logits: [b, m, h, w] how much the class token's query is like each patch's key in the last
            block, before RoPE and softmax.
    """

    patches: jax.Array
    logits: jax.Array

    @property
    def disentangled(self) -> Float[Array, "b m c"]:
        """The part of the image that each head looks at: its mean patch, over their number."""
        return attended_mean(self.patches, self.logits)

    @property
    def average(self) -> Float[Array, "b c"]:
        """The same for the mean over the heads' logits (the original's `avg_self_attn_out`)."""
        return attended_mean(self.patches, self.logits.mean(axis=1, keepdims=True))[:, 0]


def head_features(vit: ViT, params: Any, image: Float[Array, "b H W 3"]) -> HeadFeatures:
    """Features of normalised images whose sides suit the tower.

    Args:
        vit, params: of a tower with a class token.
        image: see `vit.encode`.
    """
    with matmul_precision(vit.dtype):
        features = encode(vit, params, image)
        patches = features.patches(project(vit, params, features.blocks[-1].output))
        return HeadFeatures(patches.astype(jnp.float32), class_logits(features))


def class_logits(features: Features) -> Float[Array, "b m h w"]:
    """`HeadFeatures.logits` of a tower's features."""
    (rows, columns), last = features.grid, features.blocks[-1]
    query, keys = QUERY_SCALE * last.query[:, 0], last.key[:, -rows * columns :]
    logits = jnp.einsum("bmd,bpmd->bmp", query, keys, preferred_element_type=jnp.float32)
    return logits.reshape(*logits.shape[:2], rows, columns)


def attended_mean(
    patches: Float[Array, "b h w c"], logits: Float[Array, "b m h w"]
) -> Float[Array, "b m c"]:
    """`1/n sum_p softmax_p(logits)[p] patches[p]`: a mean, to which n of the original adds 1/n."""
    attention = jax.nn.softmax(logits, axis=(-2, -1))
    found = jnp.einsum("bmhw,bhwc->bmc", attention, patches, precision="highest")
    return found / (logits.shape[-2] * logits.shape[-1])


def choose_heads(
    texts: Float[Array, "b c"], heads: Float[Array, "b m c"]
) -> tuple[Float[Array, "b c"], Int[Array, " b"]]:
    """Of each image the head that is most like its own text, and its number; cosines are compared.

    Args:
        texts: projected.
        heads: `HeadFeatures.disentangled`.
    """
    cosines = jnp.einsum(
        "bc,bmc->bm", l2_normalize(texts), l2_normalize(heads), precision="highest"
    )
    best = jnp.argmax(cosines, axis=1)
    return jnp.take_along_axis(heads, best[:, None, None], axis=1)[:, 0], best


# --------------------------------------------------------------------------------------- the masks


def patch_masks(
    features: HeadFeatures, texts: Float[Array, "n c"], *, cleaning: bool = False
) -> Float[Array, "b h w n"]:
    """Masks on the grid of patches: the sigmoid of the cosine, without scale or offset.

    Args:
        features: of images.
        texts: projected, normalised or not.
        cleaning: whether what the class token passes over is held back, see `clean_background`.
    """
    similarity = pixel_text_similarity(features.patches, texts)
    masks = jax.nn.sigmoid(jnp.moveaxis(similarity, 1, -1))
    return clean_background(masks, features, texts) if cleaning else masks


def clean_background(
    masks: Float[Array, "b h w n"], features: HeadFeatures, texts: Float[Array, "n c"]
) -> Float[Array, "b h w n"]:
    """Mixes into masks where the heads that fit each text look: background cleaning.

    Heads weigh as the softmax over them of the cosine of the text with what they look at. The
    softmax over patches of their logits' mean becomes `(c - low) / high`, by its extremes over all
    texts and patches of the image, and is spread over the masks' range. Divided is by `high`, not
    by `high - low`: the authors' weights are used and judged so.

    Args:
        masks: of `patch_masks`.
        features: of the images.
        texts: as there; a row of zeros is no text, and moves no mask of the others.
    """
    patches, logits = features.patches, features.logits
    # Not softmaxed; and the original divides by the norm itself.
    heads = jnp.einsum("bmhw,bhwc->bmc", logits, patches, precision="highest")
    heads = heads / jnp.linalg.norm(heads, axis=-1, keepdims=True)
    shares = jnp.einsum("nc,bmc->bnm", l2_normalize(texts), heads, precision="highest")
    shares = jax.nn.softmax(shares, axis=-1)
    looked = jnp.einsum("bnm,bmhw->bhwn", shares, logits, precision="highest")
    looked = jax.nn.softmax(looked, axis=(1, 2))

    there, axes = jnp.any(texts != 0, axis=-1), (1, 2, 3)

    def extremes(x: Float[Array, "b h w n"]) -> tuple[jax.Array, jax.Array]:
        low = jnp.min(x, axes, keepdims=True, where=there, initial=jnp.inf)
        return low, jnp.max(x, axes, keepdims=True, where=there, initial=-jnp.inf)

    (low, high), (lowest, highest) = extremes(looked), extremes(masks)
    looked = (looked - low) / high * (highest - lowest) + lowest
    return (masks + CLEANING * looked) / (1 + CLEANING)


# -------------------------------------------------------------------------------------- the method


@dataclasses.dataclass(frozen=True)
class ProjectedText(TextEncoder):
    """A CLIP's text tower and the projection, of the parameters `text` and `projection`.

    Attributes:
        config: sizes of the CLIP; None: texts are not embedded here.
        width: of the patches.
        dtype: compute dtype of the CLIP.
    """

    config: CLIPConfig | None
    width: int
    dtype: Any = jnp.float32

    @property
    def embed_dim(self) -> int:
        return self.width

    @property
    def clip(self) -> CLIP:
        """The CLIP, for the parameters under `text`.

        Raises:
            InputError: if there is none.
        """
        if self.config is None:
            raise InputError(
                "this Talk2DINO has no CLIP to embed texts with; load it with clip=, which is "
                "ViT-B/16 for the released projections"
            )
        return CLIP(self.config, self.dtype)

    def tokenizer(self, file: str | None = None) -> ClipTokenizer:
        return self.clip.tokenizer(file)

    def embed_texts(self, params: Any, tokens: Int[Array, "n l"]) -> Float[Array, "n c"]:
        return project_text(params["projection"], self.clip.embed_texts(params, tokens))

    def embed_classes(
        self, params: Any, tokens: Int[Array, "classes templates l"]
    ) -> Float[Array, "classes c"]:
        """`embed_templates` of CLIP's features: their mean is projected."""
        classes, templates, length = tokens.shape
        flat = tokens.reshape(classes * templates, length)
        features = self.clip.embed_texts(params, flat).reshape(classes, templates, -1)
        return embed_templates(params["projection"], features)


@dataclasses.dataclass(frozen=True)
class Talk2DINO(Method):
    """Talk2DINO, of the parameters `backbone`, `projection` and CLIP's `text`.

    A window is resized to a square, and its masks are brought back to the window's own size; PAMR
    works on that size, too. So the masks' grid is the image's pixels.

    Attributes:
        tower: the backbone.
        text_width: of the texts' features that are projected.
        config: sizes of the CLIP that these are of; None: embeddings are given.
        resize_dim: side of the square in pixels, a multiple of the backbone's patch.
        antialias: whether resizing to it is antialiased, as it is by the original with a recent
            torchvision; with 0.16, which it pins, it is not. Windows of that size stay as they
            are, which are all of the protocol's but those of very long images.
        dtype: compute dtype of the towers; parameters are float32, as is all else.

    Raises:
        ValueError: if the patch does not divide the square.
    """

    tower: Tower
    text_width: int
    config: CLIPConfig | None = None
    resize_dim: int = RESIZE_DIM
    antialias: bool = True
    dtype: Any = jnp.float32

    name = "talk2dino"
    title = "Talk2DINO"
    parameters = ("backbone", "projection")
    cleans = True
    templates = "subset"
    patch_size = 1

    def __post_init__(self) -> None:
        if self.resize_dim < 1 or self.resize_dim % self.tower.patch_size:
            raise ValueError(
                f"resize_dim={self.resize_dim} must be a multiple of this backbone's patch of "
                f"{self.tower.patch_size} pixels"
            )

    @property
    def pixel_statistics(self) -> PixelStatistics:
        return self.tower.family.pixel_statistics

    @property
    def resolution(self) -> int:
        return self.resize_dim

    @property
    def threshold(self) -> float:
        return THRESHOLDS.get(self.tower.width, THRESHOLD)

    @property
    def text_encoder(self) -> ProjectedText:
        return ProjectedText(self.config, self.tower.width, self.dtype)

    def text_params(self, params: Any) -> Any:
        return {name: params[name] for name in ("text", "projection") if name in params}

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        backbone, clip, projection = jax.random.split(key, 3)
        text = {} if self.config is None else {"text": CLIP(self.config).init(clip)["text"]}
        return {
            "backbone": self.tower.init(backbone),
            "projection": init_projection(projection, self.text_width, self.tower.width),
            **text,
        }

    def head_features(self, params: Any, image: Float[Array, "b H W 3"]) -> HeadFeatures:
        """`head_features` of the backbone."""
        return head_features(self.tower.vit(self.dtype), params["backbone"], image)

    def masks(
        self,
        params: Any,
        image: Float[Array, "b H W 3"],
        text_embeddings: Float[Array, "n c"],
        options: MaskOptions,
    ) -> Float[Array, "b H W n"]:
        """`patch_masks` at the image's own size, of any size, refined where the options say so."""
        size, side = image.shape[1:3], (self.resize_dim, self.resize_dim)
        if self.antialias:
            square = jax.vmap(lambda one: jax.image.resize(one, (*side, 3), "linear"))(image)
        else:
            square = resize(image, side)
        features = self.head_features(params, square)
        masks = patch_masks(features, text_embeddings, cleaning=options.cleaning)
        masks = resize(masks, size, align_corners=True)
        return pamr(image, masks) if options.pamr else masks

    def flops(self, side: int, texts: int, options: MaskOptions) -> Parts:
        del side, options
        patches = (self.resize_dim // self.tower.patch_size) ** 2
        return {
            "image tower": self.tower.flops(self.resize_dim),
            "masks": 2 * patches * texts * self.tower.width,
        }

    def training_flops(self, batch: int, train_backbone: bool) -> Parts:
        """FLOPs of one image with its text in a training step of a global batch, by part.

        Both towers' features are stored, and count as nothing.
        """
        del train_backbone
        text, width = self.text_width, self.tower.width
        return {
            # Forward, weights, and the first layer's output; texts need no gradient.
            "projection": 4 * text * width + 6 * width**2,
            "heads": 2 * self.tower.heads * width,
            "contrast": 2 * 2 * batch * width,
        }

    @property
    def summary(self) -> str:
        return f"Talk2DINO on {self.tower.title}"

    def describe(self) -> dict[str, Any]:
        return {
            "tower": self.tower.describe(),
            "text_width": self.text_width,
            "clip": None if self.config is None else dataclasses.asdict(self.config),
            "resize_dim": self.resize_dim,
            "antialias": self.antialias,
        }

    @classmethod
    def from_description(cls, fields: Mapping[str, Any]) -> Talk2DINO:
        clip = fields["clip"]
        return cls(
            Tower.from_description(fields["tower"]),
            fields["text_width"],
            None if clip is None else CLIPConfig(**clip),
            fields["resize_dim"],
            fields["antialias"],
        )
