"""Pure functions on arrays: resizing, masks, losses, mask refinement."""
