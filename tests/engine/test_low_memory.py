"""Engines that hold weights in 8 bits alone: what they hold, that they give the same pictures, and LoRAs in them."""

import gc
import math

import pytest
import torch
from safetensors.torch import save_file

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.demo.scope_integration import create_optimized_scope_pipeline
from longlive_optimized.model.precision import PLAIN
from longlive_optimized.model.transformer import Transformer
from longlive_optimized.weights.load import load_generator
from longlive_optimized.weights.locate import locate
from longlive_optimized.weights.user_lora import UserLora
from support.memory import LiveBytes

FOX, BOAT = "a red square stands still over a green field", "a white cross rests on a black night"
GPU = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])


def tiny(device="cpu", loras=(), **changes) -> LongLiveEngine:
    return LongLiveEngine("tiny", OptimizationConfig(height=32, width=64, **changes), device, loras=loras)


@pytest.fixture(scope="module", params=["cpu", GPU])
def engines(request) -> tuple[LongLiveEngine, LongLiveEngine]:
    """With weights in the model's dtype, and in 8 bits alone."""
    return tiny(request.param), tiny(request.param, low_memory=True)


def blocks(engine, stream, *prompts, **wishes) -> list[torch.Tensor]:
    return [engine.generate_block(BlockRequest(prompt, **wishes), stream).cpu() for prompt in prompts]


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    error = (a.float() - b.float()).square().mean().item()
    return 10 * math.log10(255**2 / error) if error else math.inf


