"""TCL on a dense backbone, such as a DINOv2: this project's own variant, published nowhere.

Blocks, feature layer and final norm of the grounder are the backbone's in place of CLIP's, with a
new projection into CLIP's space. CLIP embeds the texts, and in training the masked images.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
from jax.nn.initializers import normal
from jaxtyping import Array, Key

from tcl_jax.models import flops
from tcl_jax.models.families import FAMILIES
from tcl_jax.models.shapes import Shapes, count_prefix, expand, init_params
from tcl_jax.models.tcl import TCL
from tcl_jax.models.vit import ViT
from tcl_jax.ops.images import PixelStatistics


@dataclasses.dataclass(frozen=True, kw_only=True)
class TCLDINO(TCL):
    """TCL whose grounder builds on a backbone; parameters are `TCL`'s and the frozen `backbone`.

    CLIP's own dense prediction, which sees another grid, is not mixed in.

    Attributes:
        family: of the backbone, a key of `families.FAMILIES`.
        shapes: of its parameters.
        image_size: side of the images of training in pixels.

    Raises:
        ValueError: if the patches of both towers do not divide that side, or there is no block to
            copy.
    """

    family: str
    shapes: Shapes
    image_size: int

    name = "tcl_dino"
    title = "TCL on DINO"
    # Not "grounder", which another method could be given that would use it with CLIP's tower.
    parameters = ("clip", "backbone", "backbone_grounder", "sim2mask")
    mixes_clip = False
    own_pixels = ""
    described = ("config", "feature_layer", "family", "image_size", "shapes")
    grounder: ClassVar[str] = "backbone_grounder"

    def __post_init__(self) -> None:
        super().__post_init__()
        own, clip = self.patch_size, self.config.patch_size
        if self.image_size < 1 or self.image_size % own or self.image_size % clip:
            raise ValueError(
                f"image_size={self.image_size} must be a multiple of both patches, the backbone's "
                f"{own} and CLIP's {clip} pixels"
            )

    @property
    def tower(self) -> flops.Tower:
        shapes = dict(expand(self.shapes))
        patch, _, _, width = shapes["backbone/patch_kernel"]
        return flops.Tower(
            embed_dim=self.config.embed_dim,
            resolution=self.image_size,
            patch_size=patch,
            vision_width=width,
            vision_layers=sum(x.endswith("/ln_1/norm/scale") for x in shapes),
            prefix_tokens=count_prefix(self.shapes, "backbone"),
        )

    @property
    def vision(self) -> ViT:
        vit = FAMILIES[self.family].vit
        return dataclasses.replace(vit, dtype=self.dtype, remat=self.remat)

    def tower_params(self, params: Any) -> Any:
        return params["backbone"]

    @property
    def patch_size(self) -> int:
        return self.tower.patch_size

    @property
    def resolution(self) -> int:
        return self.image_size

    @property
    def pixel_statistics(self) -> PixelStatistics:
        return FAMILIES[self.family].pixel_statistics

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        clip, backbone, learned = jax.random.split(key, 3)
        params = {"clip": self.clip_model.init(clip), **init_params(backbone, self.shapes)}
        return {**self.init_learned(learned, self.tower_params(params)), **params}

    def init_learned(self, key: Key[Array, ""], tower: Any) -> dict[str, Any]:
        """As `TCL`'s, with a random projection unless the tower has one, `proj`."""
        fresh, drawn = jax.random.split(key)
        width, embed_dim = self.tower.vision_width, self.config.embed_dim
        proj = normal(width**-0.5)(drawn, (width, embed_dim))
        return super().init_learned(fresh, {"proj": proj, **tower})

    @property
    def summary(self) -> str:
        family, sizes = FAMILIES[self.family], self.tower
        return (
            f"TCL on {family.title} of width {sizes.vision_width}, feature layer "
            f"{self.feature_layer} of {sizes.vision_layers}, with {self.config.title}"
        )
