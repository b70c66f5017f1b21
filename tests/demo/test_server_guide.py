"""What the page tells those who write prompts."""

import asyncio
import math
import types

import pytest

pytest.importorskip("aiortc")
pytest.importorskip("fastapi")

from longlive_optimized.demo.scope_integration import ScopeOptimizationConfig
from longlive_optimized.demo.server.guide import SUGGESTIONS, guide
from longlive_optimized.demo.server.source import EngineSource
from longlive_optimized.tinyworld import guide as tiny
from longlive_optimized.tinyworld.vocabulary import known_to
from longlive_optimized.tinyworld.world import read_caption, words
from support.server_peer import visit


def loaded(name, height: int, width: int):
    config = ScopeOptimizationConfig.preset_balanced(height=height, width=width)
    return types.SimpleNamespace(engine=types.SimpleNamespace(model_name=name), config=config)


def test_the_built_in_model_knows_all_that_is_suggested():
    assert len({read_caption(text) for text in tiny.SUGGESTIONS}) == len(tiny.SUGGESTIONS) >= 5
    sayable = {*words()}
    assert all(word.strip(",") in sayable for text in tiny.SUGGESTIONS for word in text.split())
    known = known_to("tiny")
    for scene in map(read_caption, tiny.SUGGESTIONS):
        assert scene.ground in known.grounds
        assert all(shape.colour in known.colours and shape.form in known.forms for shape in scene.shapes)
    assert all(word in tiny.help_text() for word in (*known.colours, *known.forms))
    assert all(f"{ground} " in tiny.help_text() for ground in known.grounds)


def test_a_real_model_has_suggestions_of_its_own():
    found = guide(loaded("LongLive-1.3B", 480, 832))
    assert (found["name"], found["builtin"], found["suggestions"]) == ("LongLive-1.3B", False, [*SUGGESTIONS])
    assert found["sizes"][0] == [480, 832] and [320, 576] in found["sizes"]
    assert found["limits"]["pixels"] == 480 * 832


def test_no_size_is_larger_than_the_servers_own():
    found = guide(loaded("model", 320, 576))
    assert found["sizes"][0] == [320, 576] and all(math.prod(size) <= 320 * 576 for size in found["sizes"])
    assert all(side % found["limits"]["multiple"] == 0 for size in found["sizes"] for side in size)


def tiny_model(progress):
    return EngineSource("tiny", ScopeOptimizationConfig.preset_ultra(height=64, width=96), "cpu", progress)


async def visited() -> None:
    async with visit(tiny_model) as (_, http):
        found = (await http.get("/guide")).json()
        assert found == (await http.get("/s/another/guide")).json()
        assert found["builtin"] and found["name"] == "tiny" and found["sizes"] == [[64, 96]]


def test_the_guide_is_served_for_each_stream():
    asyncio.run(visited())
