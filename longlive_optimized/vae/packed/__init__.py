"""Wan's VAE on fused implicit-GEMM convolutions, with each call a single CUDA graph.

A convolution of ``kernels/causal_conv.py`` is an implicit GEMM: a matrix product of its weights with pixels that are
read where they lie, without an im2col copy. Its epilogue does what follows in the network: bias, residual sum, norm and
SiLU. Nearest-neighbour upsampling is folded into the weights of the convolution after it. Activations are
[frames, C / 8, H, W, 8]; a frame stays where it was written, and layers are told by index which frames to read.

In reading order: ``weights`` (what the kernels read), ``frame_pool`` (where activations lie), ``plan`` (the steps of a
call), ``state`` (a stream's causal state, and the graph), ``decode`` and ``encode``, ``codec`` (the whole as a
backend). This package imports ``wan``, never the other way.
"""
