"""What every method of open-vocabulary segmentation offers, whatever it is made of."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from tcl_jax.models.clip import CLIP, CLIPConfig
from tcl_jax.models.flops import Parts
from tcl_jax.ops.images import IMAGENET, PixelStatistics
from tcl_jax.ops.pamr import pamr
from tcl_jax.ops.resize import resize


@dataclasses.dataclass(frozen=True)
class MaskOptions:
    """How masks are post-processed; the defaults are the paper's evaluation without PAMR.

    Attributes:
        pamr: whether masks are refined by pixel-adaptive mask refinement.
        kp_weight: share of CLIP's own dense prediction that is mixed in, in [0, 1], where the
            method has one (`Method.mixes_clip`).
    """

    pamr: bool = False
    kp_weight: float = 0.3


class Method(abc.ABC):
    """Images and texts to masks. Subclasses are frozen dataclasses: a row each of `METHODS`.

    Attributes:
        name: in flags, configs and files.
        title: as papers call it.
        parameters: entries of the parameter tree that masks need.
        mixes_clip: whether `MaskOptions.kp_weight` is read.
        pixel_statistics: mean and deviation that images are normalised with.
        config: sizes of the CLIP that embeds the texts.
        dtype: compute dtype; parameters are float32.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    parameters: ClassVar[tuple[str, ...]] = ("clip",)
    mixes_clip: ClassVar[bool] = False
    pixel_statistics: ClassVar[PixelStatistics] = IMAGENET
    config: CLIPConfig
    dtype: Any

    @property
    def patch_size(self) -> int:
        """The sides of images have to be multiples of it, in pixels."""
        return self.config.patch_size

    @property
    def clip_model(self) -> CLIP:
        """The CLIP that embeds the texts, for the parameters under `clip`."""
        return CLIP(self.config, self.dtype)

    @abc.abstractmethod
    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Random parameters, all of them."""

    @abc.abstractmethod
    def join(self, learned: Any, frozen: Any) -> dict[str, Any]:
        """The parameter tree, of what a run learns and of what it leaves as it is."""

    def embed_texts(self, params: Any, tokens: Int[Array, "n l"]) -> Float[Array, "n d"]:
        """Text embeddings, float32 and not normalised."""
        return self.clip_model.embed_texts(params["clip"], tokens)

    @abc.abstractmethod
    def masks(
        self,
        params: Any,
        image: Float[Array, "b H W 3"],
        text_embeddings: Float[Array, "n d"],
        options: MaskOptions,
    ) -> Float[Array, "b h w n"]:
        """Soft masks on the method's own grid, float32 in [0, 1].

        Products have the precision of `jax.default_matmul_precision`, which
        `inference.masks.grid_masks` sets.

        Args:
            params: the whole tree.
            image: normalised with `pixel_statistics`; H and W are multiples of `patch_size`.
            text_embeddings: [n, d], normalised or not.
            options: post-processing.
        """

    @abc.abstractmethod
    def flops(self, side: int, texts: int, options: MaskOptions) -> Parts:
        """FLOPs of the masks of one window by part, PAMR and resizing left out.

        Args:
            side: of the window in pixels, a multiple of the patch size.
            texts: number of masks.
            options: post-processing.
        """

    @property
    @abc.abstractmethod
    def summary(self) -> str:
        """For people."""

    def describe(self) -> dict[str, Any]:
        """Settings that `from_description` reads, for JSON."""
        return {"clip": dataclasses.asdict(self.config)}

    @classmethod
    @abc.abstractmethod
    def from_description(cls, fields: Mapping[str, Any]) -> Method:
        """Inverse of `describe`, of this method or of another on the same CLIP.

        Raises:
            KeyError, TypeError: if a field is lacking or misnamed.
        """


def refine_masks(
    image: Float[Array, "b H W 3"], masks: Float[Array, "b h w n"], grid: Sequence[int]
) -> Float[Array, "b g f n"]:
    """PAMR of masks on a grid, to which the image is resized (TCL section 4.1)."""
    return jnp.asarray(pamr(resize(image, grid, align_corners=True), masks))
