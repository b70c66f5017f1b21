"""Milliseconds of the VAE's stream: a steady block decoded, and as many frames encoded."""

from __future__ import annotations

import statistics
import time

import torch

from ..config import BLOCK_FRAMES
from ..engine.engine import LongLiveEngine
from ..engine.timing import percentile
from ..vae.stream import DecoderStream, EncoderStream

PIXEL_FRAMES = 4 * BLOCK_FRAMES


def _times(engine: LongLiveEngine, call, blocks: int) -> list[float]:
    times = []
    for _ in range(blocks + 3):
        engine.synchronize()
        started = time.perf_counter()
        call()
        engine.synchronize()
        times.append((time.perf_counter() - started) * 1e3)
    return times[3:]


@torch.no_grad()
def run(engine: LongLiveEngine, blocks: int) -> dict:
    """One row: decoding to uint8, decoding one latent, encoding; wall time with the device idle before each call."""
    height, width = engine.stream.height, engine.stream.width
    where = {"device": engine.device, "dtype": engine.dtype}
    latents = torch.randn(BLOCK_FRAMES, *engine.stream.latent_shape, **where)
    video = torch.rand(PIXEL_FRAMES + 1, 3, height, width, **where) * 2 - 1
    decoder, encoder = DecoderStream(engine.vae), EncoderStream(engine.vae)
    decoder.decode_uint8(latents), encoder.encode(video)
    rows = {
        "decode": _times(engine, lambda: decoder.decode_uint8(latents), blocks),
        "decode_one_latent": _times(engine, lambda: decoder.decode_uint8(latents[:1]), blocks),
        "encode": _times(engine, lambda: encoder.encode(video[1:]), blocks),
    }
    row = {"height": height, "width": width, "dtype": str(engine.dtype).removeprefix("torch."), "blocks": blocks}
    for name, times in rows.items():
        row |= {f"{name}_ms": statistics.median(times), f"{name}_p99_ms": percentile(times, 0.99)}
    return row
