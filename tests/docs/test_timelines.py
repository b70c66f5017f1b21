"""The timelines in the documents are what their program draws, and the program keeps the kernels' promises."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
_spec = importlib.util.spec_from_file_location("timelines", DOCS / "timelines.py")
timelines = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(timelines)


def test_the_pictures_are_what_the_program_draws():
    for name, svg in timelines.pictures().items():
        assert (DOCS / name).read_text() == svg, "run python docs/timelines.py"


@pytest.mark.parametrize("bars", [timelines.attention(), timelines.convolution()], ids=["attention", "convolution"])
def test_a_lane_does_one_thing_at_a_time(bars):
    lanes: dict[str, float] = {}
    for bar in sorted(bars, key=lambda bar: bar.start):
        lane = "tensor cores" if bar.lane.startswith("tensor") else bar.lane
        assert bar.start >= lanes.get(lane, 0.0) and bar.end > bar.start
        lanes[lane] = bar.end


def test_every_product_is_there():
    attention = [bar for bar in timelines.attention() if bar.lane.startswith("tensor")]
    assert len(attention) == timelines.WORK * 2 * 2 * timelines.TILES
    convolution = [bar for bar in timelines.convolution() if bar.lane.startswith("tensor")]
    assert len(convolution) == timelines.WORK * 2 * timelines.SLICES * timelines.CHUNKS * timelines.TAPS
