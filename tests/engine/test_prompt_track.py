"""Every order of requests, failures and restarts: the last request's prompt is reached from what is on screen."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from longlive_optimized.engine.prompt_track import PromptTrack
from longlive_optimized.engine.request import BlockRequest

PLACES = {"a": 0.0, "b": 1.0, "c": 10.0}  # an embedding is a number here
REQUESTS = st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.booleans(), st.booleans())


@given(st.lists(REQUESTS, max_size=12))
@example([("a", 1, False, False), ("b", 1, False, True), ("c", 4, False, False)])  # b failed: c is reached from a
@example([("a", 1, False, True), ("b", 4, False, False)])  # nothing was shown: b is there at once
def test_a_track_follows_the_last_request(calls):
    track, shown, wanted, way = PromptTrack(), None, None, []
    for text, blocks, from_source, fails in calls:
        request = BlockRequest(text, transition_blocks=blocks, transition_from_source=from_source)
        if text != wanted:
            target = PLACES[text]
            steps = range(blocks) if from_source and blocks > 1 else range(1, blocks + 1)
            way = [target] if shown is None else [shown + (target - shown) * i / steps[-1] for i in steps]
            wanted = text
        track.follow(request, torch.tensor(PLACES[text]))
        told = way[0] if way else shown
        assert track.embedding.item() == pytest.approx(told, abs=1e-5)
        if not fails:
            track.block_made()
            shown, way = told, way[1:]
        assert track.in_transition == bool(way)
