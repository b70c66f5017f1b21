"""The gate on what the built-in model's pictures show."""

from longlive_optimized.bench import score


def test_every_preset_and_dtype_is_scored():
    table = score.run("cpu", 1, 2.0)
    assert len(table) == 11 and {"4 steps, window 12", "2 steps, window 6", "float32", "bfloat16"} <= table.keys()
    assert all(0 <= share <= 1 for row in table.values() for kind, share in row.items() if kind != "blocks/s")


def test_what_shows_too_little_is_named():
    table = {"4 steps, window 12": {"all": 0.95}, "2 steps, window 9": {"all": 0.85}, "2 steps, window 6": {"all": 0.3}}
    assert score.failures(table) == ["2 steps, window 9"] and score.failures({}) == []
