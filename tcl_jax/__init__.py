"""Text-grounded Contrastive Learning (TCL, CVPR 2023) in JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tcl_jax.inference.backbone import Backbone
    from tcl_jax.inference.segmenter import Segmenter

__all__ = ["Backbone", "Segmenter"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # On first use, so that commands which need no model start without JAX.
    if name == "Segmenter":
        from tcl_jax.inference.segmenter import Segmenter

        return Segmenter
    if name == "Backbone":
        from tcl_jax.inference.backbone import Backbone

        return Backbone
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
