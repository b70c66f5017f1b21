"""One engine, many streams: whose turn it is, and that each is what it is alone."""

import contextlib
import math
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longlive_optimized.demo.scope_integration import OptimizedScopePipeline, ScopeOptimizationConfig
from longlive_optimized.demo.scope_integration.prompt_box import Prompt
from longlive_optimized.demo.server.admission import FULL, Admission, Costs, Kind, load, share
from longlive_optimized.demo.server.feed import Feed
from longlive_optimized.demo.server.making import Making
from longlive_optimized.demo.server.pacing import SLACK, shared_fps
from longlive_optimized.demo.server.source import EngineSource
from longlive_optimized.demo.server.worker import Worker
from longlive_optimized.engine.snapshot import Snapshot
from longlive_optimized.engine.timing import percentile
from support.painted import painted, read_number
from support.sink import Sink, fingerprint

WORDS = "circle", "square", "cross"
COLOURS = "red", "blue", "white"


@contextlib.contextmanager
def working(source):
    """A started worker of a loaded source."""
    worker = Worker(lambda progress: source)
    worker.start()
    try:
        while worker.status.phase != "ready":
            assert worker.error is None, worker.error
            time.sleep(0.002)
        yield worker
    finally:
        assert worker.stop(20)


def feed_of(worker: Worker, config=None, prompt: str = "a fox", **fields) -> Feed:
    """A feed that the worker has opened, with the statuses that it had."""
    statuses = []
    feed = Feed(worker, config, Prompt(prompt, "linear", 1), statuses.append, lambda block: None, **fields)
    feed.statuses = statuses
    worker.add(feed)
    return feed


