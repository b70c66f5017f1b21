"""Streams in 8 bits: what of them is not, what changes take hold when, and what happens where 8 bits fail."""

import math

import pytest
import torch
from safetensors.torch import save_file

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.engine import block
from longlive_optimized.engine.block import policy_at, warm_up
from longlive_optimized.engine.latency import LatencyMeter
from longlive_optimized.engine.stream import Stream
from longlive_optimized.model.precision import PLAIN, policy_of
from longlive_optimized.weights.user_lora import UserLora

# At 32x64 pixels, streams of these stay close to each other; of what moves, small differences may grow there. Their
# frames have 8 tokens, which keys in int8 want; those of 32x48 have 6, so that only products run in 8 bits.
FOX, BOAT = "a red square stands still over a green field", "a white cross rests on a black night"
GPU = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])
LAYERS = 5  # of the built-in model


def tiny(device="cpu", **changes) -> LongLiveEngine:
    """With the VAE that decodes soonest: what runs in 8 bits here is the transformer."""
    config = {"height": 32, "width": 64, "vae_type": "tae", **changes}
    return LongLiveEngine("tiny", OptimizationConfig(**config), device)


@pytest.fixture(scope="module", params=["cpu", GPU])
def engine(request) -> LongLiveEngine:
    return tiny(request.param)


def blocks(engine, stream, *prompts, **wishes) -> list[torch.Tensor]:
    return [engine.generate_block(BlockRequest(prompt, **wishes), stream).cpu() for prompt in prompts]


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    error = (a.float() - b.float()).square().mean().item()
    return 10 * math.log10(255**2 / error) if error else math.inf


def made_alike(a: list[torch.Tensor], b: list[torch.Tensor], exactly: bool) -> bool:
    """Bit for bit, or as close as attention in 8 bits leaves them."""
    return all(map(torch.equal, a, b)) if exactly else torch.equal(a[0], b[0]) and min(map(psnr, a, b)) >= 30


def record_passes(monkeypatch, stream: Stream) -> list[tuple[str, int, bool]]:
    """(kind, latent frames, whether in 8 bits) of each pass to come."""
    seen = []

    def watch(kind):
        before = getattr(stream.passes, kind)

        def run(*args, **control):
            frames = len(args[0]) if kind == "context" else args[1].noise.shape[1]
            seen.append((kind, frames, bool(args[-1])))
            return before(*args, **control)

        monkeypatch.setattr(stream.passes, kind, run)

    watch("denoise"), watch("context")
    return seen


@pytest.mark.parametrize("settings", [{}, {"sink_size": 0}, {"positions": "base"}, {"sink_size": 6}], ids=str)
def test_the_first_block_is_that_of_bf16_bit_for_bit(engine, settings):
    plain, int8 = engine.open_stream(**settings), engine.open_stream(precision="int8", **settings)
    assert int8.precision == "int8" and plain.precision in ("float32", "bf16")
    for _ in range(2):
        a, b = (blocks(engine, stream, FOX, FOX, FOX, FOX) for stream in (plain, int8))
        assert torch.equal(a[0], b[0])
        assert torch.equal(plain.sinks[:3], int8.sinks[:3])
        assert any((x.int() - y.int()).abs().sum() > 0 for x, y in zip(a, b, strict=True))
        assert min(map(psnr, a, b)) >= 35
        for stream in (plain, int8):
            engine.reset(stream)
    assert int8.fallback_blocks == 0


def test_what_writes_the_sinks_is_not_in_8_bits(engine, monkeypatch):
    stream = engine.open_stream(precision="int8", restart_at=24)
    seen = record_passes(monkeypatch, stream)
    first = [("denoise", 3, False), ("context", 3, False), ("denoise", 3, True)]
    blocks(engine, stream, FOX, FOX)
    assert seen == first
    blocks(engine, stream, BOAT)  # a recache from nothing
    assert seen[3:] == [("context", 6, False), ("denoise", 3, True)]
    blocks(engine, stream, *[BOAT] * 3)
    assert seen[5:] == [("context", 3, True), ("denoise", 3, True)] * 3
    blocks(engine, stream, FOX)  # keeps the sinks
    assert seen[11:] == [("context", 9, True), ("denoise", 3, True)]
    stream.configure(global_sink=False)
    blocks(engine, stream, BOAT)  # makes others the sinks
    assert seen[13:] == [("context", 12, False), ("denoise", 3, True)]
    blocks(engine, stream, BOAT, BOAT)  # begins again at frame 24
    assert seen[15:] == first
    blocks(engine, stream, BOAT, BOAT, reset=True)
    assert seen[18:] == [("denoise", 3, False)] * 2
    blocks(engine, stream, BOAT, restart=True)
    assert seen[20:] == [("denoise", 3, False)]


