"""Image-text pairs: tokens, transforms, sources, and batches of them."""