def configs(count: int) -> list[tuple[ScopeOptimizationConfig, str]]:
    """Configs and prompts that differ in all that a stream has of its own."""
    presets = "balanced", "realtime", "ultra"
    sizes = (64, 96), (32, 48), (48, 64)
    found = []
    for i in range(count):
        height, width = sizes[i % 3]
        config = ScopeOptimizationConfig.preset(presets[i // 3 % 3], height=height, width=width, seed=100 * i)
        config = config.changed(playback_speed=4)  # as fast as can be
        found.append((config, f"a {COLOURS[i % 3]} {WORDS[i // 3 % 3]} moves left over a green field"))
    return found


def alone(source: EngineSource, config: ScopeOptimizationConfig, prompt: str, blocks: int, warm: bool) -> list[int]:
    """The frames of a stream that has the engine to itself."""
    pipeline = OptimizedScopePipeline.on(source.engine, config, warm=warm)
    return [fingerprint(frame.cpu().numpy()) for _ in range(blocks) for frame in pipeline.generate_block(prompt)]


def equal_alone(device: str, count: int, blocks: int) -> None:
    """Each of so many streams at once gives, bit for bit, what it gives alone."""
    base = ScopeOptimizationConfig.preset_balanced(height=64, width=96)
    frames = 9 + 12 * (blocks - 1)
    with working(EngineSource("tiny", base, device)) as worker, contextlib.ExitStack() as stack:
        sinks = [stack.enter_context(Sink(feed_of(worker, *wish))) for wish in configs(count)]
        for sink in sinks:
            sink.wait(frames)
    fresh = EngineSource("tiny", base, device)
    for i, (sink, wish) in enumerate(zip(sinks, configs(count), strict=True)):
        assert sink.prints[:frames] == alone(fresh, *wish, blocks, warm=i > 0)
    assert len({tuple(sink.prints[:frames]) for sink in sinks}) == count


def test_ten_streams_are_each_what_they_are_alone():
    equal_alone("cpu", count=10, blocks=3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_streams_on_a_gpu_are_each_what_they_are_alone():
    equal_alone("cuda", count=4, blocks=5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gets_its_memory_back_and_has_shown_what_it_can_do():
    base = ScopeOptimizationConfig.preset_balanced(height=64, width=96)
    with working(EngineSource("tiny", base, "cuda")) as worker:
        assert worker.costs.of(Kind.of(worker.source.config)) > 0  # from the warm-up on
        assert worker.has_memory_for(base)
        first = feed_of(worker)
        with Sink(first) as sink:
            sink.wait(24)
            before = torch.cuda.memory_allocated()
            second = feed_of(worker, *configs(2)[1])
            with Sink(second) as other:
                other.wait(60)
            assert torch.cuda.memory_allocated() > before
            worker.remove(second)
            while second.pipeline:
                time.sleep(0.002)
            gone = time.monotonic() + 10
            while torch.cuda.memory_allocated() > 1.1 * before and time.monotonic() < gone:
                time.sleep(0.01)
            assert torch.cuda.memory_allocated() <= 1.1 * before
            sink.wait(len(sink.shown) + 24)


def test_streams_that_fit_are_shown_evenly_whatever_their_number():
    """Four streams at 16 frames a second that take 80 % of the time together."""
    seconds = 12 / 16 * 0.2
    with working(painted(seconds)(None)) as worker, contextlib.ExitStack() as stack:
        sinks = [stack.enter_context(Sink(feed_of(worker))) for _ in range(4)]
        for sink in sinks:
            sink.wait(30)
        began = time.monotonic()
        time.sleep(4)
    for sink in sinks:
        assert percentile(sink.intervals(began), 0.97) < 1.5 / 16


def test_a_newcomer_whose_first_block_takes_long_makes_nobody_late():
    """On a GPU graphs are captured in it."""
    seconds = 12 / 16 * 0.2
    source = painted(seconds)(None)
    with working(source) as worker, contextlib.ExitStack() as stack:
        sinks = [stack.enter_context(Sink(feed_of(worker))) for _ in range(3)]
        for sink in sinks:
            sink.wait(60)
        opens, began = source.open, time.monotonic()

        def open_slowly(config):
            pipeline = opens(config)
            pipeline.fail = lambda: time.sleep(2 * seconds if len(pipeline.blocks) == 1 else 0)
            return pipeline

        source.open = open_slowly
        newcomer = stack.enter_context(Sink(feed_of(worker)))
        newcomer.wait(1, 4)
        time.sleep(2)
    for sink in sinks:
        assert percentile(sink.intervals(began), 0.97) < 1.5 / 16


def test_one_that_stood_still_goes_before_others_until_it_has_shown_a_frame():
    """A session of a server that is gone: who watches it has waited already."""
    with working(painted(0.001)(None)) as worker:
        prompt = Prompt("a fox", "linear", 1)
        newcomer, moved = (Feed(worker, None, prompt, lambda status: None, lambda block: None) for _ in range(2))
        moved.snapshot = Snapshot.__new__(Snapshot)
        for feed in (newcomer, moved):
            feed.set_watched(True)
        assert moved.deadline <= time.monotonic() < newcomer.deadline - 1
        for feed in (newcomer, moved):
            feed.open_with(Making(feed, worker, worker.source.open(worker.source.config)))
        assert moved.deadline <= time.monotonic() < newcomer.deadline - 1
        for feed in (newcomer, moved):
            feed.making.make_block()
            assert feed.take() is not None
            feed.set_watched(False)
            feed.set_watched(True)
        assert moved.deadline > time.monotonic() + 1


def test_the_time_is_shared_fairly_where_it_is_short():
    """Three streams that want twice what there is get the same, and lose no frame."""
    seconds, seen = 12 / 16 * 2 / 3, [[] for _ in range(3)]
    with working(painted(seconds)(None)) as worker, contextlib.ExitStack() as stack:
        sinks = [
            stack.enter_context(Sink(feed_of(worker), lambda frame, to=numbers: to.append(read_number(frame))))
            for numbers in seen
        ]
        for sink in sinks:
            sink.wait(24)
        began = time.monotonic()
        time.sleep(6)
    counts = [len(sink.intervals(began)) for sink in sinks]
    assert max(counts) < 1.25 * min(counts) and min(counts) > 6 * 8 * 0.8
    for numbers in seen:
        assert numbers == [*range(len(numbers))]


def test_one_that_fails_disturbs_no_other():
    with working(painted(0.02)(None)) as worker, contextlib.ExitStack() as stack:
        good, bad = feed_of(worker), feed_of(worker)
        numbers = []
        sink = stack.enter_context(Sink(good, lambda frame: numbers.append(read_number(frame))))
        other = stack.enter_context(Sink(bad))
        other.wait(9)

        def fail():
            raise RuntimeError("on purpose")

        bad.pipeline.fail = fail
        began = time.monotonic()
        sink.wait(len(numbers) + 75)
        assert [status.phase for status in bad.statuses][-2:] == ["trouble", "trouble"]
        assert [status.phase for status in good.statuses] == ["ready"]
        assert numbers == [*range(len(numbers))] and percentile(sink.intervals(began), 0.97) < 1.5 / 16
        bad.pipeline.fail = lambda: None
        bad._retry_at = time.monotonic()
        before = len(other.shown)
        good.set_paused(True)  # a change, so that the worker looks
        other.wait(before + 24)
        assert bad.statuses[-1].phase == "ready"


def test_one_that_cannot_be_opened_disturbs_no_other():
    source = painted(0.02)(None)
    with working(source) as worker, Sink(feed_of(worker)) as sink:
        sink.wait(12)
        opens = source.open
        source.open = lambda config: (_ for _ in ()).throw(ValueError("no memory for it\nand more"))
        bad = feed_of(worker)
        while not bad.statuses:
            time.sleep(0.002)
        assert (bad.status.phase, bad.status.detail) == ("failed", "no memory for it")
        assert not worker.has(bad)
        source.open = opens
        sink.wait(len(sink.shown) + 24)


def test_a_stream_that_is_closed_lets_go_of_everything_and_may_come_back():
    source = painted()(None)
    with working(source) as worker:
        feed = feed_of(worker)
        with Sink(feed) as sink:
            sink.wait(12)
        feed.configure(**feed.config_in_force.preset_fields("ultra"))
        feed.switch_prompt(Prompt("a boat", "linear", 1))
        worker.remove(feed)
        while feed.pipeline:
            time.sleep(0.002)
        assert len(feed.frames) == 0 and not worker.has(feed) and feed.take() is None
        worker.add(feed)
        with Sink(feed) as sink:
            sink.wait(12)
        assert len(source.opened) == 2 and source.opened[1].prompt == "a boat"


def test_a_preset_counts_from_when_it_is_wished_for():
    """The others make way for what it is known to take, before its first block."""
    with working(painted(0.05)(None)) as worker, contextlib.ExitStack() as stack:
        one, two = feed_of(worker), feed_of(worker)
        for feed in (one, two):
            stack.enter_context(Sink(feed)).wait(60)
        usual = worker.costs.of(one.kind)
        dear = Kind.of(one.config.changed(**one.config.preset_fields("speed")))
        worker.costs.note(dear, 20 * usual)
        before = worker.share
        one.configure(**one.config.preset_fields("speed"))
        assert one.kind == dear and one.frame_seconds == pytest.approx(20 * usual)
        assert worker.share < before and 1 / two.interval < 16 * 0.95
        one.configure(**one.config.preset_fields("balanced"))
        assert one.frame_seconds == pytest.approx(usual, rel=0.5)


def test_nobodys_stream_is_not_made_and_a_paused_one_neither():
    with working(painted()(None)) as worker:
        idle, paused = feed_of(worker), feed_of(worker)
        paused.set_paused(True)
        paused.set_watched(True)
        with Sink(feed_of(worker)) as sink:
            sink.wait(30)
        assert not idle.pipeline.blocks and not paused.pipeline.blocks
        assert worker.share == math.inf  # nobody watches any more


RATES = st.lists(st.tuples(st.floats(0.001, 0.2), st.sampled_from([16, 20, 25, 40])), min_size=1, max_size=8)


@given(RATES)
def test_shares_are_max_min_fair(streams):
    """No more than there is; none more than it wants; nothing left over while one wants more."""
    level = shared_fps(streams)
    rates = [min(fps, level) for _, fps in streams]
    used = SLACK * sum(seconds * rate for (seconds, _), rate in zip(streams, rates, strict=True))
    assert used <= 1 + 1e-9
    assert used > 1 - 1e-9 or all(rate == fps for (_, fps), rate in zip(streams, rates, strict=True))


def test_shares_of_nobody_and_of_what_takes_no_time():
    assert shared_fps([]) == math.inf and shared_fps([(0.0, 25), (0.0, 40)]) == math.inf


SHARES = st.floats(0.01, 0.9)


@given(st.lists(SHARES, max_size=12), SHARES)
def test_admission_keeps_its_promise(others, one):
    """Who is let in beside others leaves time for all at their speed."""
    if Admission("auto").fits(others, one):
        assert not others or sum(others) + one <= FULL + 1e-9
    assert Admission("auto").fits([], one) and not Admission("auto").fits([one, None], one)


def test_admission_by_number_asks_for_no_times():
    assert Admission(2).fits([None], None) and not Admission(2).fits([None, None], 0.001)
    assert Admission(1).may_change([1.0], 0.1, 9.0)


def test_what_costs_the_others_their_rate_is_not_given():
    half = FULL / 2
    assert Admission("auto").may_change([half], half / 2, half)
    assert not Admission("auto").may_change([half], half / 2, 1.1 * half)
    assert Admission("auto").may_change([half], 1.2 * half, 1.1 * half)  # it takes less than before
    assert Admission("auto").may_change([], half, 9.0)  # there is nobody else


def test_a_share_is_what_the_speed_asks_for():
    assert share(0.025, 16) == pytest.approx(0.4) and share(0.025, 32) == pytest.approx(0.8) and share(None, 16) is None
    assert load([0.4, 0.5]) == pytest.approx(0.9) and load([0.1, None]) == math.inf and load([]) == 0


def test_what_was_not_measured_is_taken_from_what_is_like_it():
    costs, config = Costs(), ScopeOptimizationConfig.preset_balanced()
    assert costs.of(Kind.of(config)) is None
    costs.note(Kind.of(config), 0.025)
    small = ScopeOptimizationConfig.preset_balanced(height=240, width=416)
    assert costs.of(Kind.of(small)) == pytest.approx(0.025 / 4)
    short = ScopeOptimizationConfig.preset_realtime()
    assert costs.of(Kind.of(short)) == pytest.approx(0.025 * 4 / 5)
    costs.note(Kind.of(small), 0.008)
    assert costs.of(Kind.of(small)) == 0.008  # measured


def test_a_first_block_in_which_kernels_compile_is_not_what_a_kind_costs():
    costs, kind = Costs(), Kind.of(ScopeOptimizationConfig.preset_balanced())
    for seconds in (1.5, 0.0101, 0.0102):
        costs.note(kind, seconds)
    assert costs.of(kind) == 0.0102
    for seconds in (0.0100, 0.3, 0.0103, 0.0104):  # a stall neither
        costs.note(kind, seconds)
    assert costs.of(kind) < 0.011
    for _ in range(9):  # it has become slower, as where others use the device, too
        costs.note(kind, 0.02)
    assert costs.of(kind) == 0.02


@pytest.mark.parametrize("slow", [1, 3, 4])
def test_first_blocks_that_compile_hold_no_newcomer_off(slow):
    """They take eight times as long: two blocks after the last of the four it is known what a stream costs."""
    usual = 12 / 16 * 0.15
    source = painted(usual)(None)
    opens = source.open

    def open_slowly(config):
        pipeline = opens(config)
        pipeline.fail = lambda: time.sleep(7 * usual if len(pipeline.blocks) <= slow else 0)
        return pipeline

    source.open = open_slowly
    with working(source) as worker, Sink(feed := feed_of(worker)) as sink:
        sink.wait(9 + 5 * 12 + 1)  # the sixth is made
        assert feed.share == pytest.approx(0.15, rel=0.2)
        one = share(worker.costs.of(feed.kind), 16)
        assert [Admission("auto").fits([feed.share] * count, one) for count in (4, 7)] == [True, False]


def test_a_faster_world_counts_more_at_once():
    with working(painted(0.05)(None)) as worker, contextlib.ExitStack() as stack:
        one, two = feed_of(worker), feed_of(worker)
        for feed in (one, two):
            stack.enter_context(Sink(feed)).wait(70)
        before = one.share
        assert one.interval == pytest.approx(1 / 16)
        one.configure(playback_speed=2)
        assert one.share == pytest.approx(2 * before, rel=0.1) and one.interval == pytest.approx(1 / 32)
        assert one.share_with(one.config_wished_for.changed(playback_speed=0.5)) == pytest.approx(before / 2, rel=0.1)
        for speed in (4, 1):
            one.configure(playback_speed=speed)
            two.configure(playback_speed=speed)
        assert one.interval == two.interval == pytest.approx(1 / 16)


def test_settings_that_come_together_all_count():
    """Each before the next block, and none undoes another."""
    with working(painted(0.02)(None)) as worker, Sink(feed_of(worker)) as sink:
        feed = sink._feed
        sink.wait(12)
        feed.set_paused(True)
        feed.configure(**feed.config_in_force.preset_fields("ultra"))
        feed.configure(playback_speed=2.0)
        feed.configure(interpolation="blend", shown_fps=48)
        wished = feed.config_wished_for
        assert (wished.denoising_steps, wished.model_fps, wished.picture_fps) == ((1000, 250), 32, 48)
        with pytest.raises(ValueError, match="playback_speed"):
            feed.configure(playback_speed=5.0)
        feed.configure(interpolation="none")
        assert feed.config_wished_for.picture_fps is None and feed.config_wished_for.model_fps == 32
