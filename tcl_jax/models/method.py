"""What every method of open-vocabulary segmentation offers, whatever it is made of."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from tcl_jax.errors import InputError
from tcl_jax.models.clip import CLIPConfig
from tcl_jax.models.families import FAMILIES
from tcl_jax.models.flops import Parts
from tcl_jax.models.shapes import from_json, to_json
from tcl_jax.models.text_encoder import TextEncoder
from tcl_jax.ops.images import IMAGENET, PixelStatistics
from tcl_jax.ops.masking import pixel_text_cosines
from tcl_jax.ops.pamr import pamr
from tcl_jax.ops.resize import resize

Image: TypeAlias = Float[Array, "b H W 3"]
Texts: TypeAlias = Float[Array, "n d"]
Dense: TypeAlias = Float[Array, "b h w d"]
Masks: TypeAlias = Float[Array, "b h w n"]

SCORES = ("masks", "cosines", "probabilities")
"""What windows are merged of: `Method.masks`, `Method.cosines` or `Method.probabilities`."""
REFINEMENTS = ("none", "pamr", "affinity")
"""How masks are refined: not at all, by pixel-adaptive mask refinement, or by similar patches."""
BY_PAMR = {True: "pamr", False: "none"}
"""What the short form of it, whether PAMR is used, stands for."""


OneMethod = TypeVar("OneMethod", bound="Method")


def _as_it_is(x: Any) -> Any:
    return x


WRITTEN: dict[str, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "config": ("clip", dataclasses.asdict, lambda sizes: CLIPConfig(**sizes)),
    "shapes": ("shapes", to_json, from_json),
    **{x: (x, str, lambda name: FAMILIES[name].name) for x in ("family", "backbone", "second")},
}
"""Fields that files have under another key or in another form: that key, to JSON, and back."""


@dataclasses.dataclass(frozen=True)
class MaskOptions:
    """How masks are post-processed; the defaults are TCL's evaluation without PAMR.

    Attributes:
        refine: how masks are refined, one of `Method.refinements`.
        kp_weight: share of CLIP's own dense prediction that is mixed in (the original's `kp_w`), in
            [0, 1], where the method has one (`Method.mixes_clip`).
        cleaning: whether masks are held back where they are of the background, where the method
            can do so (`Method.cleans`).
        scores: one of `SCORES`. `refine` and `kp_weight` are of masks alone.
        logit_scale: what cosines are multiplied by for probabilities.
    """

    refine: str = "none"
    kp_weight: float = 0.3
    cleaning: bool = False
    scores: str = "masks"
    logit_scale: float = 1.0

    @property
    def of_windows(self) -> MaskOptions:
        """The same without what is done with other scores than masks once windows are merged."""
        if self.scores == "masks":
            return self
        scale = self.logit_scale if self.scores == "probabilities" else 1.0
        return dataclasses.replace(self, refine="none", logit_scale=scale)


class Method(abc.ABC):
    """Images and texts to masks. Subclasses are frozen dataclasses: a row each of `METHODS`.

    Attributes:
        name: in flags, configs and files.
        title: as papers call it.
        parameters: entries of the parameter tree that masks need.
        mixes_clip: whether `MaskOptions.kp_weight` is read.
        cleans: whether `MaskOptions.cleaning` is read.
        own_pixels: name in `ops.images.PIXELS` of the statistics that its authors normalise images
            with, where a protocol may have others; "": they are the weights' own.
        refinements: those of `REFINEMENTS` that it has.
        finds_background: whether cleaning is meant for any image that may show none of the texts.
        protocol: how its authors evaluate, one of `inference.presets.PROTOCOLS`.
        described: fields that files say of it, of JSON or of `WRITTEN`.
        dtype: compute dtype; parameters are float32.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    parameters: ClassVar[tuple[str, ...]]
    mixes_clip: ClassVar[bool] = False
    cleans: ClassVar[bool] = False
    own_pixels: ClassVar[str] = ""
    refinements: ClassVar[tuple[str, ...]] = ("none", "pamr")
    finds_background: ClassVar[bool] = False
    protocol: ClassVar[str] = "tcl"
    described: ClassVar[tuple[str, ...]] = ()
    dtype: Any

    @property
    def pixel_statistics(self) -> PixelStatistics:
        """Mean and deviation that images are normalised with."""
        return IMAGENET

    @property
    @abc.abstractmethod
    def patch_size(self) -> int:
        """The sides of images have to be multiples of it, in pixels; 1 if `masks` takes any."""

    def seen_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns, from the first, of an image of that size that `masks` depends on.

        More than there are where the method itself adds black ones, which others may do before.
        """
        return size

    @property
    @abc.abstractmethod
    def resolution(self) -> int:
        """Side of the images that it was trained with, in pixels."""

    @property
    def threshold(self) -> float | None:
        """Score of the background that its authors use; None: the protocol's."""
        return None

    @property
    @abc.abstractmethod
    def text_encoder(self) -> TextEncoder:
        """What embeds the texts, for `text_params`."""

    @abc.abstractmethod
    def text_params(self, params: Any) -> Any:
        """The parameters of `text_encoder`, of all of them."""

    @property
    def embed_dim(self) -> int:
        """Size of a text's embedding."""
        return self.text_encoder.embed_dim

    def embed_texts(self, params: Any, tokens: Int[Array, "n l"]) -> Float[Array, "n d"]:
        """Text embeddings, see `TextEncoder.embed_texts`, of the whole tree of parameters."""
        return self.text_encoder.embed_texts(self.text_params(params), tokens)

    @abc.abstractmethod
    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Random parameters, all of them."""

    @abc.abstractmethod
    def dense_features(self, params: Any, image: Image) -> Dense:
        """Features in the space of the texts on the method's own grid, float32, not normalised.

        Args:
            params: the whole tree.
            image: normalised with `pixel_statistics`; of any size where the method crops, pads or
                resizes it itself, else of one that the patch divides.

        Raises:
            ValueError: if the image's size is of another kind.
        """

    def cosines(self, params: Any, image: Image, text_embeddings: Texts) -> Masks:
        """Cosine of `dense_features` with every text, float32 in [-1, 1]; 0 with one of zeros."""
        features = self.dense_features(params, image)
        return pixel_text_cosines(features, text_embeddings)

    def probabilities(
        self, params: Any, image: Image, text_embeddings: Texts, options: MaskOptions
    ) -> Masks:
        """Softmax over the texts of `options.logit_scale` times `cosines`, float32 in [0, 1]."""
        logits = options.logit_scale * self.cosines(params, image, text_embeddings)
        return jax.nn.softmax(logits, axis=-1, where=jnp.any(text_embeddings != 0, axis=-1))

    @abc.abstractmethod
    def masks(
        self, params: Any, image: Image, text_embeddings: Texts, options: MaskOptions
    ) -> Masks:
        """Soft masks on the method's own grid, float32 in [0, 1].

        Products have the precision of `jax.default_matmul_precision`, which
        `inference.masks.grid_masks` sets.

        Args:
            params: the whole tree.
            image: normalised with `pixel_statistics`; H and W are multiples of `patch_size`.
            text_embeddings: [n, d], normalised or not; rows of zeros fill up a number that a
                program is compiled for, and leave the other masks as they are.
            options: post-processing.
        """

    @abc.abstractmethod
    def flops(self, side: int, texts: int, options: MaskOptions) -> Parts:
        """FLOPs of the masks of one window by part, PAMR and resizing left out.

        Of so many texts; the side is the window's in pixels, a multiple of the patch size.
        """

    @property
    def summary(self) -> str:
        """For people."""
        return self.title

    def describe(self) -> dict[str, Any]:
        """Settings that `from_description` reads, for JSON: the fields in `described`."""
        described = {}
        for field in self.described:
            key, write, _ = WRITTEN.get(field, (field, _as_it_is, _as_it_is))
            described[key] = write(getattr(self, field))
        return described

    @classmethod
    def from_description(cls: type[OneMethod], fields: Mapping[str, Any]) -> OneMethod:
        """Inverse of `describe`, of this method or of another on the same weights.

        Raises:
            KeyError, TypeError: if a field is lacking or misnamed.
        """
        described = {}
        for field in cls.described:
            key, _, read = WRITTEN.get(field, (field, _as_it_is, _as_it_is))
            described[field] = read(fields[key])
        return cls(**described)


def choose_refinement(
    method: Method | type[Method],
    own: str,
    refine: str | None = None,
    pamr: bool | None = None,
    scores: str = "masks",
) -> str:
    """How a method's masks are refined: as is asked for by either argument, else as `own` says.

    Args:
        method: what makes the masks.
        own: what the settings say, one of `REFINEMENTS`.
        refine: one of them.
        pamr: short for "pamr" and "none".
        scores: what is refined, one of `SCORES`.

    Raises:
        InputError: if both are given, or the method has no such refinement of these scores.
    """
    if refine is not None and pamr is not None:
        raise InputError(f"pamr={pamr} is short for refine={BY_PAMR[bool(pamr)]!r}; give only one")
    chosen = BY_PAMR[bool(pamr)] if pamr is not None else own if refine is None else refine
    if chosen not in method.refinements:
        raise InputError(
            f"refine={chosen!r} is nothing that {method.title} has; choose one of "
            f"{', '.join(method.refinements)}"
        )
    if chosen == "affinity" and scores != "masks":
        raise InputError(
            f"refine='affinity' is of masks, and the settings decide by {scores}; choose pamr or "
            "none"
        )
    return chosen


def refine_masks(
    image: Float[Array, "b H W 3"], masks: Float[Array, "b h w n"], grid: Sequence[int]
) -> Float[Array, "b g f n"]:
    """PAMR of masks on a grid, to which the image is resized (TCL section 4.1)."""
    return jnp.asarray(pamr(resize(image, grid, align_corners=True), masks))
