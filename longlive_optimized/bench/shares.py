"""Where a block's transformer time goes: kernels by kind, and the gaps between them, from torch's profiler."""

from __future__ import annotations

import re
from collections import defaultdict

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ..engine.block import next_latents
from ..engine.engine import LongLiveEngine
from ..engine.request import BlockRequest

# The first pattern that a kernel's name matches; what matches none is named in the result.
KINDS = {
    "attention": r"sdpa|fmha|flash|attention",
    "pointwise": r"_norm|x0_renoise|ring_advance|rotate_sinks|elementwise|_kernel\b|copy|fill|cat",
    "gemm": r"gemm|nvjet|cutlass|xmma|splitKreduce",
    "memory": r"memcpy|memset",
}


def undecoded_block(engine: LongLiveEngine, prompt: str) -> None:
    """The default stream's next block up to its latents: the last block's context pass, noise, the steps."""
    with engine.devices.turn():
        latents = next_latents(engine.stream, BlockRequest(prompt))
        engine.stream.keep(engine.stream.history_with(latents), len(latents))
        engine.stream.timer.discard()  # it is no whole block


def measure_shares(engine: LongLiveEngine, prompt: str, blocks: int = 5) -> dict:
    """Milliseconds per block of each kind, over ``blocks`` steady blocks of the default stream, without decoding.

    prompt: the one in force.
    """
    undecoded_block(engine, prompt)
    engine.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(blocks):
            undecoded_block(engine, prompt)
        engine.synchronize()
    kernels = [e for e in trace.events() or () if e.device_type == DeviceType.CUDA]
    by_kind: dict[str, float] = defaultdict(float)
    by_name: dict[str, float] = defaultdict(float)
    for kernel in kernels:
        kind = next((k for k, pattern in KINDS.items() if re.search(pattern, kernel.name, re.I)), kernel.name)
        by_kind[kind] += kernel.time_range.elapsed_us() / 1e3 / blocks
        by_name[kernel.name[:70]] += kernel.time_range.elapsed_us() / 1e3 / blocks
    span = (max(k.time_range.end for k in kernels) - min(k.time_range.start for k in kernels)) / 1e3 / blocks
    top = sorted(by_name.items(), key=lambda item: -item[1])[:16]
    return {
        "span_ms": span,
        "gaps_ms": span - sum(by_kind.values()),
        "kernels_per_block": len(kernels) / blocks,
        **{f"{kind}_ms": ms for kind, ms in sorted(by_kind.items(), key=lambda item: -item[1])},
        "top": {name: round(ms, 2) for name, ms in top},
    }
