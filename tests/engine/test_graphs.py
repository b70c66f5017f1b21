"""Replayed passes against the same passes run one by one, bit for bit."""

import gc
import threading
import warnings

import pytest
import torch
from safetensors.torch import save_file

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.engine.graphs import GraphCache, GraphSwitch
from longlive_optimized.kernels.registry import backend
from longlive_optimized.weights.user_lora import UserLora

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
LORA_SHAPES = {"A": (2, 448), "B": (256, 2)}
PROMPTS = ["a fox"] * 3 + ["a boat"] * 4 + ["a storm"] * 3


def engine(**changes) -> LongLiveEngine:
    return LongLiveEngine("tiny", OptimizationConfig(**{"height": 64, "width": 96, **changes}), device="cuda")


def video(engine, prompts=PROMPTS, **wishes) -> torch.Tensor:
    return torch.cat([engine.generate_block(BlockRequest(prompt, **wishes)).cpu() for prompt in prompts])


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": "relative"},
        {"positions": "base"},
        {"model_dtype": "float32"},
        {"low_memory": True},
        {"low_memory": True, "precision": "int8"},
        {"precision": "int8"},
        {"precision": "int8", "positions": "base"},
        {"precision": "int8", "model_dtype": "float32"},
        {"precision": "int8", "sink_size": 6},
        {"precision": "int8", "sink_size": 0},
        {"precision": "int8", "global_sink": False},
        {"precision": "int8", "width": 80},  # 20 tokens a frame, so that attention is in the model's dtype
    ],
    ids=str,
)
def test_a_graph_equals_eager_bit_for_bit(changes):
    graphed, eager = engine(**changes), engine(**changes, use_cuda_graphs=False)
    expected = video(eager)
    assert torch.equal(video(graphed), expected)  # captures on the way
    graphed.reset()
    assert torch.equal(video(graphed), expected)  # replays all the way
    assert graphed.stream.cuda_graphs_active and not eager.stream.cuda_graphs_active
    assert graphed.stream.fallback_blocks == eager.stream.fallback_blocks == 0
    if "precision" in changes:
        assert graphed.stream.precision == ("int8" if graphed.stream.ring.holds_int8 else "int8 products")


def test_graphs_go_and_come_while_a_stream_runs():
    graphed, eager = engine(), engine(use_cuda_graphs=False)
    expected = [video(eager) for _ in range(3)]
    got = [video(graphed)]
    torch.cuda.empty_cache()
    reserved = torch.cuda.memory_reserved()
    for on in (False, True):
        graphed.configure(use_cuda_graphs=on)
        torch._C._cuda_clearCublasWorkspaces()  # that of the capture's stream lies in the graphs' pool
        torch.cuda.empty_cache()
        assert graphed.stream.passes.graphs.captured == 0 and torch.cuda.memory_reserved() < reserved
        got.append(video(graphed))
        assert graphed.stream.cuda_graphs_active == on
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("name", ["reference", "library", "triton"])
def test_every_backend_makes_a_video(name, precision):
    with backend(name):
        made = engine(precision=precision)
        assert video(made, ["a fox", "a fox", "a boat"]).shape == (9 + 12 + 12, 64, 96, 3)
        assert made.stream.precision == precision and made.stream.fallback_blocks == 0


@pytest.mark.parametrize(("precision", "other_windows"), [("bf16", [9]), ("int8", [])])
def test_a_warm_engine_captures_nothing_new(precision, other_windows):
    graphed = engine(precision=precision)
    graphed.warmup()
    before = graphed.stream.passes.graphs.captured
    video(graphed)  # switches its prompt within the first window, and later
    for window in other_windows:
        graphed.configure(local_attn_size=window)
        video(graphed)
    assert graphed.stream.passes.graphs.captured == before


def test_step_values_change_without_a_new_graph():
    graphed, eager = engine(), engine(use_cuda_graphs=False)
    video(graphed)
    captured = graphed.stream.passes.graphs.captured
    for e in (graphed, eager):
        e.reset()
    steps = {"denoising_steps": (1000, 700, 400, 100)}
    assert torch.equal(video(graphed, **steps), video(eager, **steps))
    assert graphed.stream.passes.graphs.captured == captured


