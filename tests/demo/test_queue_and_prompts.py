"""Order, lag and bursts, with a clock of the test's own."""

import pytest
import torch

from longlive_optimized.demo.scope_integration.frame_queue import FrameQueue
from longlive_optimized.demo.scope_integration.prompt_box import Prompt, PromptBox
from longlive_optimized.engine.latency import LatencyTracker


def play(interval: float, fps: float, depth: int | None, frames: int) -> tuple[list[int], FrameQueue]:
    """A caller that asks every ``interval`` seconds and makes blocks of 12 when none waits."""
    queue, seen, made, now = FrameQueue(), [], 0, 0.0
    for _ in range(frames):
        if not len(queue):
            queue.put(torch.arange(made, made + 12))
            made += 12
        seen.append(queue.get(now, fps, depth).item())
        now += interval
    return seen, queue


def test_a_caller_in_time_gets_every_frame():
    assert play(1 / 25, 25, 3, 60)[0] == list(range(60))
    assert play(1 / 100, 25, 3, 60)[0] == list(range(60))


def test_a_lagging_caller_skips_frames_and_stays_near_the_newest():
    seen, queue = play(1 / 5, 25, 3, 30)
    assert queue.dropped > 35 and seen == sorted(seen) and seen[-1] > 60


def test_a_deeper_queue_drops_later():
    assert play(1 / 20, 25, 1, 12)[1].dropped > play(1 / 20, 25, 8, 12)[1].dropped == 0


def test_keeping_every_frame():
    seen, queue = play(1 / 5, 25, None, 30)
    assert seen == list(range(30)) and queue.dropped == 0


def test_the_newest_frame_is_never_dropped():
    queue = FrameQueue()
    queue.put(torch.arange(12))
    assert [queue.get(now, 25, 1).item() for now in (0.0, 0.04, 1000.0)] == [0, 1, 11] and queue.dropped == 9


def test_waiting_for_the_device_is_no_lag():
    """A block is handed over while it is made: its first frame costs its taker half a second, the others nothing."""
    queue, now, seen = FrameQueue(), 0.0, []
    for block in range(10):
        queue.put(torch.arange(12) + 12 * block)
        for i in range(12):
            seen.append(queue.get(now, 25, 1).item())
            now += 0.44 if i == 0 else 0.04
    assert seen == list(range(120)) and queue.dropped == 0


def test_being_early_is_no_credit():
    queue, now = FrameQueue(), 0.0
    for _ in range(100):
        queue.put(torch.arange(12))
        for _ in range(12):
            queue.get(now, 25, 3)
            now += 0.001
    queue.put(torch.arange(12))
    queue.get(now, 25, 3), queue.get(now + 0.04, 25, 3), queue.get(now + 5, 25, 3)
    assert queue.dropped > 0


def test_the_first_prompt_acts_at_once_and_a_burst_is_held():
    box = PromptBox()
    box.switch("a", 0.0, 0.1)
    assert box.take(0.0, 0.1)[0] == "a"
    for i, prompt in enumerate(("ab", "abc", "abcd")):
        box.switch(prompt, 1.0 + 0.05 * i, 0.1)
    assert box.take(1.12, 0.1) == ("a", None)
    prompt, wish = box.take(1.21, 0.1)
    assert prompt == "abcd" and wish.asked_at == pytest.approx(1.1)
    assert box.take(1.3, 0.1) == ("abcd", None)


def test_a_single_switch_is_not_held():
    box = PromptBox()
    box.switch("a", 0.0, 0.1)
    box.take(0.0, 0.1)
    box.switch("b", 5.0, 0.1)
    assert box.take(5.001, 0.1)[0] == "b"


def test_asking_again_is_no_burst():
    box = PromptBox()
    box.switch(Prompt("a"), 0.0, 0.1)
    box.take(0.0, 0.1)
    box.switch(Prompt("b"), 5.0, 0.1)
    box.follow(Prompt("b"), 5.02, 0.1)
    assert box.take(5.03, 0.1)[0] == Prompt("b")
    for i in range(10):
        box.switch(Prompt("c"), 6 + 0.04 * i, 0.1)
        assert i == 0 or box.take(6.02 + 0.04 * i, 0.1)[0] == Prompt("c")


def test_going_back_within_a_burst_is_no_switch():
    box = PromptBox()
    box.switch("a", 0.0, 0.1)
    box.take(0.0, 0.1)
    box.switch("b", 5.0, 0.1)
    box.switch("a", 5.05, 0.1)
    assert box.take(6.0, 0.1) == ("a", None)


def test_a_switch_whose_block_failed_stands_again():
    box = PromptBox()
    box.follow(Prompt("a"), 0.0, 0.1)
    box.take(0.0, 0.1)
    box.switch(Prompt("b"), 1.0, 0.1)
    prompt, wish = box.take(1.0, 0.1)
    box.give_back(wish)
    assert box.take(2.0, 0.1) == (prompt, wish) == (Prompt("b"), wish) and wish.asked_at == 1.0
    box.give_back(wish)
    box.switch(Prompt("c"), 3.0, 0.1)
    box.give_back(wish)  # too late: there is a newer one
    assert box.take(3.0, 0.1)[0] == Prompt("c")


def test_a_signals_handler_may_ask_while_its_own_thread_does():
    box = PromptBox()
    with box._lock:
        assert box._lock.acquire(blocking=False)
        box._lock.release()
        box.switch(Prompt("a"), 0.0, 0.1)
    assert box.take(1.0, 0.1)[0] == Prompt("a")


def test_the_old_argument_at_another_pace_is_no_wish():
    box, blend = PromptBox(), [("a", 1), ("b", 1)]
    box.follow(Prompt("a"), 0.0, 0.1)
    box.switch(Prompt("b"), 1.0, 0.1)
    box.follow(Prompt("a", transition_blocks=4), 2.0, 0.1)
    assert box.take(3.0, 0.1)[0] == Prompt("b")
    box.follow(Prompt(blend), 4.0, 0.1)
    box.follow(Prompt(blend, "slerp"), 5.0, 0.1)
    assert box.take(6.0, 0.1)[0] == Prompt(blend, "slerp")


def test_tracker_figures():
    tracker = LatencyTracker(window=100)
    tracker.add_block(1000, 1)
    for i in range(100):
        tracker.add_block(i + 1.0, 1)
    figures = tracker.figures()
    assert (figures["min_ms"], figures["max_ms"], figures["p99_ms"], figures["current_ms"]) == (1, 100, 99, 100)
    assert figures["mean_ms"] == pytest.approx(50.5) and figures["fps"] == pytest.approx(1e3 / 50.5)