def held(model: Transformer) -> int:
    return sum(t.nbytes for t in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_pictures_stay_close_to_those_of_other_weights(engines, precision):
    """A video, a prompt switch within the first window and one beyond, and a new window."""
    made = []
    for engine in engines:
        stream = engine.open_stream(precision=precision)
        made.append(blocks(engine, stream, FOX, FOX, BOAT, *[FOX] * 3, BOAT))
        stream.configure(local_attn_size=9)
        made[-1] += blocks(engine, stream, BOAT)
        assert stream.fallback_blocks == 0 and stream.precision == ("int8" if precision == "int8" else made_in(engine))
    assert not torch.equal(made[0][0], made[1][0])
    assert min(map(psnr, *made)) >= 30


def made_in(engine: LongLiveEngine) -> str:
    return "bf16" if engine.dtype == torch.bfloat16 else "float32"


def test_presets_change_as_ever(engines):
    _, low = engines
    stream, other = low.open_stream(), low.open_stream(precision="int8")
    assert all(map(torch.equal, blocks(low, stream, FOX), blocks(low, other, FOX)))
    stream.configure(precision="int8")
    other.configure(precision="bf16")
    (a,), (b,) = blocks(low, stream, FOX), blocks(low, other, FOX)
    assert not torch.equal(a, b) and psnr(a, b) > 35


def test_weights_are_never_held_whole():
    """While it loads, the model takes what it takes in the end, and a few copies of one weight."""
    files, most = locate("tiny"), {}
    for int8_only in (False, True):
        with LiveBytes() as live:
            model = load_generator(files, "cpu", torch.float32, int8_only=int8_only)
        largest = max(4 * math.prod(slot.shape) for slot in model.checkpoint_slots().values())
        assert held(model) <= live.most <= held(model) + 5 * largest
        most[int8_only] = live.most
    assert most[True] < 0.6 * most[False]


def test_8_bits_are_those_of_the_copies(engines):
    plain, low = engines
    plain.open_stream(precision="int8")
    copies = dict(plain.model.named_buffers())
    assert len(copies) and copies.keys() == dict(low.model.named_buffers()).keys()
    assert all(torch.equal(copies[name], buffer) for name, buffer in low.model.named_buffers())
    places = [buffer.data_ptr() for buffer in low.model.buffers()]
    low.open_stream(precision="int8")
    assert places == [buffer.data_ptr() for buffer in low.model.buffers()]
    lacking = dict(plain.model.named_parameters()).keys() - dict(low.model.named_parameters()).keys()
    assert len(lacking) == len(copies) // 2 and all(name.endswith(".weight") for name in lacking)


def lora(folder) -> str:
    sides = {"self_attn.k": (256, 256), "cross_attn.v": (256, 256), "ffn.0": (448, 256), "ffn.2": (256, 448)}
    tensors = {}
    for name, (rows, columns) in sides.items():
        tensors[f"blocks.1.{name}.lora_A.weight"] = torch.randn(2, columns) / 8
        tensors[f"blocks.1.{name}.lora_B.weight"] = torch.randn(rows, 2) / 8
    path = folder / "style.safetensors"
    save_file(tensors, path)
    return str(path)


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_other_lora_scales_are_read_from_the_files_and_quantised_in_place(tmp_path, device):
    path = lora(tmp_path)
    changed, loaded, without = (
        tiny(device, [] if scale is None else [UserLora(path, scale)], precision="int8", low_memory=True)
        for scale in (0.5, 1.0, None)
    )
    places = {name: t.data_ptr() for name, t in changed.model.named_buffers()}

    def same(one: LongLiveEngine, other: LongLiveEngine) -> bool:
        weights = ({**dict(e.model.named_buffers()), **dict(e.model.named_parameters())} for e in (one, other))
        a, b = weights
        return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

    assert not same(changed, loaded)
    for _ in range(2):
        changed.set_loras([UserLora(path, 1.0)])
        assert same(changed, loaded)
        changed.set_loras([UserLora(path, 0.0)])
        assert same(changed, without)
    assert places == {name: t.data_ptr() for name, t in changed.model.named_buffers()}
    made = [blocks(engine, None, FOX, FOX) for engine in (changed, without)]
    assert all(map(torch.equal, *made))


def test_loras_that_do_not_fit_change_nothing(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(
        {"blocks.1.ffn.0.lora_A.weight": torch.zeros(2, 99), "blocks.1.ffn.0.lora_B.weight": torch.zeros(448, 2)}, path
    )
    engine = tiny(low_memory=True)
    before = [t.clone() for t in engine.model.buffers()]
    with pytest.raises(ValueError, match="does not fit this model"):
        engine.set_loras([UserLora(path)])
    assert all(map(torch.equal, before, engine.model.buffers()))
    blocks(engine, None, FOX)


def test_a_block_that_is_not_finite_is_made_again_with_the_same_weights():
    plain, broken = tiny(low_memory=True), tiny(low_memory=True, precision="int8")
    prompts = [FOX] * 3
    a = blocks(plain, None, *prompts)
    blocks(broken, None, FOX)
    broken.stream.policy, make = broken.stream.policy, broken.stream.passes.denoise

    def denoise(start, inputs, policy, *, controlled):
        latents = make(start, inputs, policy)
        return latents if policy == PLAIN else latents.fill_(float("nan"))

    broken.stream.passes.denoise = denoise
    b = blocks(broken, None, *prompts[1:])
    assert broken.stream.fallback_blocks == 2 and min(map(psnr, a[1:], b)) >= 40


def test_it_is_fixed_when_the_engine_is_made(engines):
    for engine, given in zip(engines, (True, False), strict=True):
        with pytest.raises(ValueError, match="low_memory cannot change while a stream runs"):
            engine.configure(low_memory=given)
        engine.configure(low_memory=not given)
    with pytest.raises(ValueError, match=r"low_memory\n"):
        OptimizationConfig(low_memory="yes")


def test_a_pipeline_has_its_engines():
    pipeline = create_optimized_scope_pipeline("tiny", "speed", "cpu", height=32, width=64, low_memory=True)
    assert pipeline.config.low_memory and pipeline.get_latency_stats()["precision"] == "int8"
    assert pipeline.generate_block(FOX).shape == (9, 32, 64, 3)
    pipeline.set_optimization_preset("balanced")
    assert pipeline.generate_block(FOX).shape == (12, 32, 64, 3)
    assert pipeline.config.low_memory and pipeline.get_latency_stats()["precision"] == "float32"


def test_a_prompt_is_written_in_place_of_the_one_before(engines):
    """A switch takes a layer's keys and values beside those in force, not all layers' once more."""
    stream = engines[0].open_stream()
    blocks(engines[0], stream, FOX, FOX)
    cross = stream.passes.cross
    places, nbytes = [t.data_ptr() for t in cross], sum(t.nbytes for t in cross)
    wanted = stream.networks.model.cross_cache(stream.networks.prompts.get(BOAT))
    with LiveBytes() as live:
        stream.passes.set_prompt(stream.networks.prompts.get(BOAT))
    assert stream.passes.cross is cross and places == [t.data_ptr() for t in cross]
    assert all(map(torch.equal, cross, wanted)) and live.most < nbytes
    stream.configure(local_attn_size=15)
    assert stream.passes.cross is cross


def test_a_prompt_that_fails_half_way_is_written_again(monkeypatch):
    engine, other = tiny(), tiny()
    for each in (engine, other):
        blocks(each, None, FOX)
    layer = engine.model.blocks[2]
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(layer, "cross_kv_of", lambda context: (_ for _ in ()).throw(torch.OutOfMemoryError("no memory")))
        blocks(engine, None, BOAT)
    other.codec.in_parts = engine.codec.in_parts  # what the engine has fallen back to
    for prompt in (FOX, BOAT):
        other.stream.recache_due = True
        assert torch.equal(*(blocks(each, None, prompt)[0] for each in (engine, other)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_what_a_gpu_holds():
    """The weights of the products take a byte each in place of two, and no more of them are left over from loading."""
    taken = []
    for low_memory in (True, False, True):  # the first one pays for the libraries' workspaces too
        gc.collect()
        before = torch.cuda.memory_allocated()
        engine = tiny("cuda", low_memory=low_memory)
        taken.append(torch.cuda.memory_allocated() - before)
        products = sum(t.numel() for name, t in engine.model.named_buffers() if name.endswith("int8_weight"))
        del engine
    assert taken[1] - taken[2] > 0.95 * products
