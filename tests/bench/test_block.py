"""``bench block`` measures what it names, on every device."""

import pytest
import torch

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.bench.block import run
from longlive_optimized.bench.shares import undecoded_block

GPU = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])
DEVICES = pytest.mark.parametrize("device", ["cpu", GPU])


def tiny(device: str) -> LongLiveEngine:
    return LongLiveEngine("tiny", OptimizationConfig(height=32, width=48), device)


@DEVICES
def test_an_undecoded_block_is_the_next_one(device):
    """The same latents as the engine's own block, and the stream stands behind it."""
    engine, other = tiny(device), tiny(device)
    for each in (engine, other):
        for _ in range(2):
            each.generate_block(BlockRequest("a fox"))
    other.generate_block(BlockRequest("a fox"))
    undecoded_block(engine, "a fox")
    assert engine.stream.position == other.stream.position == 9
    torch.testing.assert_close(engine.stream.history, other.stream.history)


@DEVICES
def test_run_has_every_figure(device):
    row = run(tiny(device), blocks=2, baseline_blocks=1, tell=print)
    assert row["blocks"] == 2 and row["fps"] > 0 and row["baseline_dit_ms"] > 0 and row["switch_first_pixel_ms"] > 0
    assert row["switch_first_pixel_ms"] <= row["switch_wall_ms"]
    if device == "cuda":
        shares = row["shares"]
        assert 0 < shares["attention_ms"] < shares["span_ms"] and row["ungraphed_dit_ms"] > 0


def test_each_part_is_told_before_it_begins():
    engine, told = tiny("cpu"), []
    row = run(engine, 1, 2, told.append)
    assert told == ["1 blocks", "prompt switches", "2 blocks of the baseline"]
    assert row["blocks"] == 1 and row["baseline_blocks"] == 2 and row["switch_wall_ms"] > 0
    told.clear()
    assert "baseline_dit_ms" not in run(engine, 1, 0, told.append) and told == ["1 blocks", "prompt switches"]
