"""Frames a second of LongLive-1.3B at 480x832, estimated from the rates of a few kernels, measured in seconds.

A steady block is four kinds of work. Each is a count, known from the network's sizes, divided by a rate:

    seconds = passes * layers * (products / product + ring / attention + cross / attention + moved / copy)
              + decoder's convolutions / convolution

- passes: one for each denoising step, and the context pass. A pass has ``TOKENS`` tokens of 3 latent frames.
- products: 2 * TOKENS * weights of a layer (q, k, v and three of dim x dim; two of dim x ffn_dim).
- ring, cross: 4 * TOKENS * keys * dim: the keys of the window, and the prompt's, which are never in int8.
- moved: bytes of the pointwise operators: 20 times a tensor [TOKENS, dim] in bfloat16 is read or written in a layer.
  ``qk_norm_rope_store`` 6, ``residual_norm`` 3 * 4, ``rms_norm`` 2.
- the decoder's convolutions are counted in ``kernels/bench/causal_conv.py``; those of 96 channels have a rate of their
  own, and those that are not in ``kernels/bench/causal_conv_int8.py`` stay in bfloat16.

Gaps between kernels (3 ms of 300 on an H200), the last convolution and the host are left out.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..config import PRESETS
from ..kernels.bench import causal_conv, causal_conv_int8
from ..kernels.bench.case import Case
from ..kernels.bench.runner import bench_of, sets_of, time_on_gpu
from ..kernels.registry import OPS
from ..model.config import ModelConfig
from ..model.precision import values_in_8_bits
from ..vae.backends import path_of
from ..video_time import BLOCK_FRAMES, BLOCK_PIXEL_FRAMES

PRESETS_ESTIMATED = ("balanced", "speed")
FRAME = 30 * 52  # tokens of a latent frame
TOKENS = BLOCK_FRAMES * FRAME
LATENT = 60, 104
_POINTWISE_TENSORS = 20  # read or written, in a layer
_SECONDS = 0.5  # of timing, for each kernel: a GPU's clocks fall within the first tenths


class Rates(NamedTuple):
    """What a device sustains: FLOP a second, and of ``copy`` bytes a second read and written.

    The ``_int8`` ones count the same operations; those of convolutions do not matter where the VAE is not in int8.
    """

    product: float
    product_int8: float
    attention: float
    attention_int8: float
    convolution: float
    convolution_int8: float
    convolution_96: float
    convolution_96_int8: float
    copy: float


def frames_per_second(rates: Rates, preset: str, vae_int8: bool) -> float:
    """Pixel frames a second of ``preset`` at these rates. vae_int8: whether its VAE runs in int8 if its layers do."""
    row = PRESETS[preset]
    int8 = row["precision"] != "bf16"
    passes = len(row["denoising_steps"]) + 1
    seconds = passes * _pass_seconds(rates, row["local_attn_size"], int8) + _decode_seconds(rates, int8 and vae_int8)
    return BLOCK_PIXEL_FRAMES / seconds


def _pass_seconds(rates: Rates, window: int, int8: bool) -> float:
    model = ModelConfig()
    products = 2 * TOKENS * model.dim * (6 * model.dim + 2 * model.ffn_dim)
    ring, cross = (4 * TOKENS * keys * model.dim for keys in (window * FRAME, model.text_len))
    moved = _POINTWISE_TENSORS * TOKENS * model.dim * torch.bfloat16.itemsize
    return model.num_layers * (
        products / (rates.product_int8 if int8 else rates.product)
        + ring / (rates.attention_int8 if int8 else rates.attention)
        + cross / rates.attention
        + moved / rates.copy
    )


def _decode_seconds(rates: Rates, int8: bool) -> float:
    narrow, wide = _convolutions(causal_conv.decoder(*LATENT))
    if not int8:
        return narrow / rates.convolution_96 + wide / rates.convolution
    narrow_int8, wide_int8 = _convolutions(causal_conv_int8.decoder(*LATENT))
    return (
        narrow_int8 / rates.convolution_96_int8
        + wide_int8 / rates.convolution_int8
        + (narrow - narrow_int8) / rates.convolution_96
        + (wide - wide_int8) / rates.convolution
    )


def _convolutions(layers: list[causal_conv.Layer]) -> tuple[int, int]:
    """FLOP of those from 96 channels, and of the others."""
    flops = [sum(x.times * x.flops for x in layers if (x.channels[0] == 96) == narrow) for narrow in (True, False)]
    return flops[0], flops[1]


@torch.no_grad()
def measure_rates(device: torch.device) -> tuple[Rates, bool]:
    """The rates of a CUDA device, each by the backend that an engine would take there, in at most ten seconds; and
    whether the VAE runs in int8 there. A bfloat16 rate stands for a convolution in int8 where it does not."""
    with torch.cuda.device(device):
        codec, precision, _ = path_of(device, torch.bfloat16, in_8_bits=True)
        model = ModelConfig()
        values8 = values_in_8_bits(torch.bfloat16, device, model.head_dim, model.num_layers)
        packed, vae_int8 = codec == "PackedCodec", precision == "int8"
        plain = [_layer(causal_conv, channels) for channels in (192, 96)]
        function = OPS["causal_conv"] if packed else causal_conv.published
        wide, narrow = (_rate(function, case) for case in plain)
        wide_int8, narrow_int8 = wide, narrow
        if vae_int8:
            convolve = OPS["causal_conv_int8"]
            wide_int8, narrow_int8 = (_rate(convolve, _layer(causal_conv_int8, channels)) for channels in (192, 96))
        return Rates(
            product=_product(),
            product_int8=_operator("int8_linear"),
            attention=_operator("ring_attention"),
            attention_int8=_attention_in_8_bits(sum(values8), len(values8)),
            convolution=wide,
            convolution_int8=wide_int8,
            convolution_96=narrow,
            convolution_96_int8=narrow_int8,
            copy=_copy(),
        ), vae_int8


def _attention_in_8_bits(with_values: int, layers: int) -> float:
    """The mean rate of layers, of which so many have values in 8 bits, too."""
    parts = {"ring_attention_fp8": with_values, "ring_attention_int8": layers - with_values}
    return layers / sum(count / _operator(name) for name, count in parts.items() if count)


def _layer(bench, channels: int) -> Case:
    """The decoder's first convolution of a residual block of so many channels, the most frequent one there."""
    layers = bench.decoder(*LATENT)
    found = next(x for x in layers if x.channels == (channels, channels) and x.act and not x.raw and not x.residual)
    return bench.case(found, torch.bfloat16)


def _operator(name: str) -> float:
    """The rate of an operator's first case, by the backend that takes it."""
    case = bench_of(name).real[0]
    return _rate(OPS[name], case)


def _rate(function: Callable, case: Case) -> float:
    return case.flops / _seconds(function, sets_of(case))


def _product() -> float:
    """q, k and v in bfloat16: a product of [4680, 1536] and [1536, 4608], as int8_linear's first case."""
    dim = ModelConfig().dim
    normal = functools.partial(torch.randn, dtype=torch.bfloat16, device="cuda")
    sets = [(normal(TOKENS, dim), normal(3 * dim, dim), normal(3 * dim)) for _ in range(4)]
    return 2 * TOKENS * dim * 3 * dim / _seconds(F.linear, sets)


def _copy() -> float:
    source = torch.randn(2**27, device="cuda")
    return 2 * source.nbytes / _seconds(lambda a, b: torch.neg(a, out=b), [(source, torch.empty_like(source))])


def _seconds(function: Callable, sets: list[tuple]) -> float:
    return statistics.median(time_on_gpu(function, sets, at_most=_SECONDS))