def test_video_input_and_presets():
    graphed, eager = engine(), engine(use_cuda_graphs=False)
    frames = torch.randint(0, 256, (12, 64, 96, 3), dtype=torch.uint8)
    assert torch.equal(*(video(e, video=frames) for e in (graphed, eager)))
    for e in (graphed, eager):
        e.reset()
        video(e)
        e.configure(local_attn_size=9, denoising_steps=(1000, 500, 250))
    assert torch.equal(video(graphed), video(eager))
    captured = graphed.stream.passes.graphs.captured
    for window, more in ((12, 0), (9, 0), (15, 3)):  # the last in a new ring, in new buffers
        for e in (graphed, eager):
            e.configure(local_attn_size=window)
        assert torch.equal(video(graphed), video(eager))
        assert graphed.stream.cuda_graphs_active and graphed.stream.passes.graphs.captured >= more
        if not more:
            assert graphed.stream.passes.graphs.captured == captured


def test_streams_have_graphs_of_their_own():
    graphed = engine()
    alone = video(graphed)
    other = graphed.open_stream(seed=7)
    graphed.reset()
    mixed = []
    for prompt in PROMPTS:
        mixed.append(graphed.generate_block(BlockRequest(prompt)).cpu())
        graphed.generate_block(BlockRequest("noise"), other)
    assert torch.equal(torch.cat(mixed), alone)


def test_work_whose_kernels_have_run_is_captured_at_once():
    """Once on the host instead of twice, with the same result."""
    device, loaded, runs = torch.device("cuda"), set(), []
    numbers = torch.zeros(3, device=device)

    def work(place):
        runs.append(place)
        numbers[place].add_(1)

    first, second = (GraphCache(GraphSwitch(device, loaded)) for _ in range(2))
    first.run("a", lambda: work(0), "kernels")
    assert runs == [0, 0]  # as it is, and for the graph
    second.run("b", lambda: work(1), "kernels")
    assert runs == [0, 0, 1]
    for cache, key in ((first, "a"), (second, "b")):
        cache.run(key, lambda: work(2), "kernels")
    assert runs == [0, 0, 1] and numbers.tolist() == [2, 2, 0]


@pytest.mark.parametrize(("error", "failures"), [(RuntimeError, 1), (torch.OutOfMemoryError, 2)])
def test_a_capture_that_fails_once_is_tried_again(error, failures):
    """Kernels that this thread had not loaded yet, or a cache that was full: then the work runs as it is first."""
    number, left = torch.zeros(1, device="cuda"), [failures]

    def work():
        number.add_(1)
        if torch.cuda.is_current_stream_capturing() and left[0]:
            left[0] -= 1
            raise error("not yet")

    cache = GraphCache(GraphSwitch(torch.device("cuda"), {"kernels"}))
    cache.run("key", work, "kernels")
    assert number.item() == 1 and cache.captured == 1 and not cache.failed
    cache.run("key", work, "kernels")
    assert number.item() == 2


def test_a_capture_that_fails_again_is_given_up():
    number, cache = torch.zeros(1, device="cuda"), GraphCache(GraphSwitch(torch.device("cuda"), {"kernels"}))

    def work():
        number.add_(1)
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("not while capturing")

    for _ in range(2):
        cache.run("key", work, "kernels")
    assert cache.failed and number.item() == 2


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_fewer_steps_than_ever_are_captured_too(name):
    with backend(name):
        graphed, eager = engine(), engine(use_cuda_graphs=False)
        for steps in ((1000, 750, 500, 250), (1000, 250), (1000,)):
            assert torch.equal(*(video(e, denoising_steps=steps) for e in (graphed, eager)))
    assert graphed.stream.cuda_graphs_active


def test_another_thread_captures_and_replays():
    """Libraries have handles and plans of each thread: the first one's are of no use to the second."""
    graphed = engine()
    graphed.warmup()
    other, made = graphed.open_stream(), []

    def work():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            made.extend(graphed.generate_block(BlockRequest(prompt), other) for prompt in PROMPTS)
            other.configure(local_attn_size=15)
            made.extend(graphed.generate_block(BlockRequest(prompt), other) for prompt in PROMPTS)
        stream.synchronize()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    alone = video(graphed)
    assert len(made) == 2 * len(PROMPTS) and torch.equal(torch.cat(made[: len(PROMPTS)]).cpu(), alone)
    assert other.cuda_graphs_active


