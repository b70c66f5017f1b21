"""The thread that owns the engine, with one stream whose frames are numbered."""

import dataclasses
import itertools
import threading
import time

import numpy as np
import pytest
import torch

from longlive_optimized.demo.scope_integration import OptimizedScopePipeline, ScopeOptimizationConfig
from longlive_optimized.demo.scope_integration.prompt_box import Prompt
from longlive_optimized.demo.server import making as making_module
from longlive_optimized.demo.server.feed import Feed
from longlive_optimized.demo.server.source import EngineSource
from longlive_optimized.demo.server.worker import Worker
from longlive_optimized.engine.ranks import RankError
from support.painted import level, painted, read_level, read_number

PAINTED = painted()
FOX, BOAT = Prompt("a fox", "linear", 1), Prompt("a boat", "linear", 1)


class Watched:
    """A started worker and what it reported."""

    def __init__(self, load=PAINTED, watched=True):
        self.statuses, self.blocks = [], []
        self.worker = Worker(load, lambda status: status.phase == "ready" or self.statuses.append(status))
        self.feed = Feed(self.worker, None, FOX, self.statuses.append, self.blocks.append)
        self.worker.add(self.feed)
        self.worker.start()
        if watched:
            self.feed.set_watched(True)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        assert self.worker.stop(20)

    def take(self) -> np.ndarray:
        frame = wait_for(self.feed.take)
        return frame

    def phases(self) -> list[str]:
        return [status.phase for status in self.statuses]


def wait_for(look, seconds=20):
    """What ``look`` returns as soon as it is something."""
    end = time.monotonic() + seconds
    while (found := look()) is None or found is False:
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)
    return found


def settle(watched: Watched) -> int:
    """How many frames wait when nothing moves any more."""
    wait_for(lambda: len(watched.feed.frames))
    time.sleep(0.2)
    return len(watched.feed.frames)


def test_frames_come_in_order_and_none_is_lost():
    with Watched() as watched:
        assert [read_number(watched.take()) for _ in range(50)] == [*range(50)]


def test_nothing_is_made_unless_someone_watches():
    with Watched(watched=False) as watched:
        wait_for(lambda: "ready" in watched.phases())
        time.sleep(0.2)
        assert len(watched.feed.frames) == 0 and not watched.feed.pipeline.blocks
        watched.feed.set_watched(True)
        watched.take()


@pytest.mark.parametrize("block_seconds", [0.0, 0.03])
def test_it_does_not_run_ahead(block_seconds):
    with Watched(painted(block_seconds)) as watched:
        assert settle(watched) <= 24
        made = len(watched.feed.pipeline.painted)
        taken = 0
        for _ in range(100):
            watched.take()
            taken += 1
            assert len(watched.feed.pipeline.painted) <= taken + 24
        assert made <= 24


def test_a_prompt_shows_in_the_next_block_that_begins():
    with Watched() as watched:
        settle(watched)
        waiting = len(watched.feed.frames)
        watched.feed.switch_prompt(BOAT)
        shown = [read_level(watched.take()) for _ in range(waiting + 1)]
        assert shown == [level("a fox")] * waiting + [level("a boat")]


def test_a_pause_holds_and_loses_nothing():
    with Watched() as watched:
        before = read_number(watched.take())
        watched.feed.set_paused(True)
        time.sleep(0.1)
        assert watched.feed.take() is None
        watched.feed.set_paused(False)
        assert read_number(watched.take()) == before + 1


def test_a_reset_drops_what_waits_and_what_is_being_made():
    with Watched(painted(0.3)) as watched:
        wait_for(lambda: len(watched.feed.frames))  # 9 wait
        for _ in range(9):
            watched.take()
        wait_for(lambda: len(watched.feed.pipeline.blocks) == 2)  # the second one has begun
        assert watched.feed.reset() == 0
        first = read_number(watched.take())
        assert first == 21 and watched.feed.pipeline.calls == ["reset"]
        assert [block.frames for block in watched.blocks] == [9, 12]


def test_a_reset_drops_frames_that_wait():
    with Watched() as watched:
        waiting = settle(watched)
        assert waiting > 0 and watched.feed.reset() == waiting
        assert read_number(watched.take()) == waiting


