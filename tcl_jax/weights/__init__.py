"""Weights in and out: names and layouts of CLIP and TCL checkpoints, without PyTorch."""
