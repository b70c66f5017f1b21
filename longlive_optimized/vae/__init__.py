"""Video autoencoders (VAEs) as streams: Wan 2.1's own, and small ones that trade quality for speed.

``stream`` is what a video is decoded and encoded with. It runs on a ``codec``, the face of a backend: ``modules`` runs
any of the networks as published (``wan/``, ``tae``), ``packed/`` runs Wan's on fused convolutions. ``backends`` picks.
A ``band`` of a picture's rows can be decoded alone, so that several GPUs share a video.
"""
