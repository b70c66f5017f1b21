"""What a measurement of blocks tells of itself while it runs."""

from longlive_optimized import LongLiveEngine, OptimizationConfig
from longlive_optimized.bench.block import run


def test_each_part_is_told_before_it_begins():
    engine, told = LongLiveEngine("tiny", OptimizationConfig(height=32, width=32), "cpu"), []
    row = run(engine, 1, 2, told.append)
    assert told == ["1 blocks", "prompt switches", "2 blocks of the baseline"]
    assert row["blocks"] == 1 and row["baseline_blocks"] == 2 and row["switch_wall_ms"] > 0
    told.clear()
    assert "baseline_dit_ms" not in run(engine, 1, 0, told.append) and told == ["1 blocks", "prompt switches"]