def test_a_change_takes_hold_with_the_next_block_and_back(engine, monkeypatch):
    stream = engine.open_stream()
    seen = record_passes(monkeypatch, stream)
    blocks(engine, stream, FOX, FOX)
    stream.configure(precision="int8")
    assert stream.precision == "int8"
    blocks(engine, stream, FOX, FOX)
    stream.configure(precision="bf16")
    blocks(engine, stream, FOX, FOX)
    made = [int8 for kind, _, int8 in seen if kind == "denoise"]
    context = [int8 for kind, _, int8 in seen if kind == "context"]
    assert made == [False, False, True, True, False, False] and stream.precision != "int8"
    assert context == [False, False, True, True, False]  # as their blocks were made


def test_a_change_and_back_gives_the_pictures_of_each(engine):
    changed, plain, int8 = engine.open_stream(), engine.open_stream(), engine.open_stream(precision="int8")
    a, b = blocks(engine, changed, FOX, FOX), blocks(engine, plain, FOX, FOX)
    assert all(map(torch.equal, a, b))
    changed.configure(precision="int8")
    assert not torch.equal(*(torch.cat(blocks(engine, stream, FOX)) for stream in (changed, plain)))
    changed.reset()
    assert all(map(torch.equal, blocks(engine, changed, *[FOX] * 4), blocks(engine, int8, *[FOX] * 4)))
    changed.configure(precision="bf16")
    changed.reset(), plain.reset()
    assert all(map(torch.equal, blocks(engine, changed, *[FOX] * 4), blocks(engine, plain, *[FOX] * 4)))


def test_a_prompt_switch_and_a_new_window_stay_close(engine):
    plain, int8 = engine.open_stream(), engine.open_stream(precision="int8")
    made = []
    for stream in (plain, int8):
        made.append(blocks(engine, stream, *[FOX] * 6, *[BOAT] * 2))
        stream.configure(local_attn_size=9)
        made[-1] += blocks(engine, stream, BOAT)
        stream.configure(local_attn_size=15)
        made[-1] += blocks(engine, stream, BOAT, BOAT)
    assert min(map(psnr, *made)) >= 25 and int8.fallback_blocks == 0


def test_copies_are_made_when_they_are_first_asked_for_and_once():
    engine = tiny()
    linear = engine.model.blocks[0].qkv
    engine.generate_block(BlockRequest(FOX))
    slots, keys = [*engine.model.checkpoint_slots()], [*engine.model.state_dict()]
    assert not engine.model.holds_int8 and linear.int8_weight is None
    engine.configure(precision="int8")
    assert engine.model.holds_int8 and linear.int8_weight is not None and linear.int8_scale is not None
    places = linear.int8_weight.data_ptr(), linear.int8_scale.data_ptr()
    engine.configure(precision="bf16")
    engine.configure(precision="int8")
    engine.open_stream(precision="fp8")
    assert (linear.int8_weight.data_ptr(), linear.int8_scale.data_ptr()) == places
    assert [*engine.model.checkpoint_slots()] == slots and [*engine.model.state_dict()] == keys
    assert tiny(precision="int8").stream.networks.model.holds_int8


