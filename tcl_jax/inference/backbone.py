"""Dense features of images, for their own sake."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcl_jax.errors import InputError
from tcl_jax.inference.masks import check_finite
from tcl_jax.models.backbone import Features, backbone_features
from tcl_jax.models.families import PRETRAINED
from tcl_jax.models.layers import compute_dtype, matmul_precision
from tcl_jax.models.shapes import shape_of
from tcl_jax.models.vit import ViT, image_grid
from tcl_jax.models.zero_shot import Aligned, ZeroShot, resize_to_patches
from tcl_jax.ops.images import PixelStatistics
from tcl_jax.parallel.mesh import find_devices
from tcl_jax.weights.backbones import LoadedBackbone, load_backbone
from tcl_jax.weights.hub import locate_texts
from tcl_jax.weights.load import Source, check_prefix

__all__ = ["Aligned", "Backbone", "Features"]


class Backbone:
    """A vision tower of DINO, DINOv2, DINOv3 or TIPSv2 on a device, and the text tower of it.

        backbone = Backbone.from_pretrained("dinov2-reg:B/14")
        mean, std = backbone.pixel_statistics
        x = (rgb / 255 - mean) / std                      # [b, h, w, 3], of bytes
        backbone.features(x).patches                      # [b, h / 14, w / 14, 768]

        backbone = Backbone.from_file("vision.npz", text="text.npz")      # TIPS, dino.txt
        texts = backbone.encode_text(ids)                 # [n, 768]
        backbone.align(x).patches @ texts.T               # of each patch with each text

    A program is compiled once per shape of the images. For training, and under a mesh, take
    `models.backbone.backbone_features` with `vit` and `params`.

    Args:
        loaded: parameters and settings; see `from_pretrained` and `from_file` for the usual ways.
        dtype: "float32", or "bfloat16" for speed on accelerators.

    Attributes:
        family: a key of `models.families.FAMILIES`, such as "dinov2-reg".
        pixel_statistics: mean and standard deviation of RGB in [0, 1], with which images are to
            be normalised; (0, 0, 0) and (1, 1, 1) for TIPS.
        patch_size: side of a patch in pixels.
        vit, params: settings and parameters (float32) for functions of `models`.
        origin: where the parameters are from, for people.
        loaded: all of it, on the device.

    Raises:
        InputError: if the dtype is unknown.
        RunError: if JAX has no device.
    """

    def __init__(self, loaded: LoadedBackbone, *, dtype: str = "float32") -> None:
        find_devices()
        self.family = loaded.family.name
        self.pixel_statistics: PixelStatistics = loaded.family.pixel_statistics
        self.vit: ViT = dataclasses.replace(loaded.vit, dtype=compute_dtype(dtype))
        self.params = jax.device_put(
            jax.tree.map(lambda x: np.asarray(x, np.float32), loaded.params)
        )
        self.origin = loaded.origin
        self.loaded = dataclasses.replace(
            loaded,
            params=self.params,
            texts=jax.device_put(jax.tree.map(lambda x: np.asarray(x, np.float32), loaded.texts)),
        )

    @classmethod
    def from_pretrained(cls, name: str, *, text: bool = True, dtype: str = "float32") -> Backbone:
        """A published tower, from the folder weights/, a cache, or downloaded once.

        Args:
            name: "dinov2-reg:B/14", "dinov2:L/14", "dinov3:B/16", "tips:B/14", "dinotxt:L/16" (on
                DINOv3), "dinotxt-v2:L/14" (on DINOv2) and others of `models.families.PRETRAINED`.
                DINOv3's licence has to be accepted first.
            text: whether to load the text tower, too, where there is one.
            dtype: see `Backbone`.

        Raises:
            InputError: if the name is unknown or the download fails; says which file to put where.
        """
        if name not in PRETRAINED:
            raise InputError(
                f"backbone {name!r} is unknown; choose one of {', '.join(PRETRAINED)}, or give a "
                "file to Backbone.from_file"
            )
        texts = locate_texts(name) if text else ()
        return cls(load_backbone(name, text=texts), dtype=dtype)

    @classmethod
    def from_file(
        cls,
        path: Source,
        family: str | None = None,
        heads: int | None = None,
        *,
        text: Source | Sequence[Source] = (),
        text_heads: int | None = None,
        prefix: str = "",
        dtype: str = "float32",
    ) -> Backbone:
        """A tower of any size from a file; PyTorch is not needed.

        Args:
            path: a .pth, .safetensors or .npz file with the names of the authors' code (of TIPS in
                Flax or PyTorch) or of Hugging Face's, or a folder with one.
            family: a key of `models.families.FAMILIES`, where two could be meant; else told by the
                names. Those of DINO are of any plain ViT: one with a classifier or a decoder is
                refused unless "dino" is asked for, others are taken for one.
            heads: number of attention heads, which few files tell; None: that of the published
                tower of this width, or of 64 channels each. A model of another size may have
                others: `repr` of the backbone shows what was assumed.
            text: files with the text tower of TIPS, or that of dino.txt and its vision head, where
                they are not in the same file.
            text_heads: number of attention heads of the text tower, likewise; None: of TIPS as the
                vision tower has, and of dino.txt of 64 channels each.
            prefix: of the names of the tower that is meant, where a file holds several.
            dtype: see `Backbone`.

        Raises:
            InputError: if a file is missing, damaged, or holds no such tower.
        """
        loaded = load_backbone(
            path, family, heads, text=text, text_heads=text_heads, prefix=prefix, sure=True
        )
        check_prefix(prefix, [loaded.origin["prefix"]])
        return cls(loaded, dtype=dtype)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return int(self.params["patch_kernel"].shape[0])

    @property
    def width(self) -> int:
        """Channels of a token."""
        return int(self.params["patch_kernel"].shape[-1])

    def __repr__(self) -> str:
        """What it is."""
        towers = {"heads": self.params, "text_heads": self.loaded.texts.get("text")}
        heads = ", ".join(
            f"{name}={params['blocks_0']['attn']['in_proj']['kernel'].shape[-2]}"
            for name, params in towers.items()
            if params
        )
        return (
            f"Backbone({self.family}, width {self.width}, {heads}, patch {self.patch_size}, "
            f"{self.origin.get('file', '')})"
        )

    def features(self, x: Any, blocks: bool = False, *, mask: Any = None) -> Features:
        """Features of normalised images of any size that the family takes.

        Args:
            x: [b, h, w, 3] floats, normalised with `pixel_statistics`. Sides that are no multiples
                of the patch size are refused for DINOv2, cropped at the right and below for
                DINOv3, and padded with zeros, centred, for TIPS, as the authors' code does.
            blocks: whether to return the output of every block, too.
            mask: bool [b, h, w] or [b, h * w] of patches that are hidden: the mask token, which
                some files have, takes their place.

        Returns:
            float32 arrays on the device, see `Features`.

        Raises:
            InputError: if an array has another shape, is not of floats, or has values, on the host,
                that are not finite.
        """
        x = _check_images(x)
        try:
            grid = image_grid(self.vit, x.shape, self.patch_size)
        except ValueError as error:
            raise InputError(f"x has shape {x.shape}: {error}") from error
        if mask is not None:
            mask = jnp.asarray(mask, bool)
            if "mask_token" not in self.params:
                raise InputError("mask: these weights have no mask token")
            if mask.size != x.shape[0] * grid[0] * grid[1] or mask.shape[0] != x.shape[0]:
                raise InputError(
                    f"mask has shape {mask.shape}; give one value for each patch, "
                    f"{(x.shape[0], *grid)}"
                )
            mask = mask.reshape(x.shape[0], *grid)
        return _features(self.vit, self.params, x, mask, blocks=bool(blocks))

    def encode_text(self, ids: Any) -> jax.Array:
        """Text embeddings, float32 [n, d] and not normalised, of TIPS and dino.txt.

        They belong to `Aligned.embedding` of `align`.

        Args:
            ids: whole numbers [n, l], zeros after a text's end: of TIPS's SentencePiece tokenizer,
                or of CLIP's with its start and end.

        Raises:
            InputError: if there is no text tower, or the ids are not of its vocabulary, or longer
                than its context.
        """
        method, params = self._zero_shot("text")
        ids, vocabulary = np.asarray(ids), shape_of(method.shapes, "text/token_embedding")[0]
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer) or not ids.size:
            raise InputError(f"ids are {ids.dtype} of shape {ids.shape}; give whole numbers [n, l]")
        if ids.min() < 0 or ids.max() >= vocabulary:
            raise InputError(
                f"ids are from {ids.min()} to {ids.max()}, and the text tower knows 0 to "
                f"{vocabulary - 1}; take its own tokenizer"
            )
        try:
            return _encode_text(method, params, jnp.asarray(ids, jnp.int32))
        except ValueError as error:
            raise InputError(f"ids: {error}") from error

    def align(self, x: Any) -> Aligned:
        """Images in the space of `encode_text`, of TIPS and dino.txt.

        `embedding` is [b, d] of the image: of TIPS its first class token; of dino.txt, twice as
        wide as a patch, its class token and the mean of its patches. `patches` are
        [b, h, w, c] to compare with class names: of TIPS by the value path, of dino.txt with the
        second half of a text.

        Args:
            x: as in `features`; sides that are no multiples of the patch size are resized to the
                next, bicubic, as the authors do it for segmentation.

        Raises:
            InputError: if there is no text tower, or no vision head where one is needed, or x is
                of another shape.
        """
        method, params = self._zero_shot()
        return _align(method, params, _check_images(x))

    def _zero_shot(self, *needed: str) -> tuple[ZeroShot, Any]:
        """See `LoadedBackbone.zero_shot`, of the towers needed."""
        return self.loaded.zero_shot(needed, dtype=self.vit.dtype)


def _check_images(x: Any) -> jax.Array:
    given, x = x, jnp.asarray(x)
    if x.ndim != 4 or x.shape[-1] != 3 or not (len(x) and jnp.issubdtype(x.dtype, jnp.floating)):
        raise InputError(
            f"x is {x.dtype} of shape {x.shape}; give [b, h, w, 3] floats, normalised with the "
            "mean and deviation in pixel_statistics"
        )
    check_finite("x", given)
    return x


@partial(jax.jit, static_argnames=("vit", "blocks"))
def _features(vit: ViT, params: Any, x: jax.Array, mask: Any, *, blocks: bool) -> Features:
    return backbone_features(vit, params, x, mask, blocks=blocks)


@partial(jax.jit, static_argnums=0)
def _encode_text(method: ZeroShot, params: Any, ids: jax.Array) -> jax.Array:
    return method.encode_text(params, ids)


@partial(jax.jit, static_argnums=0)
def _align(method: ZeroShot, params: Any, x: jax.Array) -> Aligned:
    with matmul_precision(method.dtype):
        found = method.align(params, resize_to_patches(x, method.patch))
    return jax.tree.map(lambda y: y.astype(jnp.float32), found)
