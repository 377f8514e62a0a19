"""What methods on a CLIP share."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from tcl_jax.models.clip import CLIP, CLIPConfig
from tcl_jax.models.method import Method


class CLIPMethod(Method):
    """A method on a CLIP, which embeds the texts and has its parameters under `clip`.

    Attributes:
        config: sizes of the CLIP.
    """

    config: CLIPConfig

    parameters: ClassVar[tuple[str, ...]] = ("clip",)

    @property
    def clip_model(self) -> CLIP:
        """The CLIP, for the parameters under `clip`."""
        return CLIP(self.config, self.dtype)

    @property
    def patch_size(self) -> int:
        return self.config.patch_size

    @property
    def resolution(self) -> int:
        return self.config.resolution

    @property
    def text_encoder(self) -> CLIP:
        return self.clip_model

    def text_params(self, params: Any) -> Any:
        return {"text": params["clip"]["text"]}

    def describe(self) -> dict[str, Any]:
        return {"clip": dataclasses.asdict(self.config)}