def test_no_memory_for_copies_changes_nothing(monkeypatch):
    engine, made = tiny(), []
    blocks(engine, None, FOX)
    before = engine.stream.settings

    def quantize_weight(linear):
        made.append(linear)
        if len(made) == 7:
            raise torch.OutOfMemoryError("no memory")
        linear.int8_weight = linear.int8_scale = torch.zeros(1)

    monkeypatch.setattr("longlive_optimized.model.linear.Linear.quantize_weight", quantize_weight)
    with pytest.raises(torch.OutOfMemoryError):
        engine.stream.configure(precision="int8", denoising_steps=(1000,))
    assert not engine.model.holds_int8 and all(linear.int8_weight is None for linear in made)
    assert engine.stream.precision == "float32" and engine.stream.settings == before
    blocks(engine, None, FOX)


def lora(folder, names=("self_attn.q", "ffn.0", "ffn.2", "cross_attn.o")) -> str:
    wide, narrow = {"ffn.0": 448}, {"ffn.2": 448}
    tensors = {}
    for name in names:
        tensors[f"blocks.1.{name}.lora_A.weight"] = torch.randn(2, narrow.get(name, 256)) / 8
        tensors[f"blocks.1.{name}.lora_B.weight"] = torch.randn(wide.get(name, 256), 2) / 8
    path = folder / "style.safetensors"
    save_file(tensors, path)
    return str(path)


def test_other_lora_scales_requantise_in_place(tmp_path):
    path = lora(tmp_path)
    config = OptimizationConfig(height=32, width=48, precision="int8")
    changed, loaded = (LongLiveEngine("tiny", config, "cpu", loras=[UserLora(path, scale)]) for scale in (0.0, 1.0))
    streams = [each.stream for each in (changed, loaded)]
    before = {name: (t.data_ptr(), t.clone()) for name, t in changed.model.named_buffers()}
    assert len(before) == 2 * 6 * LAYERS
    changed.set_loras([UserLora(path, 1.0)])
    wanted = dict(loaded.model.named_buffers())
    for name, now in changed.model.named_buffers():
        place, old = before[name]
        assert now.data_ptr() == place and torch.equal(now, wanted[name])
        if name.startswith("blocks.1.ffn_out.int8_weight"):
            assert not torch.equal(now, old)
    made = [blocks(each, stream, FOX, FOX) for each, stream in zip((changed, loaded), streams, strict=True)]
    assert all(map(torch.equal, *made))


@pytest.mark.parametrize("width", [48, 64])
@pytest.mark.parametrize("part", ["qkv", "ffn_out"])
@pytest.mark.parametrize("positions", ["relative", "base"])
def test_a_block_that_is_not_finite_is_made_again_in_bf16(part, positions, width):
    plain, broken = (tiny(positions=positions, width=width, precision=each) for each in ("bf16", "int8"))
    meter = LatencyMeter(broken)
    getattr(broken.model.blocks[2], part).int8_scale[3] = float("nan")
    prompts = [FOX] * 6 + [BOAT] * 3  # the window is full, and a switch computes it anew in 8 bits
    made = [blocks(each, None, *prompts) for each in (plain, broken)]
    assert made_alike(*made, exactly=width == 48)
    assert broken.stream.fallback_blocks == meter.stats().fallback_blocks == 8  # all but the first
    assert broken.stream.precision == ("int8" if width == 64 else "int8 products")
    broken.reset()
    assert broken.stream.fallback_blocks == 0


@pytest.mark.parametrize("width", [48, 64])
@pytest.mark.parametrize("positions", ["relative", "base"])
def test_keys_that_are_not_finite_are_made_again_too(width, positions):
    """With attention in the model's dtype, from which the next block goes back to 8 bits."""
    engine = tiny(precision="int8", width=width, positions=positions)
    blocks(engine, None, *[FOX] * 6)
    ring = engine.stream.ring
    keys = ring.cache8.keys.scale.unflatten(-1, (12, -1))[2, 1] if width == 64 else ring.k[2]
    keys[5].fill_(float("nan"))  # of a frame that stays in the window
    made = blocks(engine, None, FOX)
    assert engine.stream.fallback_blocks == 1 and ring.keys_read == "dtype"
    made += blocks(engine, None, FOX)
    assert engine.stream.fallback_blocks == 1 and ring.holds_int8 == (width == 64)
    assert engine.stream.history.isfinite().all() and min(block.float().std() for block in made) > 5


