"""What methods on a CLIP share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from tcl_jax.models.clip import CLIP, CLIPConfig
from tcl_jax.models.method import Method
from tcl_jax.ops.images import PIXELS, PixelStatistics


@dataclasses.dataclass(frozen=True)
class CLIPMethod(Method):
    """A method on a CLIP, which embeds the texts and has its parameters under `clip`.

    Attributes:
        config: sizes of the CLIP.
        pixels: name in `ops.images.PIXELS` of the statistics that images are normalised with, a
            matter of the protocol; None: the authors'.
        clip_fields: how its authors' CLIP differs from TCL's, by field of `CLIP`.
    """

    config: CLIPConfig
    pixels: str | None = dataclasses.field(default=None, kw_only=True)

    parameters: ClassVar[tuple[str, ...]] = ("clip",)
    own_pixels = "imagenet"
    described: ClassVar[tuple[str, ...]] = ("config",)
    clip_fields: ClassVar[Mapping[str, Any]] = {}

    @property
    def pixel_statistics(self) -> PixelStatistics:
        return PIXELS[self.pixels or self.own_pixels]

    @property
    def clip_model(self) -> CLIP:
        """The CLIP, for the parameters under `clip`."""
        return CLIP(self.config, self.dtype, **self.clip_fields)

    @property
    def patch_size(self) -> int:
        return self.config.patch_size

    @property
    def resolution(self) -> int:
        return self.config.resolution

    @property
    def text_encoder(self) -> CLIP:
        # Without `clip_fields`, which are of images: methods on one CLIP have its texts in common.
        return CLIP(self.config, self.dtype)

    def text_params(self, params: Any) -> Any:
        return {"text": params["clip"]["text"]}