def test_a_failed_capture_goes_on_eagerly(monkeypatch, caplog):
    graphed, eager = engine(), engine(use_cuda_graphs=False)

    def refuse(*args, **kwargs):
        raise RuntimeError("no capture today")

    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", refuse)
    assert torch.equal(video(graphed), video(eager))
    assert not graphed.stream.cuda_graphs_active and "no capture today" in caplog.text


def waits(call) -> int:
    """How often the host waits for the device in ``call()``."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(each.message) for each in said)


@pytest.mark.parametrize(("precision", "times"), [("bf16", 0), ("int8", 1)])
def test_how_often_a_block_waits_for_the_device(precision, times):
    """In 8 bits once, to see that it is finite; no more when the steps change."""
    graphed = engine(precision=precision)
    graphed.warmup()
    for _ in range(6):
        graphed.generate_block(BlockRequest("a fox"))
    for step in (750, 700, 600):
        request = BlockRequest("a fox", denoising_steps=(1000, step, 500, 250))
        assert waits(lambda request=request: graphed.generate_block(request)) == times


def test_five_thousand_blocks_neither_drift_nor_grow():
    graphed = LongLiveEngine("tiny", OptimizationConfig(height=32, width=48, positions="relative"), device="cuda")
    seen = []
    for block in range(5000):
        frames = graphed.generate_block(BlockRequest("a fox"))
        if block % 1000 == 99:
            assert frames.float().std() > 0
            seen.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert len(seen) == 5 and len(set(seen)) == 1
    assert graphed.stream.position == 15000 and graphed.stream.history.isfinite().all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_an_engine_on_the_second_gpu_works_there():
    config = OptimizationConfig(height=64, width=96)
    first, second = (LongLiveEngine("tiny", config, device=f"cuda:{i}") for i in range(2))
    both = [[e.generate_block(BlockRequest(prompt)) for e in (first, second)] for prompt in PROMPTS]
    assert all(b.device.index == 1 and torch.equal(a.cpu(), b.cpu()) for a, b in both)
    assert second.stream.cuda_graphs_active and torch.cuda.current_device() == 0


def test_graphs_of_both_precisions_lie_beside_each_other():
    """And none is captured twice, however often the precision changes."""
    graphed, eager = engine(precision="int8"), engine(precision="int8", use_cuda_graphs=False)
    graphed.warmup()
    captured = []
    for precision in ("int8", "bf16", "int8", "bf16", "int8"):
        for e in (graphed, eager):
            e.configure(precision=precision)
        assert torch.equal(video(graphed), video(eager))
        captured.append(graphed.stream.passes.graphs.captured)
    assert captured[1:] == [captured[1]] * 4


@pytest.mark.parametrize("low_memory", [False, True])
def test_other_weights_reach_captured_8_bit_passes(tmp_path, low_memory):
    """The graphs read the int8 weights where they were when they were captured."""
    pair = {f"blocks.1.ffn.2.lora_{half}.weight": torch.randn(shape) / 8 for half, shape in LORA_SHAPES.items()}
    save_file(pair, tmp_path / "style.safetensors")
    config = OptimizationConfig(height=64, width=96, precision="int8", low_memory=low_memory)
    graphed, loaded = (
        LongLiveEngine("tiny", config, "cuda", loras=[UserLora(tmp_path / "style.safetensors", scale)])
        for scale in (0.0, 1.0)
    )
    graphed.warmup()
    graphed.set_loras([UserLora(tmp_path / "style.safetensors", 1.0)])
    assert torch.equal(video(graphed), video(loaded))


def test_a_block_made_again_is_made_from_graphs_too():
    graphed, eager = engine(precision="int8"), engine(precision="int8", use_cuda_graphs=False)
    graphed.warmup(), eager.stream
    for e in (graphed, eager):
        e.model.blocks[1].ffn_out.int8_scale[3] = float("nan")
    assert torch.equal(video(graphed), video(eager))
    assert graphed.stream.fallback_blocks == len(PROMPTS) - 1 and graphed.stream.cuda_graphs_active


def test_shorter_passes_find_room_where_a_longer_one_was_captured():
    def held(sizes: list[int]) -> int:
        cache, out = GraphCache(GraphSwitch(torch.device("cuda"))), torch.zeros(1, device="cuda")
        for mib in sizes:
            cache.run(mib, lambda mib=mib: out.copy_(torch.full((mib << 18,), 1.0, device="cuda")[-1:]))
        assert cache.captured == len(sizes) and out.item() == 1
        return cache.capture_bytes

    assert held([256, 128, 64]) < 300 << 20 < held([64, 128, 256])


def test_a_warm_up_gives_back_what_it_needed_once():
    gc.collect()
    stream = (graphed := engine()).stream
    graphed.warmup()
    reserved = torch.cuda.memory_reserved()
    torch.cuda.empty_cache()
    assert reserved - torch.cuda.memory_reserved() <= 4 << 20
    assert stream.passes.graphs.captured > 3


def test_a_window_made_anew_for_a_block_is_made_from_graphs_too():
    graphed, eager = engine(precision="int8"), engine(precision="int8", use_cuda_graphs=False)
    for e in (graphed, eager):
        video(e)
        e.stream.ring.cache8.keys.scale[2, 1, 3 * 5] = float("nan")  # of frame 5, of 24 tokens
    assert torch.equal(*(video(e, ["a storm"] * 3) for e in (graphed, eager)))
    assert graphed.stream.fallback_blocks == eager.stream.fallback_blocks == 1
    assert graphed.stream.ring.holds_int8 and graphed.stream.cuda_graphs_active


def test_a_change_of_precision_waits_for_nothing_more():
    graphed, found = engine(precision="int8"), []
    graphed.warmup()
    for precision in ("int8", "bf16", "int8", "bf16", "int8"):  # each captured, and storage of both kinds made
        graphed.configure(precision=precision)
        video(graphed, ["a fox"] * 2)
    for precision in ("bf16", "int8"):
        graphed.configure(precision=precision)
        found.append(waits(lambda: graphed.generate_block(BlockRequest("a fox"))))
    assert found == [0, 1]


def test_the_first_block_in_8_bits_is_bf16s_bit_for_bit():
    plain, int8 = engine(), engine(precision="int8")
    for e in (plain, int8):
        e.warmup()
    assert torch.equal(video(plain, ["a fox"]), video(int8, ["a fox"]))
    assert not torch.equal(video(plain, ["a fox"]), video(int8, ["a fox"]))


@pytest.fixture(params=[(False,) * 5, (False, True, False, True, True), (True,) * 5], ids=["none", "some", "all"])
def values8(request, monkeypatch) -> tuple[bool, ...]:
    """The built-in model's layers that have values in 8 bits."""
    monkeypatch.setattr("longlive_optimized.engine.stream.values_in_8_bits", lambda *where: request.param)
    return request.param


