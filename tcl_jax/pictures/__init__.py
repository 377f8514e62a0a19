"""Drawing: overlays, legends, pages of pictures, their colours and lettering."""
