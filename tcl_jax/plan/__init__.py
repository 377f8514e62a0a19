"""Memory, work and least time of a run on a machine that need not be there."""
