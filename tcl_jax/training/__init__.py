"""Objectives, optimiser, steps, checkpoints, and the loop."""
