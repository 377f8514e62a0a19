"""What a run needs of a machine that need not be there: memory, work, and the least time."""
