"""A few seconds of what ``python tests/measure/server_soak.py`` and ``sessions.py`` run for longer."""

import asyncio

import pytest

pytest.importorskip("aiortc")
pytest.importorskip("fastapi")

from measure.server_soak import soak
from measure.sessions import further, measure


def test_people_come_talk_nonsense_and_go():
    report = asyncio.run(soak(seconds=3, messages=60, kill=False))
    assert report["wrong"] == [] and report["messages"] >= 60 and report["guests"] and report["rude_requests"]


def test_sessions_are_measured():
    report = measure("tiny", "cpu", ["32x48"], ["ultra"], seconds=0.5, budget=30)
    first, second = report["rows"][0], report["rows"][1]
    assert first["sessions"] == 1 and first["as_alone"] and first["p99_ms"] >= 60
    assert second["sessions"] > 1 and (second.get("left_out") or second["fps"][0] > 1)


@pytest.mark.parametrize("most", range(0, 9))
@pytest.mark.parametrize("first", [1, 2, 5, 8])
def test_the_most_sessions_are_found_wherever_one_begins(most, first):
    """As where admission is misled by a first block that compiles."""
    rows = {sessions: {"as_promised": sessions <= most} for sessions in {1, first, first + 1}}
    while more := further(rows):
        assert len(more) == 1 and more[0] not in rows
        rows[more[0]] = {"as_promised": more[0] <= most}
    assert max([0, *(sessions for sessions, row in rows.items() if row["as_promised"])]) == most
    assert most + 1 in rows
