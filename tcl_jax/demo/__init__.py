"""A web page for segmenting photos by typed words."""