def test_a_reset_begins_another_scene_and_a_block_does_not():
    with Watched() as watched:
        scenes = [(watched.take(), watched.feed.frames.scene)[1] for _ in range(33)]
        assert len({*scenes}) == 1
        watched.feed.reset()
        assert (watched.take(), watched.feed.frames.scene)[1] == scenes[0] + 1
        assert {(watched.take(), watched.feed.frames.scene)[1] for _ in range(23)} == {scenes[0] + 1}


def test_whoever_keeps_frames_gets_all_that_were_made():
    """Those too that wait in vain, as a reset drops them."""
    kept = []
    worker = Worker(PAINTED)
    feed = Feed(worker, None, FOX, lambda status: None, lambda block: None, on_frames=kept.append)
    worker.add(feed)
    worker.start()
    feed.set_watched(True)
    wait_for(lambda: len(feed.frames) >= 9)
    feed.reset()
    wait_for(lambda: sum(map(len, kept)) >= 21)
    feed.set_paused(True)
    assert worker.stop(20)
    numbers = [read_number(frame) for frames in kept for frame in frames]
    assert numbers == [*range(len(numbers))]


def test_errors_are_told_and_outlived(monkeypatch):
    monkeypatch.setattr(making_module, "FIRST_DELAY", 0.01)
    with Watched() as watched:
        settle(watched)
        pipeline, failures = watched.feed.pipeline, iter(range(3))

        def fail():
            for i in failures:
                raise RuntimeError(f"device trouble {i}\nand a long explanation")

        pipeline.fail = fail
        numbers = [read_number(watched.take()) for _ in range(60)]
        assert numbers == [*range(60)]
        assert watched.phases() == ["ready", "trouble", "trouble", "trouble", "ready"]
        troubles = watched.statuses[1:4]
        assert [status.detail for status in troubles] == [f"device trouble {i}" for i in range(3)]
        assert [status.retry_in for status in troubles] == [0.01, 0.02, 0.04]
        # The first failure may be a passing one; after the second the stream is begun anew.
        assert pipeline.calls == ["reset", "reset"]


def test_a_model_that_does_not_load():
    def broken(progress):
        raise FileNotFoundError("model_path: no /nope")

    watched = Watched(broken)
    wait_for(lambda: watched.phases() == ["failed"])
    assert watched.statuses[0].detail == "model_path: no /nope" and isinstance(watched.worker.error, FileNotFoundError)
    wait_for(lambda: not watched.worker.alive)


def test_loading_says_how_far_it_is():
    loaded = threading.Event()

    def slow(progress):
        progress("generator", 3, 7)
        loaded.wait(20)
        return painted()(progress)

    with Watched(slow) as watched:
        wait_for(lambda: watched.worker.status.total == 7)
        assert watched.worker.status.phase == "loading" and watched.worker.status.detail == "generator"
        loaded.set()
        watched.take()


class Decoded(making_module.HostCopy):
    """A copy that is waited for as long as a block takes to decode."""

    seconds = 0.2

    def __init__(self, block):
        super().__init__(block)
        self.there_at = time.monotonic() + self.seconds

    def frames(self):
        time.sleep(max(0.0, self.there_at - time.monotonic()))
        return super().frames()


@pytest.fixture
def beside(monkeypatch):
    """Makes pipelines whose transformer takes so many seconds, and whose VAE, on a device of its own, as many."""

    def make(block_seconds: float = 0.2, speed: float = 25 / 16):
        monkeypatch.setattr(making_module, "HostCopy", Decoded)

        def load(progress):
            made = painted(block_seconds)(progress)
            made.engine.devices.async_vae = True
            made.config = dataclasses.replace(made.config, playback_speed=speed)
            return made

        return load

    return make


