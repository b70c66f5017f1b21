"""The Wan 2.1 VAE as a stream."""
