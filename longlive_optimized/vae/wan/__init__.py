"""Wan 2.1's VAE, and LightVAE, as published: modules under the checkpoint's names."""