def test_a_block_begins_while_the_one_before_is_decoded(beside):
    """Blocks of 0.2 and 0.2 s, shown as fast as they come: nearly as many as if nothing was to be decoded."""
    with Watched(beside(speed=4.0)) as watched:
        started = time.monotonic()
        assert [read_number(watched.take()) for _ in range(9 + 9 * 12)] == [*range(9 + 9 * 12)]
        assert time.monotonic() - started < 0.8 * 10 * 0.4
        begun = [at for at, _ in watched.feed.pipeline.blocks]
        assert min(b - a for a, b in itertools.pairwise(begun)) >= 0.2  # two blocks are never made at once


def test_beside_decoding_it_does_not_run_ahead(beside):
    with Watched(beside(0.02)) as watched:
        assert settle(watched) <= 24
        for taken in range(1, 101):
            watched.take()
            assert len(watched.feed.pipeline.painted) <= taken + 36


def test_a_reset_drops_what_is_being_decoded(beside):
    with Watched(beside()) as watched:
        wait_for(lambda: len(watched.feed.frames))
        for _ in range(9):
            watched.take()
        wait_for(lambda: len(watched.feed.pipeline.painted) == 21)  # made, and not yet decoded
        watched.feed.reset()
        first = read_number(watched.take())
        assert first == 21 and watched.feed.pipeline.calls == ["reset"]


def test_a_decoding_that_fails_is_told_and_outlived(beside, monkeypatch):
    monkeypatch.setattr(making_module, "FIRST_DELAY", 0.01)
    with Watched(beside(0.02)) as watched:
        with monkeypatch.context() as patch:
            watched.take()
            patch.setattr(Decoded, "frames", lambda copy: 1 / 0)
            while "trouble" not in watched.phases():
                watched.feed.take()
        taken = len(watched.feed.frames)
        assert [watched.take().shape for _ in range(taken + 13)]
        assert watched.phases()[-1] == "ready" and watched.feed.frames.coming <= 12


def test_stop_does_not_wait_for_ever():
    watched = Watched(painted(1.0))
    wait_for(lambda: bool(watched.feed.pipeline and watched.feed.pipeline.blocks))
    assert not watched.worker.stop(0.05)
    assert watched.worker.stop(20) and watched.phases()[-1] == "stopped"


def test_frames_are_the_pipelines_own():
    """None is overwritten while it waits."""
    config = ScopeOptimizationConfig.preset_balanced(height=32, width=48)
    direct = OptimizedScopePipeline("tiny", config, device="cpu")
    wanted = np.concatenate([direct.generate_block(FOX.prompt).numpy() for _ in range(3)])
    with Watched(lambda progress: EngineSource("tiny", config, "cpu", progress)) as watched:
        taken = [watched.take() for _ in range(33)]
        wait_for(lambda: len(watched.blocks) > 3)
    assert np.array_equal(taken, wanted)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_frames_from_a_gpu_are_the_pipelines_own():
    config = ScopeOptimizationConfig.preset_balanced(height=64, width=96)
    direct = OptimizedScopePipeline("tiny", config, device="cuda")
    direct.warmup()
    wanted = np.concatenate([direct.generate_block(FOX.prompt).cpu().numpy() for _ in range(4)])
    with Watched(lambda progress: EngineSource("tiny", config, "cuda", progress)) as watched:
        assert np.array_equal([watched.take() for _ in range(45)], wanted)
        assert watched.phases() == ["warming up", "ready"]
        assert all(block.gpu_bytes > 0 for block in watched.blocks)


def test_the_overlay_is_drawn_on_request():
    with Watched() as watched:
        clean = watched.take()
        watched.feed.overlay = True
        marked = [watched.take() for _ in range(60)][-1]
        assert (clean[:, 64:] != marked[:, 64:]).sum() > 100


@pytest.mark.parametrize("watched", [True, False])
def test_a_rank_that_has_ended_fails_for_good(watched):
    """Whether a block finds out or nobody watches; there is no second try."""
    lost = RankError("rank 1 has ended")
    with Watched(watched=False) as seen:
        wait_for(lambda: "ready" in seen.phases())
        if watched:

            def fail():
                raise lost

            seen.feed.pipeline.fail = fail
            seen.feed.set_watched(True)
        else:
            seen.worker.give_up(lost)
        wait_for(lambda: "failed" in seen.phases())
        assert seen.worker.error is lost and seen.statuses[-1].detail == "rank 1 has ended"
