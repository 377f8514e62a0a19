"""How a model is meant to be used: sizes of windows, thresholds, post-processing, prompts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tcl_jax.errors import InputError, as_input_error
from tcl_jax.inference.presets import load_preset
from tcl_jax.inference.templates import sentences_of
from tcl_jax.models.method import (
    BY_PAMR,
    REFINEMENTS,
    SCORES,
    MaskOptions,
    Method,
    choose_refinement,
)
from tcl_jax.ops.images import PIXELS

WINDOW = 448
"""Side of the paper's evaluation windows in pixels, twice the resolution of CLIP's training."""
MAX_LONG_SIDE = 2048
"""Longest side that the protocol lets an image have after resizing, in pixels."""
THRESHOLDS = {"pamr": 0.4, "none": 0.5, "affinity": 0.5}
"""The protocol's score of the background class, by how masks are refined."""

RESIZES = ("opencv", "pillow")
"""How images are resized: OpenCV's bilinear, sizes rounded as mmcv does; or Pillow's bicubic, sizes
rounded down."""


@dataclasses.dataclass(frozen=True)
class InferenceSettings:
    """Defaults of a model; the defaults here are the paper's protocol.

    Attributes:
        window: side of sliding windows, in pixels; 0: one window of the whole image.
        stride: distance of sliding windows, in pixels.
        threshold: score of the background class, in [0, 1]; None: 0.4 with PAMR, else 0.5. Of
            masks it is for those by `refine`, see `background_score`; of other scores it is the
            probability below which a pixel is of the background.
        refine: how masks are refined, one of `models.method.REFINEMENTS`; by PAMR, other scores
            are refined at the image's own size.
        kp_weight: share of CLIP's own dense prediction that is mixed in, in [0, 1].
        templates: name of a set in `inference.templates.TEMPLATES`, or sentences with {} for the
            name.
        short_side: to which images are resized, in pixels; None: the window.
        resize: one of `RESIZES`.
        pixels: name in `ops.images.PIXELS` of the statistics that images are normalised with, for
            methods on a CLIP; None: the method's own.
        normalize_sentences: whether those of a name are normalised before their mean is taken, by
            methods on a CLIP.
        scores: what windows are merged of, one of `models.method.SCORES`, see `label_rule`.
        logit_scale: what cosines are multiplied by before the softmax over the texts.
        area_threshold: share of the area that is not background which a class must exceed, in
            [0, 1]; None: any. Not of masks.
        pamr_dilations, pamr_iterations: of PAMR at the image's own size, see `ops.pamr.pamr`.

    Raises:
        InputError: if a value is out of its range.
    """

    window: int = WINDOW
    stride: int = WINDOW // 2
    threshold: float | None = None
    refine: str = "pamr"
    kp_weight: float = 0.3
    templates: str | Sequence[str] = "custom"
    short_side: int | None = None
    resize: str = "opencv"
    pixels: str | None = None
    normalize_sentences: bool = False
    scores: str = "masks"
    logit_scale: float = 1.0
    area_threshold: float | None = None
    pamr_dilations: tuple[int, ...] = (8, 16)
    pamr_iterations: int = 10

    def __post_init__(self) -> None:
        """Checks the ranges."""
        short_side = self.short_side is None or self.short_side >= 1
        inside = self.threshold is None or 0 <= self.threshold <= 1
        dilations = self.pamr_dilations
        area = self.area_threshold is None or 0 <= self.area_threshold <= 1
        for name, good, want in (
            ("window", self.window >= 0, "a positive number of pixels, or 0 for whole images"),
            ("stride", 1 <= self.stride <= (self.window or self.stride), "from 1 to the window"),
            ("kp_weight", 0 <= self.kp_weight <= 1, "between 0 and 1"),
            ("threshold", inside, "between 0 and 1"),
            ("short_side", short_side, "a positive number of pixels"),
            ("resize", self.resize in RESIZES, f"one of {', '.join(RESIZES)}"),
            ("pixels", self.pixels in (None, *PIXELS), f"one of {', '.join(PIXELS)}"),
            ("refine", self.refine in REFINEMENTS, f"one of {', '.join(REFINEMENTS)}"),
            ("scores", self.scores in SCORES, f"one of {', '.join(SCORES)}"),
            ("logit_scale", 0 < self.logit_scale < math.inf, "positive and finite"),
            ("pamr_dilations", bool(dilations) and min(dilations) >= 1, "one or more, from 1"),
            ("pamr_iterations", self.pamr_iterations >= 1, "at least 1"),
            ("area_threshold", area, "between 0 and 1"),
        ):
            if not good:
                value = getattr(self, name)
                raise InputError(f"impossible settings: {name}={value!r} must be {want}")
        with as_input_error("impossible settings"):
            sentences = sentences_of(self.templates)
        if not isinstance(self.templates, str):
            object.__setattr__(self, "templates", sentences)

    def background_score(self, model: Method, refine: str) -> float:
        """Score of the background; TCL's where the settings leave it open.

        A threshold of masks is for those refined as the settings say: others have the method's own.

        Args:
            model: the method.
            refine: how the scores are refined.
        """
        threshold = self.threshold
        if threshold is not None and self.scores == "masks" and refine != self.refine:
            own = default_settings(model)
            threshold = own.threshold if own.scores == "masks" else None
        return THRESHOLDS[refine] if threshold is None else threshold

    def options_for(
        self,
        model: Method | type[Method],
        refine: str | None = None,
        pamr: bool | None = None,
        kp_weight: float | None = None,
        *,
        cleaning: bool = False,
    ) -> MaskOptions:
        """What a method makes of an image by these settings.

        Args:
            model: the method.
            refine, pamr, kp_weight: what is chosen in place of the settings'.
            cleaning: whether masks are held back where they are of the background, if it can.

        Raises:
            InputError: if the weight is out of range, or as `choose_refinement`.
        """
        weight = self.kp_weight if kp_weight is None else float(kp_weight)
        if not 0 <= weight <= 1:
            raise InputError(f"kp_weight={kp_weight} must be between 0 and 1")
        return MaskOptions(
            refine=choose_refinement(model, self.refine, refine, pamr, self.scores),
            kp_weight=weight if model.mixes_clip and self.scores == "masks" else 0.0,
            cleaning=cleaning and model.cleans,
            scores=self.scores,
            logit_scale=self.logit_scale,
        )

    def with_window(self, window: int) -> InferenceSettings:
        """The same with all sizes in pixels scaled, so that windows are as large."""
        return dataclasses.replace(self, **scale_sizes(vars(self), window, self.window))

    def to_json(self) -> dict[str, Any]:
        """Fields by name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> InferenceSettings:
        """Inverse of `to_json`; a field that is not there has its default.

        Settings that were saved before `refine` existed have `pamr` in its place, true or false.

        Raises:
            InputError: if a field is unknown or has an impossible value.
        """
        try:
            lists = {key: tuple(x) for key, x in fields.items() if isinstance(x, list)}
            before = {"refine": BY_PAMR[fields["pamr"]]} if "pamr" in fields else {}
            given = {key: x for key, x in {**fields, **lists, **before}.items() if key != "pamr"}
            return cls(**given)
        except TypeError as error:
            raise InputError(f"impossible settings {dict(fields)}: {error}") from error


def scale_sizes(fields: Mapping[str, Any], new: int, old: int) -> dict[str, Any]:
    """Those of some fields that are sizes in pixels, scaled as a window is; 0 and None stay."""
    sizes = {name: fields.get(name) for name in ("window", "stride", "short_side")}
    return {name: max(round(x * new / old), 1) for name, x in sizes.items() if x and new and old}


def default_settings(model: Method) -> InferenceSettings:
    """The protocol of the method's authors."""
    return settings_of(model.protocol, model)


def settings_of(
    protocol: str, model: Method, base: InferenceSettings | None = None
) -> InferenceSettings:
    """The general settings of a named protocol for a method, see `fit_windows`.

    What the protocol does not say is as `base` has it, and the score of the background in its
    authors' own as the method says.
    """
    known = {field.name for field in dataclasses.fields(InferenceSettings)}
    said = {key: value for key, value in load_preset(protocol).fields.items() if key in known}
    if protocol == model.protocol and model.threshold is not None:
        said["threshold"] = model.threshold
    return fit_windows(dataclasses.replace(base or InferenceSettings(), **said), model)


def fit_windows(settings: InferenceSettings, model: Method) -> InferenceSettings:
    """The same with windows of a small model's own resolution; of others as they are."""
    small = model.resolution < WINDOW // 2
    return settings.with_window(model.resolution) if small else settings
