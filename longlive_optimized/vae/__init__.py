"""Video autoencoders as streams: Wan 2.1's own, and the small ones, which trade quality for speed."""
