"""Milliseconds of the VAE's stream: a steady block decoded, and as many frames encoded."""

from __future__ import annotations

import copy
import statistics
import time
from collections import defaultdict

import torch

from ..engine.engine import LongLiveEngine
from ..engine.timing import percentile
from ..kernels.bench.causal_conv import arguments, decoder
from ..kernels.bench.runner import time_on_gpu
from ..kernels.causal_conv import causal_conv
from ..vae.autoencoder import to_uint8
from ..vae.backends import codec_for
from ..vae.modules import ModulesCodec
from ..vae.packed.codec import PackedCodec
from ..vae.stream import DecoderStream, EncoderStream
from ..vae.wan.model import WanVae
from ..video_time import BLOCK_FRAMES, BLOCK_PIXEL_FRAMES
from .baseline_vae import BaselineDecoder
from .quality import int8_figures


def _times(engine: LongLiveEngine, call, blocks: int) -> list[float]:
    times = []
    for _ in range(blocks + 3):
        engine.synchronize()
        started = time.perf_counter()
        call()
        engine.synchronize()
        times.append((time.perf_counter() - started) * 1e3)
    return times[3:]


def _allocated(engine: LongLiveEngine, peak: bool = False) -> int:
    """Bytes on the device: now, or at most since this was last asked."""
    if engine.device.type != "cuda":
        return 0
    if peak:
        return torch.cuda.max_memory_allocated(engine.device)
    torch.cuda.reset_peak_memory_stats(engine.device)
    return torch.cuda.memory_allocated(engine.device)


def _decoding(engine: LongLiveEngine, stream: DecoderStream, blocks: int) -> tuple[dict[str, list[float]], float]:
    """Times to decode a block and one latent to uint8, and GiB that came to the weights meanwhile."""
    latents = torch.randn(BLOCK_FRAMES, *engine.stream.latent_shape, device=engine.device, dtype=engine.dtype)
    before = _allocated(engine)
    stream.decode_uint8(latents)
    times = {
        "decode": _times(engine, lambda: stream.decode_uint8(latents), blocks),
        "decode_one_latent": _times(engine, lambda: stream.decode_uint8(latents[:1]), blocks),
    }
    return times, (_allocated(engine, peak=True) - before) / 2**30


def _baseline_decoding(engine: LongLiveEngine, vae: WanVae, blocks: int) -> list[float]:
    """Times of a block decoded by the baseline, to uint8."""
    decoder = BaselineDecoder(vae)
    z = torch.randn(BLOCK_FRAMES, *engine.stream.latent_shape, device=engine.device, dtype=engine.dtype)
    decoder.decode(z)
    return _times(engine, lambda: to_uint8(decoder.decode(z)), blocks)


def _encoding(engine: LongLiveEngine, stream: EncoderStream, blocks: int) -> tuple[dict[str, list[float]], float]:
    """Times to encode a block's frames, and GiB that came to the weights meanwhile."""
    shape = BLOCK_PIXEL_FRAMES + 1, 3, *engine.stream.settings.size
    video = torch.rand(shape, device=engine.device, dtype=engine.dtype) * 2 - 1
    stream.reset()
    before = _allocated(engine)
    stream.encode(video)
    times = _times(engine, lambda: stream.encode(video[1:]), blocks)
    return {"encode": times}, (_allocated(engine, peak=True) - before) / 2**30


def _levels(height: int, width: int) -> dict[str, dict[str, float]]:
    """The fused convolutions of a block, each by itself, summed by size of frames."""
    spent, flops = defaultdict(float), defaultdict(int)
    for layer in decoder(height, width):
        seconds = statistics.median(time_on_gpu(causal_conv, [arguments(layer, "cuda")], samples=10))
        spent[layer.size] += layer.times * seconds
        flops[layer.size] += layer.times * layer.flops
    return {
        f"convolutions_{h}x{w}": {"ms": spent[h, w] * 1e3, "tflop_s": flops[h, w] / spent[h, w] / 1e12}
        for h, w in spent
    }


@torch.no_grad()
def run(engine: LongLiveEngine, blocks: int) -> dict:
    """One row: decoding to uint8, decoding one latent, encoding; wall time with the device idle before each call.

    Where they run on fused convolutions, the same with the library's and in int8, with the PSNR of that, and what each
    size of the decoder's frames takes; and the baseline's decoding.
    """
    rows, memory, levels = {}, {}, {}
    vae = copy.deepcopy(engine.vae).to(engine.device)
    packed = PackedCodec.is_fast(vae)
    streams = {"": (engine.stream.decoder, engine.stream.encoder)}
    if packed:
        library = ModulesCodec(vae)
        streams["library_"] = DecoderStream(library), EncoderStream(library)
        int8 = codec_for(vae, precision="int8")
        streams["int8_"] = DecoderStream(int8, engine.stream.new_graphs), EncoderStream(int8, engine.stream.new_graphs)
    for prefix, (decoding, encoding) in streams.items():
        decoded, memory[f"{prefix}decode_gib"] = _decoding(engine, decoding, blocks)
        encoded, memory[f"{prefix}encode_gib"] = _encoding(engine, encoding, blocks)
        rows |= {prefix + key: value for key, value in (decoded | encoded).items()}
    if isinstance(vae, WanVae):
        rows["baseline_decode"] = _baseline_decoding(engine, vae, min(blocks, 10))
    if packed:
        levels = _levels(*engine.stream.latent_shape[1:])
        levels |= {f"int8_{name}": value for name, value in int8_figures(engine, 6).items()}
    engine.stream.reset()
    height, width = engine.stream.settings.size
    row = {"height": height, "width": width, "dtype": str(engine.dtype).removeprefix("torch."), "blocks": blocks}
    for name, times in rows.items():
        row |= {f"{name}_ms": statistics.median(times), f"{name}_p99_ms": percentile(times, 0.99)}
    return row | memory | levels
