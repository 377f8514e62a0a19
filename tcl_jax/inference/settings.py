"""How a model is meant to be used: sizes of windows, thresholds, post-processing, prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tcl_jax.errors import InputError
from tcl_jax.inference.templates import TEMPLATES
from tcl_jax.models.method import Method
from tcl_jax.ops.images import PIXELS

WINDOW = 448
"""Side of the paper's evaluation windows in pixels, twice the resolution of CLIP's training."""
MAX_LONG_SIDE = 2048
"""Longest side that the protocol lets an image have after resizing, in pixels."""
THRESHOLDS = {True: 0.4, False: 0.5}
"""The protocol's score of the background class, by whether PAMR is used."""

RESIZES = ("opencv", "pillow")
"""How images are resized: OpenCV's bilinear, sizes rounded as mmcv does; or Pillow's bicubic, sizes
rounded down."""


@dataclasses.dataclass(frozen=True)
class InferenceSettings:
    """Defaults of a model; the defaults here are the paper's protocol.

    Attributes:
        window: side of sliding windows, in pixels.
        stride: distance of sliding windows, in pixels.
        threshold: score of the background class, in [0, 1]; None: 0.4 with PAMR, 0.5 without.
        pamr: whether masks are refined by pixel-adaptive mask refinement.
        kp_weight: share of CLIP's own dense prediction that is mixed in, in [0, 1].
        templates: name of a set in `inference.templates.TEMPLATES`.
        short_side: to which images are resized, in pixels; None: the window.
        resize: one of `RESIZES`.
        pixels: name in `ops.images.PIXELS` of the statistics that images are normalised with, for
            methods on a CLIP; None: the method's own.

    Raises:
        InputError: if a value is out of its range.
    """

    window: int = WINDOW
    stride: int = WINDOW // 2
    threshold: float | None = None
    pamr: bool = True
    kp_weight: float = 0.3
    templates: str = "custom"
    short_side: int | None = None
    resize: str = "opencv"
    pixels: str | None = None

    def __post_init__(self) -> None:
        """Checks the ranges."""
        short_side = self.short_side is None or self.short_side >= 1
        inside = self.threshold is None or 0 <= self.threshold <= 1
        for name, good, want in (
            ("window", self.window >= 1, "a positive number of pixels"),
            ("stride", 1 <= self.stride <= self.window, "from 1 to the window"),
            ("kp_weight", 0 <= self.kp_weight <= 1, "between 0 and 1"),
            ("threshold", inside, "between 0 and 1"),
            ("short_side", short_side, "a positive number of pixels"),
            ("resize", self.resize in RESIZES, f"one of {', '.join(RESIZES)}"),
            ("pixels", self.pixels in (None, *PIXELS), f"one of {', '.join(PIXELS)}"),
            ("templates", self.templates in TEMPLATES, f"one of {', '.join(TEMPLATES)}"),
        ):
            if not good:
                value = getattr(self, name)
                raise InputError(f"impossible settings: {name}={value!r} must be {want}")

    def with_window(self, window: int) -> InferenceSettings:
        """The same with all sizes in pixels scaled, so that windows are as large."""
        short_side = self.short_side and max(round(self.short_side * window / self.window), 1)
        stride = max(round(self.stride * window / self.window), 1)
        return dataclasses.replace(self, window=window, stride=stride, short_side=short_side)

    def to_json(self) -> dict[str, Any]:
        """Fields by name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> InferenceSettings:
        """Inverse of `to_json`; a field that is not there has its default.

        Raises:
            InputError: if a field is unknown or has an impossible value.
        """
        try:
            return cls(**fields)
        except TypeError as error:
            raise InputError(f"impossible settings {dict(fields)}: {error}") from error


def default_settings(model: Method) -> InferenceSettings:
    """The protocol of the method's authors, see `fit_windows`."""
    own = InferenceSettings(threshold=model.threshold, templates=model.templates, **model.protocol)
    return fit_windows(own, model)


def fit_windows(settings: InferenceSettings, model: Method) -> InferenceSettings:
    """The same with windows of a small model's own resolution; of others as they are."""
    small = model.resolution < WINDOW // 2
    return settings.with_window(model.resolution) if small else settings
