"""Which prompt a frame shows, and that viewers are told when its first one comes."""

import asyncio
import itertools

import pytest

pytest.importorskip("aiortc")
pytest.importorskip("fastapi")

from hypothesis import given
from hypothesis import strategies as st

from longlive_optimized.demo.scope_integration.prompt_box import Prompt
from longlive_optimized.demo.server.arrivals import KEPT, Arrivals
from longlive_optimized.demo.server.encoding import ViewerTrack
from longlive_optimized.demo.server.metrics import Metrics
from support.event_loop import nothing_left
from support.painted import level, painted, read_level
from support.server_peer import Viewer, visit


def test_prompts_are_numbered_as_they_are_asked_for():
    arrivals = Arrivals(Prompt("a fox"))
    assert (arrivals.asked, arrivals.shown, arrivals.number("a fox")) == (0, 0, 0)
    assert [arrivals.ask(Prompt(text)) for text in ("a boat", "a fox", "a bear")] == [1, 2, 3]
    assert [arrivals.number(text) for text in ("a boat", "a fox", "a bear")] == [1, 2, 3]
    assert arrivals.number("nobody asked for it") == arrivals.shown


def test_only_so_many_prompts_are_remembered():
    arrivals = Arrivals(Prompt("first"))
    for i in range(KEPT):
        arrivals.ask(Prompt(str(i)))
    assert arrivals.number("first") == 0 == arrivals.shown  # forgotten
    assert arrivals.number("0") == 1 and arrivals.number(str(KEPT - 1)) == KEPT


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 12)), max_size=8), st.integers(0, 60))
def test_a_frame_shows_the_prompt_of_its_block(blocks, taken):
    arrivals, frames = Arrivals(Prompt("a")), []
    for number, count in blocks:
        arrivals.made(number, count)
        frames += [number] * count
    for i in range(taken):
        arrivals.take()
        if i < len(frames):
            assert arrivals.shown == frames[i]
    before = arrivals.shown
    arrivals.clear()
    arrivals.take()
    assert arrivals.shown == before


PROMPTS = ["a boat", "a bear", "a fox"]


async def first_frame(viewer: Viewer, prompt: str) -> int:
    """The time stamp of the first one that shows a prompt."""
    while True:
        frame = await viewer.frame()
        if read_level(frame.to_ndarray(format="rgb24")) == level(prompt):
            return frame.pts


async def watched() -> None:
    async with visit(painted(block_seconds=0.05)) as (_, http):
        one, other = await Viewer(http).join(), await Viewer(http).join()
        assert "prompt" in one.hello["commands"]["switch_prompt"]
        await first_frame(one, "a fox")
        await first_frame(other, "a fox")
        seen, said = [], {one: [], other: []}
        for number, prompt in enumerate(PROMPTS, 1):
            assert (await one.ask("switch_prompt", prompt=prompt))["number"] == number
            seen.append([await first_frame(viewer, prompt) for viewer in said])
            for viewer, all_said in said.items():
                shown = await viewer.wait_for(lambda m: m["type"] == "shown")
                assert shown["number"] == number
                all_said.append(shown["rtp"])
            block = await one.wait_for(lambda m: m["type"] == "block" and m["prompt"] == number)  # noqa: B023
            assert block["frames"] == 12
        for i, viewer in enumerate(said):  # aiortc's receiver counts from its first picture, the server's word does not
            stamps, pictures = said[viewer], [both[i] for both in seen]
            told = [(b - a) % 2**32 for a, b in itertools.pairwise(stamps)]
            assert [b - a for a, b in itertools.pairwise(pictures)] == told
        state = await other.wait_for(lambda m: m["type"] == "state" and m["asked"] == len(PROMPTS))
        assert state["shown"] <= state["asked"]
        await one.leave()
        await other.leave()


def test_viewers_are_told_which_picture_is_the_first_of_a_prompt():
    async def run() -> None:
        await asyncio.wait_for(watched(), 60)
        await nothing_left()

    asyncio.run(run())


async def without_sender() -> None:
    track = ViewerTrack(Metrics())
    assert track.rtp_time(90_000) is None  # nothing was sent yet


def test_no_time_stamp_is_made_up():
    asyncio.run(without_sender())