def test_graphs_of_values_in_8_bits_equal_eager_bit_for_bit(values8):
    graphed, eager = engine(precision="int8"), engine(precision="int8", use_cuda_graphs=False)
    assert graphed.stream.ring.values8 == values8
    for precision in ("int8", "bf16", "int8"):
        for e in (graphed, eager):
            e.configure(precision=precision)
        assert torch.equal(*(video(e, ["a fox"] * 3 + ["a boat"] * 2) for e in (graphed, eager)))
    assert graphed.stream.cuda_graphs_active and graphed.stream.fallback_blocks == eager.stream.fallback_blocks


def test_a_stream_in_8_bits_has_no_keys_in_bf16(values8):
    """Until its precision changes; and its keys take half of the memory. Nor values, where those are in 8 bits."""
    int8 = engine(precision="int8")
    int8.warmup()
    ring = int8.stream.ring
    assert ring.k is None and ring.cache8.keys.k.element_size() == 1
    allocated = torch.cuda.memory_allocated()
    int8.configure(precision="bf16")
    grown, values = torch.cuda.memory_allocated() - allocated, [ring.v[layer] for layer in range(len(ring.k))]
    came = ring.k.nbytes + sum(v.nbytes for v, in_8_bits in zip(values, values8, strict=True) if in_8_bits)
    assert 0 <= grown - came < 4096 + 512 * len(values) and ring.k.nbytes == sum(v.nbytes for v in values)
