"""A few seconds of the soak; ``python tests/measure/server_soak.py`` runs it for longer."""

import asyncio

import pytest

pytest.importorskip("aiortc")
pytest.importorskip("fastapi")

from measure.server_soak import soak


def test_people_come_talk_nonsense_and_go():
    report = asyncio.run(soak(seconds=3, messages=60, kill=False))
    assert report["wrong"] == [] and report["messages"] >= 60 and report["guests"] and report["rude_requests"]
