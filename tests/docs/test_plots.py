"""The plots in the documents are what their program draws of the measurements."""

import itertools
import re
from pathlib import Path

import pytest

from measure import plots
from measure.report import by_size

DOCS = Path(__file__).parents[2] / "docs"


def test_the_pictures_are_what_the_program_draws():
    for name, svg in plots.pictures().items():
        assert (DOCS / name).read_text() == svg, "run python tests/measure/plots.py"


@pytest.mark.parametrize("size", plots.SIZES)
def test_a_switch_takes_what_was_measured_from_the_call_on(size):
    """The bar's parts behind the wait are measured one by one; their sum was measured too."""
    waits, *parts = plots.switch_of(size)
    row, _ = by_size(["prompt-switch"], "prompt switch")[size]
    until_first = sum(part.ms for part in parts[:-1])
    assert until_first == pytest.approx(row["first_pixel_ms"], rel=0.01)
    assert until_first + parts[-1].ms == pytest.approx(row["last_pixel_ms"], rel=0.01)
    assert waits.ms == by_size(["block"], "block")[size][0]["block_ms"]["median"] / 2


def test_the_rates_are_those_of_the_readme():
    readme = (DOCS.parent / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)`.*\| (\d+) \| (\d+) \|$", readme, re.MULTILINE)
    drawn = re.findall(r">(\d+)</text>", plots.frame_rates())
    for preset, large, small in rows:
        if preset != "quality_stream":
            assert (large, small) in itertools.pairwise(drawn), preset
    assert len(rows) == 6
