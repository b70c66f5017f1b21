"""Milliseconds of a steady block, stage by stage, beside the baseline's in the same run."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

import torch

from ..engine.engine import LongLiveEngine
from ..engine.request import BlockRequest
from ..engine.sampler import make_schedule
from ..engine.timing import percentile
from ..video_time import BLOCK_FRAMES, blocks_of
from .baseline import baseline_network, predict_x0, renoise
from .shares import measure_shares

PROMPT = "a lighthouse above a stormy sea"
_OTHER_STEPS, _OTHER_WINDOW = (1000, 500, 250), 9


def measure_engine(engine: LongLiveEngine, blocks: int) -> dict:
    """Medians and p99 of ``blocks`` blocks with a full window; DiT is denoising and context pass."""
    cuda = engine.device.type == "cuda"
    warmup = engine.warmup()
    if cuda:
        torch.cuda.reset_peak_memory_stats(engine.device)
    fill = blocks_of(engine.stream.ring.window) + 1
    for _ in range(fill + blocks):
        engine.generate_block(BlockRequest(PROMPT))
    engine.synchronize()
    steady = engine.block_times()[fill:]
    dit = [b.stages["denoise"] + b.stages["context"] for b in steady]
    vae = [b.stages["decode"] for b in steady]
    total = [b.total for b in steady]
    return {
        "warmup_s": warmup,
        "blocks": len(steady),
        "dit_ms": statistics.median(dit),
        "dit_p99_ms": percentile(dit, 0.99),
        "vae_ms": statistics.median(vae),
        "vae_p99_ms": percentile(vae, 0.99),
        "block_ms": statistics.median(total),
        "block_p99_ms": percentile(total, 0.99),
        "fps": 1e3 * steady[-1].frames / statistics.median(total),
        "captured_graphs": engine.stream.passes.graphs.captured,
        "capture_s": engine.stream.passes.graphs.capture_seconds,
        "capture_gib": engine.stream.passes.graphs.capture_bytes / 2**30,
        "peak_gib": torch.cuda.max_memory_allocated(engine.device) / 2**30 if cuda else None,
    }


def measure_switch(engine: LongLiveEngine, switches: int, at_random: bool = False) -> dict:
    """Milliseconds from a request with a new prompt to its first pixels, those of the first latent, and to all of the
    block's: medians, with the parts.

    The request comes at a block boundary with the device idle, or ``at_random``: at a moment drawn evenly from the
    time in which the device makes the block before, whose rest is waited for.
    """
    times, dice = [], random.Random(0)
    for _ in range(2):
        engine.generate_block(BlockRequest(PROMPT))
    engine.synchronize()
    block_ms = engine.block_times()[-1].total
    for i in range(switches):
        engine.generate_block(BlockRequest(PROMPT))
        if at_random:
            time.sleep(dice.random() * block_ms / 1e3)
        else:
            engine.synchronize()
        started = time.perf_counter()
        engine.generate_block(BlockRequest(f"{PROMPT}, take {i}{' later' * at_random}"), first_latent_only=True)
        engine.synchronize()
        first = time.perf_counter()
        engine.rest_of_block()
        engine.synchronize()
        wall = {"wall": time.perf_counter() - started, "first_pixel": first - started}
        stages = engine.block_times()[-1].stages
        times.append({name: seconds * 1e3 for name, seconds in wall.items()} | stages)
    return {f"switch_{name}_ms": statistics.median(t[name] for t in times) for name in times[0]}


def measure_switches(engine: LongLiveEngine, boundary: int, at_random: int) -> dict:
    """So many prompt switches from a block boundary, with their parts, and so many from a random moment."""
    row, random_row = measure_switch(engine, boundary), measure_switch(engine, at_random, at_random=True)
    return row | {f"switch_at_random_{name}_ms": random_row[f"switch_{name}_ms"] for name in ("wall", "first_pixel")}


def measure_preset_switch(engine: LongLiveEngine) -> dict:
    """Wall milliseconds of the blocks before, at and after a change to fewer steps and a smaller window, never seen.

    The first block after it recomputes its window, and captures the denoising in so many steps.
    """
    before = engine.config

    def blocks(count: int) -> list[float]:
        times = []
        for _ in range(count):
            started = time.perf_counter()
            engine.generate_block(BlockRequest(PROMPT))
            engine.synchronize()
            times.append((time.perf_counter() - started) * 1e3)
        return times

    steady = statistics.median(blocks(5))
    engine.configure(denoising_steps=_OTHER_STEPS, local_attn_size=_OTHER_WINDOW)
    first, second, *after = blocks(6)
    engine.configure(denoising_steps=before.denoising_steps, local_attn_size=before.local_attn_size)
    return {
        "preset_before_ms": steady,
        "preset_first_ms": first,
        "preset_second_ms": second,
        "preset_after_ms": statistics.median(after),
    }


@torch.no_grad()
def measure_baseline(engine: LongLiveEngine, blocks: int) -> dict:
    """DiT milliseconds of the baseline on the same weights: as many steps, then the clean pass."""
    config, stream = engine.config, engine.stream
    net = baseline_network(engine)
    prompt = engine.prompts.get(PROMPT)
    steps = make_schedule(config.denoising_steps, config.step_schedule)
    fill = blocks_of(stream.ring.window) + 1
    shape = BLOCK_FRAMES, *stream.latent_shape
    times = []
    for block in range(fill + blocks):
        engine.synchronize()
        started = time.perf_counter()
        x = torch.randn(shape, device=engine.device, dtype=engine.dtype)
        for i, step in enumerate(steps):
            if i:
                x = renoise(x, torch.randn_like(x), step.sigma)
            t = torch.full((BLOCK_FRAMES,), step.timestep, device=engine.device)
            x = predict_x0(x, net.forward(x, t, prompt, block * BLOCK_FRAMES), step.sigma)
        net.forward(x, torch.zeros_like(t), prompt, block * BLOCK_FRAMES)
        engine.synchronize()
        times.append((time.perf_counter() - started) * 1e3)
    return {"baseline_dit_ms": statistics.median(times[fill:]), "baseline_blocks": blocks}


def run(engine: LongLiveEngine, blocks: int, baseline_blocks: int, tell: Callable[[str], object]) -> dict:
    """One row: the engine, prompt switches, with graphs a preset switch, without graphs; the baseline. ``tell`` is told
    what begins."""
    config = engine.config
    tell(f"{blocks} blocks")
    measured = measure_engine(engine, blocks)
    tell("prompt switches")
    measured |= measure_switches(engine, max(3, blocks // 10), max(3, blocks // 5))
    row = {
        "device": torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "height": config.height,
        "width": config.width,
        "steps": list(config.denoising_steps),
        "window": config.local_attn_size,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "precision": engine.stream.precision,
        "low_memory": config.low_memory,
        "text_precision": engine.text.precision,
        "text_residence": engine.text.residence,
        "load_s": engine.load_seconds,
        **measured,
    }
    if engine.stream.cuda_graphs_active:
        tell("parts of a block, a preset switch, blocks without graphs")
        row["shares"] = measure_shares(engine, PROMPT)
        row |= measure_preset_switch(engine)
        engine.configure(use_cuda_graphs=False)
        row["ungraphed_dit_ms"] = measure_engine(engine, max(1, blocks // 5))["dit_ms"]
    if baseline_blocks:
        tell(f"{baseline_blocks} blocks of the baseline")
        row |= measure_baseline(engine, baseline_blocks)
        row["baseline_over_engine"] = row["baseline_dit_ms"] / row["dit_ms"]
    return row
