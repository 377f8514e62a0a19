"""Text-grounded Contrastive Learning (TCL, CVPR 2023) in JAX."""

__version__ = "0.1.0"
