"""How a model is meant to be used: sizes of windows, thresholds, post-processing, prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tcl_jax.data.templates import TEMPLATES
from tcl_jax.errors import InputError
from tcl_jax.models.method import Method

WINDOW = 448
"""Side of the paper's evaluation windows in pixels, twice the resolution of CLIP's training."""
MAX_LONG_SIDE = 2048
"""Longest side that the protocol lets an image have after resizing, in pixels."""
THRESHOLDS = {True: 0.4, False: 0.5}
"""The protocol's score of the background class, by whether PAMR is used."""


@dataclasses.dataclass(frozen=True)
class InferenceSettings:
    """Defaults of a model; the defaults here are the paper's protocol.

    Attributes:
        window: short side to which images are resized, and side of sliding windows, in pixels.
        stride: distance of sliding windows, in pixels.
        threshold: score of the background class, in [0, 1]; None: 0.4 with PAMR, 0.5 without.
        pamr: whether masks are refined by pixel-adaptive mask refinement.
        kp_weight: share of CLIP's own dense prediction that is mixed in, in [0, 1].
        templates: name of a set in `data.templates.TEMPLATES`.

    Raises:
        InputError: if a value is out of its range.
    """

    window: int = WINDOW
    stride: int = WINDOW // 2
    threshold: float | None = None
    pamr: bool = True
    kp_weight: float = 0.3
    templates: str = "custom"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        inside = self.threshold is None or 0 <= self.threshold <= 1
        for name, good, want in (
            ("window", self.window >= 1, "a positive number of pixels"),
            ("stride", 1 <= self.stride <= self.window, "from 1 to the window"),
            ("kp_weight", 0 <= self.kp_weight <= 1, "between 0 and 1"),
            ("threshold", inside, "between 0 and 1"),
            ("templates", self.templates in TEMPLATES, f"one of {', '.join(TEMPLATES)}"),
        ):
            if not good:
                value = getattr(self, name)
                raise InputError(f"impossible settings: {name}={value!r} must be {want}")

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
    """The paper's protocol, with windows of a small model's own resolution.

    Templates and the background's score are those of the method's authors.
    """
    window = WINDOW if model.resolution >= WINDOW // 2 else model.resolution
    return InferenceSettings(
        window=window,
        stride=max(window // 2, 1),
        threshold=model.threshold,
        templates=model.templates,
    )
