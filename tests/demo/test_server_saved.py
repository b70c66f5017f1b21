"""A stream that goes on at another server: the same wishes, the same picture."""

import asyncio
import pickle

import numpy as np
import pytest

pytest.importorskip("aiortc")
pytest.importorskip("fastapi")

from longlive_optimized.demo.scope_integration import ScopeOptimizationConfig
from longlive_optimized.demo.server.access import Refused
from longlive_optimized.demo.server.settings import ServerSettings
from longlive_optimized.demo.server.source import EngineSource
from support.server_peer import Viewer, visit_all

CONFIG = ScopeOptimizationConfig.preset("ultra", height=64, width=96, seed=3, playback_speed=0.5)
SETTINGS = ServerSettings(private=True, sessions=2, record_seconds=0, keep_seconds=1)
PROMPT = "a red circle moves left over a green field"


def load(progress):
    return EngineSource("tiny", CONFIG, "cpu", progress)


def visit():
    return visit_all(load, SETTINGS, PROMPT)


async def blocks(room, count: int) -> None:
    async with asyncio.timeout(60):
        while room.feed.blocks < count:
            await asyncio.sleep(0.02)


async def saved_after(count: int, **wishes):
    """What a stream leaves behind after so many blocks, as it travels, and its last picture."""
    async with visit() as (sessions, http):
        viewer = await Viewer(http, stream="/s/one", wishes=wishes).join()
        assert viewer.hello["resumed"] is False
        room = sessions.room("one")
        assert sessions.names == ["one"]
        await viewer.ask("set_overlay", enabled=True)
        await viewer.ask("set_overlay", enabled=False)
        await viewer.ask("set_transition", blocks=3, blend="slerp")
        await blocks(room, count)
        await viewer.ask("set_paused", paused=True)
        saved = await asyncio.to_thread(room.save)
        await viewer.leave()
        return pickle.loads(pickle.dumps(saved))


def test_it_goes_on_where_it_was():
    async def run():
        saved = await saved_after(3, prompt="a blue square moves right over a sandy field", seed=11)
        position = saved.snapshot.state.position
        assert position >= 9 and saved.paused and saved.transition == 3 and saved.blend == "slerp"
        async with visit() as (sessions, http):
            room = sessions.resume("one", saved)
            assert sessions.resume("one", saved) is room
            viewer = await Viewer(http, stream="/s/one").join()
            state = await viewer.wait_for(lambda message: message["type"] == "state")
            assert viewer.hello["resumed"] is True
            assert state["prompt"] == "a blue square moves right over a sandy field" and state["paused"]
            assert state["transition"] == {"blocks": 3, "blend": "slerp"}
            assert (await viewer.ask("set_paused", paused=False))["type"] == "done"
            await blocks(room, 1)
            assert room.feed.pipeline.stream.position > position
            assert room.feed.config_in_force.seed == 11
            await viewer.leave()

    asyncio.run(run())


def test_its_first_block_is_made_before_anyone_comes_and_is_the_next_one():
    async def run():
        saved = await saved_after(2)
        saved = pickle.loads(pickle.dumps(saved))
        object.__setattr__(saved, "paused", False)
        engine = load(lambda *_: None)
        expected = engine.open(saved.config, saved.snapshot)
        expected.switch_prompt(PROMPT, transition_blocks=1)
        frames = expected.next_block().cpu().numpy()
        async with visit() as (sessions, _):
            room = sessions.resume("one", saved)
            await blocks(room, 1)
            async with asyncio.timeout(10):
                while len(room.feed.frames) < len(frames):
                    await asyncio.sleep(0.02)
            shown = np.stack([room.feed.take() for _ in range(len(frames))])
            assert np.array_equal(shown, frames)
            sessions.end("one")
            sessions.end("one")
            assert sessions.names == []

    asyncio.run(run())


def test_a_stream_without_a_block_leaves_nothing_behind():
    async def run():
        async with visit() as (sessions, http):
            viewer = await Viewer(http, stream="/s/one").join()
            room = sessions.room("one")
            await blocks(room, 1)
            room.feed.reset()
            room.feed.set_paused(True)
            assert room.save() is None or room.feed.blocks > 1
            with pytest.raises(Refused, match="name"):
                sessions.resume("no such/name", None)
            await viewer.leave()

    asyncio.run(run())
