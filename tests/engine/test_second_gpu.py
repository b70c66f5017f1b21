"""The VAE and the text encoder beside the transformer: on a second GPU, and on one GPU in CUDA streams of their own.

A place is made slow by kernels that only wait: an order that is lost then shows in the video, and a wait that nobody
needs in the time.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import threading
import time
from collections.abc import Callable

import pytest
import torch

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig, cli
from longlive_optimized.demo.scope_integration import (
    OptimizedScopePipeline,
    ScopeOptimizationConfig,
    create_optimized_scope_pipeline,
)
from longlive_optimized.demo.scope_integration.prompt_box import Prompt
from longlive_optimized.demo.server.feed import Feed
from longlive_optimized.demo.server.source import EngineSource
from longlive_optimized.demo.server.worker import Worker
from longlive_optimized.engine import devices as devices_module
from longlive_optimized.engine.host_copy import HostCopy
from longlive_optimized.engine.latency import LatencyMeter
from longlive_optimized.model.config import ModelConfig
from longlive_optimized.vae.config import VaeConfig
from longlive_optimized.weights import random_checkpoint
from support.wishes import BOAT, FOX, every_kind, noise, play

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
SLOW = 0.1  # seconds that a slow place takes longer for a block
WIDE = ModelConfig(dim=384, ffn_dim=1056, num_heads=3, num_layers=3, text_dim=64, text_len=40)


@pytest.fixture(params=["one GPU", pytest.param("two GPUs", marks=TWO)])
def apart(request, monkeypatch) -> Callable[..., LongLiveEngine]:
    """Makes engines whose VAE and text encoder have an order of their own."""

    def make(model="tiny", **changes) -> LongLiveEngine:
        if request.param == "two GPUs":
            return engine(model, vae_device="cuda:1", text_device="cuda:1", **changes)
        with monkeypatch.context() as patch:
            patch.setattr(devices_module, "_apart", lambda device, other: device.type == "cuda")
            return engine(model, **changes)

    return make


def engine(model="tiny", vae_device=None, text_device=None, **changes) -> LongLiveEngine:
    config = OptimizationConfig(**{"height": 64, "width": 96, **changes})
    return LongLiveEngine(model, config, "cuda:0", vae_device=vae_device, text_device=text_device)


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory):
    """A small transformer with the VAE of full width, which runs on our convolutions and in graphs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(random_checkpoint._CONFIGS, "tiny", (WIDE, VaeConfig(), 8))
        yield random_checkpoint.make_checkpoint(tmp_path_factory.mktemp("wide") / "model", "tiny")


