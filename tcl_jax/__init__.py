"""Text-grounded Contrastive Learning (TCL, CVPR 2023) in JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tcl_jax.inference.backbone import Backbone
    from tcl_jax.inference.segmenter import Segmenter
    from tcl_jax.inference.talk2dino import Talk2DINO

__all__ = ["Backbone", "Segmenter", "Talk2DINO"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # On first use, so that commands which need no model start without JAX.
    if name == "Segmenter":
        from tcl_jax.inference.segmenter import Segmenter

        return Segmenter
    if name == "Backbone":
        from tcl_jax.inference.backbone import Backbone

        return Backbone
    if name == "Talk2DINO":
        from tcl_jax.inference.talk2dino import Talk2DINO

        return Talk2DINO
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
