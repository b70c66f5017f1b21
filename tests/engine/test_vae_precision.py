"""``vae_precision``: the same latents, decoded in 8 bits; what was cut off is in the statistics."""

import math
from dataclasses import replace

import pytest
import torch

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.engine.latency import LatencyMeter

CONFIG = OptimizationConfig(height=64, width=96, denoising_steps=(1000, 250))


def psnr(a, b) -> float:
    error = (a.float() - b.float()).square().mean().item()
    return 10 * math.log10(255**2 / max(error, 1e-9))


@pytest.fixture(scope="module")
def engines():
    configs = CONFIG, replace(CONFIG, vae_precision="int8")
    return [LongLiveEngine("tiny", config, device="cpu") for config in configs]


def test_pictures_and_statistics(engines):
    made = [[engine.generate_block(BlockRequest("a red ball")) for _ in range(3)] for engine in engines]
    assert torch.equal(*(engine.stream.history for engine in engines))
    found = [psnr(*pair) for pair in zip(*made, strict=True)]
    assert 38 < min(found) and max(found) < 70
    stats = [LatencyMeter(engine).stats() for engine in engines]
    assert [each.vae_precision for each in stats] == ["float32", "int8"]
    counts = [each.vae_saturated for each in stats]
    assert counts[0] == 0 <= counts[1] == engines[1].codec.saturated < 10_000  # of 100 million


def test_video_is_encoded_in_int8(engines):
    video = (torch.rand(13, 8, 12, 3) * 255).byte().repeat_interleave(8, 1).repeat_interleave(8, 2)
    blocks = []
    for engine in engines:
        stream = engine.open_stream()
        blocks.append(engine.generate_block(BlockRequest("a red ball", video=video, noise_scale=0.3), stream))
    assert 20 < psnr(*blocks) < 70


def test_what_cannot_is_refused_by_name():
    for vae_type in ("lightvae", "tae"):
        with pytest.raises(ValueError, match="vae_precision must not be int8 with this VAE"):
            LongLiveEngine("tiny", replace(CONFIG, vae_precision="int8", vae_type=vae_type), device="cpu")
    with pytest.raises(ValueError, match="vae_precision"):
        OptimizationConfig(vae_precision="fp8")