@pytest.fixture(scope="module")
def cycles() -> int:
    """Of a kernel that only waits, for ``SLOW`` seconds."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(1_000_000)
    start.record()
    torch.cuda._sleep(20_000_000)
    end.record()
    end.synchronize()
    return int(20_000_000 * SLOW * 1e3 / start.elapsed_time(end))


def slow(made: LongLiveEngine, cycles: int, *places: str) -> None:
    """Let work at these places of an engine's stream take longer: what comes before it, and what comes behind it."""
    stream = made.stream
    owners = {
        "model": (stream.passes, "denoise"),
        "decoder": (stream.decoder, "decode_uint8"),
        "encoder": (stream.encoder, "encode"),
        "text": (made.text, "encode"),
    }
    for place in places:
        owner, name = owners[place]
        setattr(owner, name, _between(getattr(owner, name), cycles // 2))


def _between(real: Callable, cycles: int) -> Callable:
    def work(*args, **how):
        torch.cuda._sleep(cycles)
        result = real(*args, **how)
        torch.cuda._sleep(cycles)
        return result

    return work


class Gate:
    """Holds what is enqueued on a CUDA stream behind it until it is opened."""

    def __init__(self) -> None:
        self._flag = torch.zeros(1, dtype=torch.int32).pin_memory()

    def hold(self, stream: torch.cuda.Stream) -> None:
        """By a wait for a value in memory: it takes no part of the GPU."""
        wait = ctypes.CDLL("libcuda.so.1").cuStreamWaitValue32_v2
        with torch.cuda.device(stream.device):
            error = wait(*map(ctypes.c_void_p, (stream.cuda_stream, self._flag.data_ptr())), 1, 0)  # 0: at least
        assert error == 0

    def open(self) -> None:
        self._flag.fill_(1)


CHANGES = {
    "bf16": {},
    "int8": {"precision": "int8"},
    "int8, its VAE too": {"precision": "int8", "vae_precision": "int8"},
    "low_memory": {"precision": "int8", "low_memory": True},
    "eager": {"use_cuda_graphs": False},
    "float32": {"model_dtype": "float32"},
    "parked": {"text_residence": "parked", "text_precision": "int8"},
    "control": {"control": True},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_the_same_video_bit_for_bit(changes, apart):
    wishes, plain, beside = every_kind(noise(64, 96), "control" in changes), engine(**changes), apart(**changes)
    wanted = play(plain, wishes)
    for _ in range(2):  # then from graphs all the way
        assert all(map(torch.equal, wanted, play(beside, wishes)))
    assert beside.stream.fallback_blocks == 0 and beside.stream.cuda_graphs_active == plain.stream.cuda_graphs_active


@pytest.mark.parametrize("place", ["model", "decoder", "encoder", "text"])
def test_no_order_is_lost_where_one_is_slow(place, apart, cycles):
    wishes, plain, beside = every_kind(noise(64, 96), control=False), engine(), apart()
    wanted = play(plain, wishes)
    beside.warmup()
    slow(beside, cycles, place)
    for _ in range(2):
        assert all(map(torch.equal, wanted, play(beside, wishes)))


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_our_convolutions_and_their_graphs(precision, wide_model, apart, cycles):
    how = {"precision": precision, "model_dtype": "bfloat16"}
    wishes, plain, beside = (
        every_kind(noise(64, 96), control=False),
        engine(wide_model, **how),
        apart(wide_model, **how),
    )
    wanted = play(plain, wishes)
    assert all(map(torch.equal, wanted, play(beside, wishes)))
    slow(beside, cycles, "decoder")
    assert all(map(torch.equal, wanted, play(beside, wishes)))
    side = beside.stream.decoder._side
    if beside.codec.copies:
        assert side.graphs.captured > 0 and not side.graphs.failed
        assert {pool.tensor.device for pool in side.pools} == {beside.devices.vae}


@pytest.mark.parametrize("caller", ["model", "vae", "host"])
def test_frames_of_the_callers_are_read_in_its_order(caller, apart, cycles):
    """On either GPU, where they are still being written, and written over at once afterwards."""
    plain, beside, frames = engine(), apart(), noise(64, 96)
    device = {"model": beside.devices.model, "vae": beside.devices.vae, "host": "cpu"}[caller]
    wanted = [plain.generate_block(BlockRequest(FOX, video=frames, noise_scale=0.3)).cpu() for _ in range(3)]
    source, made = frames.to(device), []
    given = torch.zeros_like(source)
    for _ in range(3):
        with torch.cuda.device(device) if given.is_cuda else contextlib.nullcontext():
            if given.is_cuda:
                torch.cuda._sleep(cycles // 4)
            given.copy_(source)
        made.append(beside.generate_block(BlockRequest(FOX, video=given, noise_scale=0.3)))
        given.zero_()
    assert all(torch.equal(a, b.cpu()) for a, b in zip(wanted, made, strict=True))


def test_the_callers_stream_and_device_stay(apart):
    plain, beside = engine(), apart()
    last = torch.cuda.device_count() - 1
    with torch.cuda.device(last), torch.cuda.stream(torch.cuda.Stream("cuda:0")):
        before = torch.cuda.current_stream(), torch.cuda.current_device()
        made = play(beside, [BlockRequest(FOX), BlockRequest(BOAT)])
        assert (torch.cuda.current_stream(), torch.cuda.current_device()) == before
    assert all(map(torch.equal, play(plain, [BlockRequest(FOX), BlockRequest(BOAT)]), made))


def test_two_streams_take_turns(apart, cycles):
    plain, beside = engine(), apart()
    slow(beside, cycles, "decoder")
    others = plain.open_stream(seed=5), beside.open_stream(seed=5)
    made = [[], []]
    for _ in range(3):
        for found, each, other in zip(made, (plain, beside), others, strict=True):
            found += [each.generate_block(BlockRequest(FOX)), each.generate_block(BlockRequest(BOAT), other)]
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(*made, strict=True))


def test_another_vae_is_beside_it_too(apart):
    plain, beside = engine(), apart()
    for each in (plain, beside):
        each.generate_block(BlockRequest(FOX))
        each.use_vae("tae")
    video = [BlockRequest(FOX), BlockRequest(FOX), BlockRequest(FOX, video=noise(64, 96), noise_scale=0.5)]
    assert all(map(torch.equal, play(plain, video), play(beside, video)))


# Who waits for whom.

WAYS = {
    "a prompt": lambda i: BlockRequest(FOX),
    "another prompt each": lambda i: BlockRequest(f"a fox, picture {i}"),
    "video": lambda i: BlockRequest(FOX, video=noise(64, 96), noise_scale=0.7),
    "how it moves": lambda i: BlockRequest(FOX, video=noise(64, 96), noise_from_motion=True),
}


def ready(made: LongLiveEngine) -> None:
    """Everything has been captured, video input too."""
    made.warmup()
    for i in range(3):
        for way in WAYS.values():
            made.generate_block(way(100 + i))
    made.reset()
    made.synchronize()


@TWO
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_the_transformer_does_not_wait_for_the_decoder(way, precision, wide_model):
    """Nor does the host: the next block's latents are there while the first is still to be decoded. On one GPU the
    caller's CUDA stream, which is the transformer's, waits for the frames.

    With graphs: of eager kernels that wait for the device, CUDA takes a thousand, and then the host waits.
    """
    beside = engine(wide_model, vae_device="cuda:1", text_device="cuda:1", precision=precision)
    ready(beside)
    gate = Gate()
    gave_up = threading.Timer(20, gate.open)
    gave_up.start()
    gate.hold(beside.devices.at_decoder.cuda_stream)
    for i in range(2):
        beside.generate_block(WAYS[way](i))
        torch.cuda.current_stream(beside.device).synchronize()
    waited = not gave_up.is_alive()
    gate.open()
    gave_up.cancel()
    beside.synchronize()
    assert not waited


def test_a_block_takes_what_the_slower_place_takes(apart, cycles):
    beside = apart()
    ready(beside)
    slow(beside, cycles, "model", "decoder")
    for _ in range(8):
        beside.generate_block(BlockRequest(FOX))
    beside.synchronize()
    times = beside.block_times()[-8:]
    for each in times:
        assert each.total == pytest.approx(sum(each.stages.values())) and each.stages["decode"] >= 0.9e3 * SLOW
        assert each.interval == pytest.approx(max(each.stages["decode"], each.total - each.stages["decode"]))
    assert LatencyMeter(beside).stats().block_ms == pytest.approx(times[-1].interval)


def test_a_reader_one_block_late_waits_for_its_block_alone(apart, cycles):
    beside = apart()
    ready(beside)
    wanted = play(beside, [BlockRequest(FOX)] * 4)
    beside.reset()
    slow(beside, cycles, "decoder")
    copies, made = [], []
    for _ in range(4):
        copies.append(HostCopy(beside.generate_block(BlockRequest(FOX))))
        if len(copies) > 1:
            made.append(torch.from_numpy(copies[-2].frames()))
            assert not copies[-1]._copied.query()
    made.append(torch.from_numpy(copies[-1].frames()))
    assert all(map(torch.equal, wanted, made))


# Two GPUs.


@TWO
@pytest.mark.parametrize("residence", ["gpu", "parked"])
def test_each_part_lies_on_its_own_gpu(residence):
    made = engine(vae_device="cuda:1", text_device="cuda:1", text_residence=residence)
    second = torch.device("cuda", 1)
    assert made.generate_block(BlockRequest(FOX)).device == second and made.stream.history.device == made.device
    assert made.prompts.get(FOX).device == made.device == torch.device("cuda", 0)
    assert made.codec.device == second and made.devices.text == second
    stats = LatencyMeter(made).stats()
    assert stats.async_vae_active and stats.text_residence == residence
    assert not LatencyMeter(engine(text_device="cuda:1")).stats().async_vae_active


@TWO
def test_the_transformer_may_be_on_the_second():
    wishes = every_kind(noise(64, 96), control=False)
    config = OptimizationConfig(height=64, width=96)
    other = LongLiveEngine("tiny", config, "cuda:1", vae_device="cuda:0")
    assert all(map(torch.equal, play(engine(), wishes), play(other, wishes)))


@TWO
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_gpus_take_what_the_plan_says(precision):
    """Never more, on each of them."""
    gc.collect(), torch.cuda.empty_cache()
    for device in range(2):
        torch.cuda.synchronize(device), torch.cuda.reset_peak_memory_stats(device)
    before = [torch.cuda.memory_allocated(device) for device in range(2)]
    made = engine(vae_device="cuda:1", text_device="cuda:1", height=320, width=576, precision=precision)
    for prompt in (FOX, FOX, FOX, FOX, BOAT, FOX):  # a recache of a whole window among them
        made.generate_block(BlockRequest(prompt))
    made.synchronize()
    taken = [torch.cuda.max_memory_allocated(device) - n for device, n in enumerate(before)]
    shares = made.memory_plan.devices
    assert [share.device.index for share in shares] == [0, 1]
    assert all(0 < mine <= share.allocated for mine, share in zip(taken, shares, strict=True))


@TWO
def test_a_pipelines_frames_and_its_overlay():
    fields = {"height": 64, "width": 96, "drop_frames_on_lag": False, "prompt_debounce_ms": 0}
    plain = create_optimized_scope_pipeline("tiny", "balanced", "cuda:0", **fields)
    beside = create_optimized_scope_pipeline("tiny", "balanced", "cuda:0", "cuda:1", "cuda:1", **fields)
    made = []
    for pipeline in (plain, beside):
        frames = [pipeline.generate_frame(FOX) for _ in range(10)]
        pipeline.switch_prompt(BOAT)
        frames += [pipeline.next_frame() for _ in range(24)]
        made.append(torch.stack(frames).cpu())
    assert torch.equal(*made) and frames[0].device == torch.device("cuda", 1)
    stats = beside.get_latency_stats()
    drawn = beside.overlay.apply(frames[0].clone(), stats)
    assert stats["async_vae_active"] and drawn.device == frames[0].device and not torch.equal(drawn, frames[0])


@TWO
def test_generate_says_what_overlapped(tmp_path, monkeypatch):
    call = ["longlive-optimized", "generate", "--prompt", FOX, "--seconds", "3", "--overlay", "--device", "cuda:0"]
    call += ["--vae-device", "cuda:1", "--out", str(tmp_path / "x.mp4"), "--json", str(tmp_path / "x.json")]
    monkeypatch.setattr("sys.argv", call)
    with contextlib.suppress(SystemExit):
        cli.main()
    report = json.loads((tmp_path / "x.json").read_text())
    assert report["async_vae_active"] and [block["frames"] for block in report["blocks"]] == [9, 12, 12, 12, 12]
    assert all(block["interval"] < block["total"] for block in report["blocks"])


@TWO
def test_the_server_shows_every_frame_once():
    config = ScopeOptimizationConfig.preset_balanced(height=64, width=96)
    direct = OptimizedScopePipeline("tiny", config, "cuda:0")
    direct.warmup()
    wanted = torch.cat([direct.generate_block(FOX).cpu() for _ in range(6)])
    blocks = []

    worker = Worker(lambda progress: EngineSource("tiny", config, "cuda:0", progress, "cuda:1", "cuda:1"))
    feed = Feed(worker, None, Prompt(FOX, "linear", 1), lambda status: None, blocks.append)
    worker.add(feed)
    worker.start()
    feed.set_watched(True)
    try:
        taken, end = [], time.monotonic() + 60
        while len(taken) < len(wanted) and time.monotonic() < end:
            frame = feed.take()
            if frame is None:
                time.sleep(0.001)
            else:
                taken.append(torch.from_numpy(frame))
    finally:
        assert worker.stop(20)
    assert torch.equal(torch.stack(taken), wanted) and feed.stats["async_vae_active"]
    assert all(block.gpu_bytes > 0 for block in blocks)
