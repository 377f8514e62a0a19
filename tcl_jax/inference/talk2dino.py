"""Talk2DINO from files, and its parts for their own sake."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from tcl_jax.errors import InputError, as_input_error
from tcl_jax.inference.backbone import Backbone
from tcl_jax.inference.masks import MaskOptions, check_finite, grid_masks
from tcl_jax.inference.model import Model
from tcl_jax.inference.settings import default_settings
from tcl_jax.inference.texts import check_embeddings, embed_class_names
from tcl_jax.models.layers import compute_dtype
from tcl_jax.models.method import BY_PAMR
from tcl_jax.models.shapes import shapes_of
from tcl_jax.models.talk2dino import HeadFeatures, project_text
from tcl_jax.models.talk2dino_method import Talk2DINO as Method
from tcl_jax.models.talk2dino_method import usual_side
from tcl_jax.models.text_encoder import TextEncoder
from tcl_jax.ops.images import normalize
from tcl_jax.parallel.mesh import find_devices
from tcl_jax.weights.backbones import load_backbone
from tcl_jax.weights.load import Source
from tcl_jax.weights.mapping import WeightError
from tcl_jax.weights.talk2dino import load_projection
from tcl_jax.weights.text_towers import load_texts

_NORMALIZED = 20
"""No normalised pixel of any family is as large."""


class Talk2DINO:
    """Talk2DINO on a device: CLIP's texts compared with the patches of a DINO.

        model = Talk2DINO.from_file("vitb_mlp_infonce.pth", "dinov2-reg:B/14", clip="ViT-B/16")
        texts = model.embed_texts(["a cat", "grass"])     # [2, 768]
        model.masks(rgb, texts, pamr=True)                # bytes [b, h, w, 3] -> [b, h, w, 2]

    Programs are compiled once per shape of images and number of texts. To segment whole photos in
    sliding windows, give `model` to `inference.segmenter.Segmenter`; for training, take the
    functions of `models.talk2dino`.

    Args:
        model: parameters and settings; see `from_file` for the usual way.
        dtype: "float32", or "bfloat16" for speed on accelerators; similarities are float32.

    Attributes:
        model: as given.
        method: `models.talk2dino_method.Talk2DINO`, with the sizes.

    Raises:
        InputError: if the dtype is unknown, or the model is of another method.
    """

    def __init__(self, model: Model, *, dtype: str = "float32") -> None:
        method = model.method_in(compute_dtype(dtype))
        if not isinstance(method, Method):
            raise InputError(f"this model is of the method {method.name!r}, and not of Talk2DINO")
        self.model, self.method = model, method
        self._params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), model.params)

    @classmethod
    def from_file(
        cls,
        projection: Source,
        backbone: Backbone | Source,
        clip: Source | None = None,
        *,
        resize_dim: int | None = None,
        antialias: bool = True,
        prefix: str = "",
        dtype: str = "float32",
    ) -> Talk2DINO:
        """A projection with its two towers; see `talk2dino_model` for the arguments.

        Args:
            dtype: see `Talk2DINO`.

        Raises:
            InputError: if a file is missing or damaged, or they do not fit each other.
        """
        model = talk2dino_model(
            projection,
            backbone,
            clip,
            resize_dim=resize_dim,
            antialias=antialias,
            prefix=prefix,
        )
        return cls(model, dtype=dtype)

    def __repr__(self) -> str:
        """What it is made of."""
        return f"Talk2DINO({self.method.summary}, windows of {self.method.resize_dim})"

    def project_text(self, features: Any) -> jax.Array:
        """The learned projection psi of CLIP's text features into the space of patches.

        Args:
            features: [..., 512], not normalised; of another CLIP as wide as its embeddings.

        Returns:
            float32 [..., c], not normalised. To embed a class, the features of its templates are
            averaged before.

        Raises:
            InputError: if they have another width.
        """
        features, width = jnp.asarray(features, jnp.float32), self.method.text_width
        if features.ndim < 1 or features.shape[-1] != width:
            raise InputError(
                f"features have shape {features.shape}; this projection needs [..., {width}]"
            )
        return _project(self._params["projection"], features)

    def embed_texts(
        self, texts: Sequence[str], templates: str | Sequence[str] | None = None
    ) -> Float32[np.ndarray, "n c"]:
        """Embedding of each text: the mean over templates of CLIP's features, projected, then
        normalised.

        Args:
            texts: names of things, such as ["a cat", "grass"].
            templates: name of a set (`inference.templates.TEMPLATES`), or sentences with {} for the
                text; None: the authors' seven.

        Raises:
            InputError: if no CLIP was given, the templates are unknown or texts are not told apart.
        """
        templates = self.model.settings.templates if templates is None else templates
        encoder, params = self.method.text_encoder, self.method.text_params(self._params)
        with as_input_error("texts"):
            return embed_class_names(encoder, params, texts, templates)

    def masks(
        self, images: Any, text_embeddings: Any, cleaning: bool = False, pamr: bool = False
    ) -> jax.Array:
        """Soft masks of images, each taken as one window.

        Each is resized to a square of `resize_dim` pixels, whatever its aspect, and its masks back
        to its own size.

        Args:
            images: RGB [b, H, W, 3] of any size: bytes (uint8, 0 to 255), or floats that are
                normalised as `Backbone.features` takes them.
            text_embeddings: [n, c] in the space of patches, normalised or not.
            cleaning: whether the background is cleaned, as the authors do for PASCAL VOC's 20
                classes with background and for COCO-Object.
            pamr: whether masks are refined by PAMR.

        Returns:
            float32 [b, H, W, n] in [0, 1], in fact near 0.5: sigmoids of cosines. The authors take
            what is below 0.55 (ViT-B) or 0.54 (ViT-L) as background.

        Raises:
            InputError: if an array has another shape or type.
        """
        texts = check_embeddings(text_embeddings, self.method.embed_dim)
        options = MaskOptions(BY_PAMR[bool(pamr)], 0.0, bool(cleaning))
        images = _check_images(images, "images")
        return _masks(self.method, self._params["backbone"], images, texts, options)

    def head_features(self, x: Any) -> HeadFeatures:
        """What training takes of images: what each attention head of the last block looks at.

        Args:
            x: as `images` of `masks`, but with sides that suit the backbone (multiples of the patch
                size for DINOv2); they are not resized.

        Returns:
            Its `patches` [b, h, w, c] and `logits` [b, m, h, w] and, of these, `disentangled`
            [b, m, c] and `average` [b, c].

        Raises:
            InputError: if an array has another shape or type.
        """
        x = _check_images(x, "x")
        with as_input_error("x"):
            return _head_features(self.method, self._params["backbone"], x)


def talk2dino_model(
    projection: Source,
    backbone: Backbone | Source,
    clip: Source | None = None,
    *,
    resize_dim: int | None = None,
    antialias: bool = True,
    prefix: str = "",
    name: str = "",
) -> Model:
    """A projection with its two towers, and its authors' protocol.

    Args:
        projection: file with the official names, such as vitb_mlp_infonce.pth.
        backbone: what the projection was trained for: a `Backbone`, its name
            ("dinov2-reg:B/14"), or a file.
        clip: the CLIP whose text tower embeds texts ("ViT-B/16" for all released projections), or
            another's tower, see `weights.text_towers.load_texts`; None: only embeddings that are
            given are segmented by.
        resize_dim: side of the square that windows are resized to, in pixels; None: 448, or the
            side that a small backbone's positions were learned for.
        antialias: see `models.talk2dino_method.Talk2DINO`.
        prefix: of the projection's names, where a file holds several.
        name: see `weights.backbones.load_backbone`.

    Raises:
        InputError: if a file is missing or damaged, or they do not fit each other.
    """
    learned, origin = load_projection(projection, prefix)
    if isinstance(backbone, Backbone):
        loaded = backbone.loaded
    else:
        find_devices()
        loaded = load_backbone(backbone, name=name)
    text_width, width = learned["hidden"]["kernel"].shape
    if width != (own := loaded.params["patch_kernel"].shape[-1]):
        raise WeightError(
            f"projection {str(projection)!r} is for a backbone of width {width}, and that of "
            f"{loaded.origin['file']} is {own}; give the one that it was trained for"
        )
    tower: TextEncoder | None = None
    params = {"backbone": loaded.params, "projection": learned}
    origins: dict[str, Any] = {"projection": origin, "backbone": loaded.origin}
    if clip is not None:
        texts = load_texts(clip, dtype=None)
        tower = texts.encoder
        if tower.embed_dim != text_width:
            raise WeightError(
                f"projection {str(projection)!r} takes text features of {text_width} channels, and "
                f"those of {str(clip)!r} have {tower.embed_dim}; give the CLIP (or other text "
                "tower) that it was trained with"
            )
        params["text"] = texts.params
        origins["clip"] = texts.origin
    resize_dim = usual_side(loaded.params) if resize_dim is None else resize_dim
    with as_input_error(f"resize_dim={resize_dim}"):
        method = Method(loaded.family.name, shapes_of(params), tower, resize_dim, antialias)
    return Model(method, params, default_settings(method), origins)


def _check_images(images: Any, name: str) -> jax.Array:
    array = np.asarray(images)
    floats = np.issubdtype(array.dtype, np.floating)
    if array.ndim != 4 or array.shape[-1] != 3 or not array.size:
        raise InputError(f"{name} has shape {array.shape}; give [b, h, w, 3]")
    if not (floats or array.dtype == np.uint8):
        raise InputError(f"{name} is {array.dtype}; give bytes (uint8) or normalised floats")
    check_finite(name, array)
    if floats and np.abs(array).max() > _NORMALIZED:
        raise InputError(
            f"{name} is of floats, which are taken as normalised, and these reach "
            f"{np.abs(array).max():g}; give bytes (uint8) for values from 0 to 255"
        )
    return jnp.asarray(array)


_project = jax.jit(project_text)


@partial(jax.jit, static_argnames=("method", "options"))
def _masks(
    method: Method, backbone: Any, images: jax.Array, texts: jax.Array, options: MaskOptions
) -> jax.Array:
    pixels = normalize(images, method.pixel_statistics)
    return grid_masks(method, {"backbone": backbone}, pixels, texts, options)


@partial(jax.jit, static_argnames="method")
def _head_features(method: Method, backbone: Any, x: jax.Array) -> HeadFeatures:
    return method.head_features({"backbone": backbone}, normalize(x, method.pixel_statistics))