def test_a_block_that_fails_while_it_is_made_again_counts_once(monkeypatch):
    engine = tiny(precision="int8")
    stream, denoise = engine.stream, block.denoise
    blocks(engine, None, FOX)
    engine.model.blocks[1].ffn_out.int8_scale[3] = float("nan")

    def fail_without_8_bits(stream, request, policy):
        if policy == PLAIN:
            raise torch.OutOfMemoryError("no memory")
        return denoise(stream, request, policy)

    with monkeypatch.context() as short:
        short.setattr(block, "denoise", fail_without_8_bits)
        for _ in range(2):
            with pytest.raises(torch.OutOfMemoryError):
                blocks(engine, None, FOX)
    assert stream.fallback_blocks == 0
    blocks(engine, None, FOX)
    assert stream.fallback_blocks == 1


def test_what_is_not_finite_in_bf16_either_goes_on_as_without_8_bits():
    engines = [tiny(precision=precision) for precision in ("bf16", "int8")]
    for each in engines:
        blocks(each, None, FOX, FOX)
        for linear in (each.model.blocks[1].ffn_out,):
            linear.bias[0] = float("nan")
    a, b = (blocks(each, None, FOX) for each in engines)
    assert torch.equal(a[0], b[0]) and not engines[1].stream.history.isfinite().all()
    assert engines[1].stream.fallback_blocks == 1


@pytest.mark.parametrize("width", [48, 64])
def test_a_video_is_made_again_from_the_same_frames(width):
    plain, broken = tiny(width=width), tiny(width=width, precision="int8")
    broken.stream, broken.model.blocks[0].out.int8_scale.fill_(float("inf"))
    made = []
    for each in (plain, broken):
        torch.manual_seed(0)
        frames = [torch.randint(0, 256, (12 + (i == 0), 32, width, 3), dtype=torch.uint8) for i in range(3)]
        made.append([each.generate_block(BlockRequest(FOX, video=video)) for video in frames])
    assert made_alike(*made, exactly=width == 48) and broken.stream.fallback_blocks == 2


@pytest.mark.parametrize("width", [48, 64])
def test_a_stream_of_a_given_length_draws_its_noise_once(width):
    """Also where a block is made again: the noise of all later blocks comes from the same generator."""
    plain, again = tiny(width=width), tiny(width=width)
    streams = [plain.open_stream(total_frames=15), again.open_stream(total_frames=15, precision="int8")]
    again.model.blocks[0].out.int8_scale.fill_(float("nan"))
    made = [blocks(each, stream, *[FOX] * 5) for each, stream in zip((plain, again), streams, strict=True)]
    assert made_alike(*made, exactly=width == 48) and streams[1].fallback_blocks == 4


def test_a_warm_up_counts_nothing_and_leaves_nothing(engine):
    stream, fresh = (engine.open_stream(precision="int8") for _ in range(2))
    engine.warmup(stream=stream)
    assert stream.fallback_blocks == 0 and stream.position == 0
    assert all(map(torch.equal, blocks(engine, stream, FOX, FOX), blocks(engine, fresh, FOX, FOX)))


def test_a_warm_up_runs_both_kinds(engine, monkeypatch):
    stream = engine.open_stream(precision="int8")
    seen = record_passes(monkeypatch, stream)
    with engine.devices.turn():
        warm_up(stream, 6)
    lengths = [frames for kind, frames, _ in seen if kind == "context"]
    assert seen[:3] == [("context", 12, False), ("context", 9, False), ("context", 6, False)] and max(lengths) == 12
    wanted = {("denoise", 3, False), ("denoise", 3, True), ("context", 3, False), ("context", 3, True)}
    assert wanted | {("context", 9, True), ("context", 6, False), ("context", 12, False)} <= {*seen}


def test_the_rule_of_the_sinks(engine):
    for sink, first in ((3, 3), (0, 1), (6, 6)):
        stream = engine.open_stream(precision="int8", sink_size=sink)
        for start in range(9):
            assert policy_at(stream, start) == (PLAIN if start < first else policy_of("int8", LAYERS))
        assert policy_at(stream, 30, origin=30) == PLAIN != policy_at(stream, 40, origin=30)
