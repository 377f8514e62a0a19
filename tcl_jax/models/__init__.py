"""CLIP, the grounder and TCL as Flax linen modules."""
