"""Drawn scenes: pictures of coloured, patterned shapes with captions and true label maps."""
