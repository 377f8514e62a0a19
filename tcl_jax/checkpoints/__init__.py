"""Orbax checkpoints: those of a run, and those of a finished model."""
