"""The gate on what the built-in model's pictures show."""

from longlive_optimized.bench import score
from longlive_optimized.tinyworld import evaluate


def test_every_preset_and_dtype_is_scored(monkeypatch):
    assert len(evaluate._STEPS) == len(evaluate._WINDOWS) == 3
    monkeypatch.setattr(evaluate, "_STEPS", evaluate._STEPS[1:])
    monkeypatch.setattr(evaluate, "_WINDOWS", (9,))
    monkeypatch.setattr(evaluate, "NATIVE", (64, 96))
    table = score.run("cpu", 1, 2.0, ["balanced", "turbo"])
    assert list(table) == ["3 steps, window 9", "2 steps, window 9", "3 steps, window 9, int8", "float32", "bfloat16"]
    assert all(0 <= share <= 1 for row in table.values() for kind, share in row.items() if kind != "blocks/s")


def test_what_shows_too_little_is_named():
    table = {"4 steps, window 12": {"all": 0.95}, "2 steps, window 9": {"all": 0.85}, "2 steps, window 6": {"all": 0.3}}
    assert score.failures(table) == ["2 steps, window 9: 85% of the prompts are shown, at least 90% wanted"]
    assert score.failures({}) == []


def test_what_shows_less_in_8_bits_is_named():
    table = {"a": {"all": 0.97}, "a, int8": {"all": 0.965}, "b": {"all": 0.97}, "b, int8": {"all": 0.95}}
    assert score.failures(table) == ["b, int8: 95% of the prompts are shown, without 8 bits 97%"]
