"""End-to-end measurements, and the baseline that they are compared with.

The baseline is the published order of operations in eager torch: ``baseline.py`` the transformer, ``baseline_vae.py``
the VAE's decoder. Both are the tests' oracle too.
"""
