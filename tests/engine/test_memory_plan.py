"""The plan against what an engine really holds, what it chooses where memory is short, and what it says."""

import dataclasses
import gc
import itertools
import json
import logging
import math
from pathlib import Path

import pytest
import torch

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.config import MAX_WINDOW
from longlive_optimized.demo.scope_plugin.load_params import ESTIMATED_VRAM, LoadParams
from longlive_optimized.engine import engine as engine_module
from longlive_optimized.engine import memory_outline as outlining
from longlive_optimized.engine import memory_plan as planning
from longlive_optimized.engine.devices import Devices
from longlive_optimized.engine.graphs import GraphCache
from longlive_optimized.engine.latency import LatencyMeter
from longlive_optimized.engine.live_bytes import passing_bytes, storage_bytes
from longlive_optimized.engine.memory_outline import Outline
from longlive_optimized.engine.memory_plan import MemoryShort, memory_plan, plan_for, plans_for
from longlive_optimized.engine.memory_shares import GIB, MEASURED, Asked
from longlive_optimized.engine.ranks import Ranks
from longlive_optimized.kernels import native
from longlive_optimized.model.config import ModelConfig
from longlive_optimized.vae.config import VaeConfig
from longlive_optimized.vae.modules import ModulesCodec
from longlive_optimized.vae.packed.codec import PackedCodec
from longlive_optimized.vae.stream import DecoderStream, EncoderStream
from longlive_optimized.vae.wan.model import WanVae
from longlive_optimized.weights import random_checkpoint
from longlive_optimized.weights.locate import locate

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
FOX, BOAT = "a red square stands still over a green field", "a white cross rests on a black night"
SMALL = ModelConfig(dim=384, ffn_dim=1056, num_heads=3, num_layers=3, text_dim=64, text_len=40)


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    """A random model that is neither the built-in one nor any that is published."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(random_checkpoint._CONFIGS, "tiny", (SMALL, VaeConfig(base=16), 8))
        yield random_checkpoint.make_checkpoint(tmp_path_factory.mktemp("small") / "model", "tiny")


def held(engine: LongLiveEngine, device: torch.device) -> dict[str, int]:
    """Bytes of an engine's parts, by the names of a plan."""
    stream, seen = engine.stream, set()
    storage_bytes([getattr(stream.decoder._side, "_scratch", None)], CPU, seen)  # a CPU's alone, and in no plan
    owners = {
        "transformer": [*engine.model.parameters()],
        "transformer in int8": [*engine.model.buffers()],
        "ring": [stream.ring],
        "passes": [stream.passes],
        "VAE": [engine.vae, vars(engine.codec)],
        "VAE's stream": [stream.decoder],
        "text encoder": [engine.text],
        "prompts": [engine.prompts],
        "history": [stream.history, stream.sinks],
    }
    return {name: nbytes for name, each in owners.items() if (nbytes := storage_bytes(each, device, seen))}


CONFIGS = {
    "bf16": {},
    "int8": {"precision": "int8"},
    "low_memory": {"precision": "int8", "low_memory": True},
    "int8 VAE": {"vae_precision": "int8"},
    "window, steps, base": {"local_attn_size": 9, "denoising_steps": (1000, 250), "positions": "base"},
    "no sinks": {"sink_size": 0, "model_dtype": "bfloat16"},
}


@pytest.mark.parametrize(
    ("model", "changes"),
    [*[("tiny", changes) for changes in CONFIGS.values()], ("small", {}), ("small", {"precision": "int8"})],
    ids=[*CONFIGS, "other dimensions", "other dimensions in int8"],
)
def test_parts_are_those_that_an_engine_holds(model, changes, small_model):
    """To the byte, but for what is small, of the host's own choice, or grows up to what the plan says."""
    config = OptimizationConfig(height=32, width=64, **changes)
    path = "tiny" if model == "tiny" else small_model
    engine = LongLiveEngine(path, config, CPU)
    engine.warmup()
    engine.generate_block(BlockRequest(FOX))
    plan, found = memory_plan(path, config, CPU), held(engine, CPU)
    assert plan == engine.memory_plan and plan.fits and plan.available is None and not plan.host
    for name in ("transformer", "transformer in int8", "ring", "passes", "text encoder"):
        assert plan.parts.get(name, 0) == found.get(name, 0), name
    for name in ("prompts", "history"):
        assert 0 < found[name] <= plan.parts[name], name
    tables = 1 << 16 if "vae_precision" in changes else 0  # lists of indices, one for each kind of call
    assert abs(plan.parts["VAE"] - found["VAE"]) <= tables / 4  # the host's counter of what was cut off
    assert 0 <= found["VAE's stream"] - plan.parts["VAE's stream"] <= tables


def test_what_comes_and_goes_is_what_operators_make():
    """Against sums by hand: two results live while the third is made; views and results of in-place work are none."""
    x = torch.empty(10, 100, device="meta")

    def work():
        a = x + 1
        b = a.view(100, 10) * 2
        a.mul_(3)
        return b.sum()

    assert passing_bytes(work) == 2 * 4000 + 4
    keep = []
    assert passing_bytes(lambda: keep.append(x + 1)) == 0
    y = torch.empty(2, 8, 5, 6, device="meta")
    layer = torch.nn.Conv2d(8, 16, 3, stride=2, padding=1, device="meta")
    with torch.no_grad():
        assert passing_bytes(lambda: torch.nn.functional.rms_norm(x, (100,))) == 4000
        assert passing_bytes(lambda: layer(y)) == 2 * 16 * 3 * 3 * 4


def test_storages_count_once():
    a, b = torch.empty(10), torch.empty(10, device="meta")
    seen: set[int] = set()
    assert storage_bytes([a, a[2:], {"x": [a]}, b], CPU, seen) == 40 and storage_bytes([a], CPU, seen) == 0
    assert storage_bytes([None, "text", 7, object()], CPU) == 0


# docs/measurements/memory-2026-11-30-2.json, at 480x832 on an H200: GiB by modes.
MEASURED_GIB = {
    "balanced": {"transformer": 2.6431, "ring": 3.6157, "passes": 0.0985, "VAE's stream": 3.3473},
    "speed": {"transformer": 2.6431, "transformer in int8": 1.1668, "ring": 2.4409, "VAE's stream": 2.589},
    "low": {"transformer": 0.314, "transformer in int8": 1.1668, "ring": 2.4409, "VAE's stream": 2.2676},
}


@pytest.fixture
def full_size(monkeypatch):
    """LongLive's own dimensions, on a Hopper GPU that is not there, beside the built-in model's text encoder."""
    vae = WanVae(device="meta")
    monkeypatch.setattr(outlining, "outline", lambda files: (ModelConfig(), vae))
    monkeypatch.setattr(native, "missing", lambda device: None)
    monkeypatch.setattr(planning, "available_on", lambda device, limit: None if limit is None else int(limit * GIB))


@pytest.mark.parametrize("mode", MEASURED_GIB)
def test_parts_at_full_size_are_those_that_were_measured(mode, full_size):
    preset = "balanced" if mode == "balanced" else "speed"
    low = mode == "low"
    plan = plan_for(Asked(locate("tiny"), OptimizationConfig.preset(preset, low_memory=low).sized((480, 832)), CUDA))
    parts = dict(plan.parts)
    parts["VAE's stream"] += parts["VAE"]  # measured together
    for name in parts.keys() & MEASURED_GIB[mode].keys():
        assert parts[name] / GIB == pytest.approx(MEASURED_GIB[mode][name], rel=1e-3), name
    allocated = {"balanced": 9.998, "speed": 9.458, "low": 6.919}[mode]
    assert 1 <= plan.allocated / GIB / allocated < 1.07


RECORDS = Path(__file__).parents[2] / "docs/measurements"
MEASURED_ROWS = [
    row
    for name in ("memory-plan-2026-11-30-1.json", "memory-plan-2026-11-30-2.json")
    for row in json.loads((RECORDS / name).read_text())["rows"]
    if not row["memory_fallback"]
]


@pytest.mark.parametrize("row", MEASURED_ROWS, ids=lambda row: f"{row['preset']}, {row['size']}, {row['way']}")
def test_a_plan_is_what_a_gpu_took(row, full_size, big_text):
    """The most that torch had reserved, and 0.79 GiB beside it: never more than planned, and at most 5 % less."""
    chosen = {name: row["plan"][name] for name in ("text_precision", "text_residence", "low_memory")}
    size = tuple(map(int, row["size"].split("×")))
    plan = plan_for(Asked(locate("tiny"), OptimizationConfig.preset(row["preset"], **chosen).sized(size), CUDA))
    assert 0.95 <= (row["reserved_gib"] + 0.79) * GIB / plan.peak <= 1
    assert 0.9 <= row["allocated_gib"] * GIB / plan.allocated <= 1


def test_the_published_vae_takes_what_was_measured():
    """``modules_gib`` of the decoder: 5.35, with weights."""
    outlined = Outline(Asked(locate("tiny"), OptimizationConfig(height=480, width=832, model_dtype="bfloat16"), CPU))
    outlined._vae = WanVae(device="meta").bfloat16()
    outlined._dimensions = ModelConfig()
    whole, parts = (outlined._video(outlined._vae, False, in_parts) for in_parts in (False, True))
    assert (whole.stream + whole.passing) / GIB == pytest.approx(5.35, rel=0.01)
    assert whole.stream == parts.stream and parts.passing < 0.4 * whole.passing


@pytest.fixture
def gpu_of(monkeypatch):
    """A GPU that is not there, of so many GiB."""

    def there(gib: float) -> None:
        monkeypatch.setattr(planning, "available_on", lambda device, limit: int(min(gib, limit or gib) * GIB))
        monkeypatch.setattr(native, "missing", lambda device: "no Hopper GPU")

    return there


@pytest.fixture
def big_text(monkeypatch):
    """umT5-XXL's dimensions, told by shapes alone."""
    from longlive_optimized.text.encoder import Dimensions, checkpoint_shapes
    from longlive_optimized.text.footprint import footprint

    names = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_heads": 64, "num_layers": 24}
    shapes = checkpoint_shapes(Dimensions(**names))

    def of(files, device, dtype, precision, residence):
        return footprint(shapes, "bf16" if precision == "auto" else precision, residence, dtype)

    monkeypatch.setattr(outlining, "text_footprint", of)


def test_choices_come_from_fast_to_lean(full_size, big_text):
    config = OptimizationConfig.preset("speed", memory_limit_gib=1).sized((480, 832))
    plans = [*plans_for(Asked(locate("tiny"), config, CUDA))]
    assert [plan.peak for plan in plans] == sorted({plan.peak for plan in plans}, reverse=True)
    taken = [
        [name for name, a, b in zip(one.choices._fields, one.choices, other.choices, strict=True) if a != b]
        for one, other in itertools.pairwise(plans)
    ]
    order = [["text_precision"], ["text_residence"], ["low_memory"], ["vae_in_parts"], ["text_residence"]]
    assert taken == order[: len(taken)] and len(taken) >= 4
    assert [len(plan.costs) for plan in plans] == [0, 1, 2, 3, 4, 4][: len(plans)]


def test_what_there_is_is_the_least_that_anyone_allows(monkeypatch):
    """By hand: 20 of 24 GiB are free, torch keeps 2 of what is taken."""
    for name, value in {"mem_get_info": (20 * GIB, 24 * GIB), "memory_reserved": 2 * GIB}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    share = [1.0]
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: share[0])
    there = planning.available_on
    assert there(CPU, 3.0) is None and there(CUDA) == 20 * GIB + MEASURED.context
    assert there(CUDA, 12.0) == 10 * GIB and there(CUDA, 1.0) == 0 and there(CUDA, 100.0) == there(CUDA)
    assert there(CUDA, 1e300) == there(CUDA) and there(CUDA, 1e-300) == 0
    share[0] = 0.5
    assert there(CUDA) == 10 * GIB + MEASURED.context


@pytest.mark.parametrize(
    ("preset", "size", "gib"), [("balanced", (480, 832), 15.5), ("speed", (480, 832), 11.5), ("speed", (480, 832), 23)]
)
def test_cards_of_users_are_served(preset, size, gib, full_size, big_text):
    plan = plan_for(Asked(locate("tiny"), OptimizationConfig.preset(preset, memory_limit_gib=gib).sized(size), CUDA))
    assert plan.fits and plan.peak <= gib * GIB
    faster = [
        *plans_for(Asked(locate("tiny"), OptimizationConfig.preset(preset, memory_limit_gib=gib).sized(size), CUDA))
    ]
    assert not any(other.fits for other in faster[: faster.index(plan)])


def test_what_scope_is_told_is_the_plans(full_size, big_text, monkeypatch):
    monkeypatch.setattr(native, "missing", lambda device: "no Hopper GPU")
    monkeypatch.setattr("longlive_optimized.vae.packed.codec._takes_triton", lambda device: False)
    footprint = outlining.text_footprint

    def in_float8(files, device, dtype, precision, residence):
        return footprint(files, device, dtype, "fp8", residence)

    monkeypatch.setattr(outlining, "text_footprint", in_float8)
    plan = plan_for(Asked(locate("tiny"), LoadParams().engine_config(), CUDA))
    assert not plan.costs and math.ceil(plan.peak / GIB) == ESTIMATED_VRAM


FIXED = {
    "text_precision": ("bf16", lambda plan: plan.choices.text_precision == "bf16"),
    "text_residence": ("gpu", lambda plan: plan.choices.text_residence == "gpu"),
    "low_memory": (False, lambda plan: not plan.choices.low_memory),
}


@pytest.mark.parametrize("name", FIXED)
def test_what_is_fixed_never_changes(name, full_size, big_text):
    value, holds = FIXED[name]
    config = OptimizationConfig.preset("speed", memory_limit_gib=1, **{name: value}).sized((480, 832))
    plans = [*plans_for(Asked(locate("tiny"), config, CUDA))]
    assert len(plans) > 1 and all(map(holds, plans))


def test_bf16_presets_keep_their_weights(full_size):
    plans = [*plans_for(Asked(locate("tiny"), OptimizationConfig(memory_limit_gib=1).sized((480, 832)), CUDA))]
    assert not any(plan.choices.low_memory for plan in plans)


def test_what_does_not_fit_is_one_error_that_says_what_would(full_size, big_text):
    config = OptimizationConfig.preset("balanced", memory_limit_gib=9, text_residence="gpu").sized((480, 832))
    plan = plan_for(Asked(locate("tiny"), config, CUDA))
    with pytest.raises(MemoryShort) as error:
        planning.check_fits(plan)
    said = str(error.value)
    assert said.startswith("memory is ") and "GiB short: 480x832 takes " in said and "(memory_limit_gib=9)" in said
    assert "9.0 GiB are there" in said and "what would do: " in said and "320x576" not in said.split("would do")[0]
    assert isinstance(error.value, ValueError)


def test_where_nothing_fits_nothing_is_advised(gpu_of):
    gpu_of(0.1)
    asked = Asked(locate("tiny"), OptimizationConfig(height=32, width=48), CUDA)
    with pytest.raises(MemoryShort, match=r"0\.1 GiB are there; no smaller setting would do$"):
        planning.check_fits(plan_for(asked))


def test_another_vae_is_in_the_plan_from_when_it_is_asked_for():
    engine = LongLiveEngine("tiny", OptimizationConfig(height=32, width=64), CPU)
    own, seen = engine.memory_plan, set()
    engine.use_vae("wan")
    assert engine.memory_plan is own
    for name in ("tae", "lightvae"):
        before = engine.memory_plan
        engine.use_vae(name)
        after, codec = engine.memory_plan, engine.stream.networks.codec
        assert after.parts.keys() - before.parts.keys() == {f"VAE {name}"} and after.choices == own.choices
        assert abs(after.parts[f"VAE {name}"] - storage_bytes([vars(codec)], CPU, seen)) <= 4  # what was cut off
        assert after.peak > before.peak and after.parts["VAE"] == own.parts["VAE"]
        engine.use_vae("wan"), engine.use_vae(name)
        assert engine.memory_plan is after
    small = LongLiveEngine("tiny", OptimizationConfig(height=32, width=64, vae_type="tae"), CPU)
    small.use_vae("wan")
    kept = max(own.parts["VAE's stream"], after.parts["VAE's stream"])
    assert small.memory_plan.parts["VAE's stream"] == own.parts["VAE's stream"] == kept


@pytest.mark.parametrize("taken", ["by the plan", "by others"])
def test_a_vae_that_does_not_fit_is_one_error_before_it_is_loaded(taken, gpu_of, monkeypatch):
    engine = LongLiveEngine("tiny", OptimizationConfig(height=32, width=64), CPU)
    codec, load = engine.stream.networks.codec, engine_module.load_vae
    gpu_of(100)
    plan = plan_for(Asked(engine.files, engine.config, CUDA))
    if taken == "by the plan":
        plan = dataclasses.replace(plan, available=plan.peak)
    else:
        gpu_of(MEASURED.context / GIB)
    engine._plan = plan
    monkeypatch.setattr(engine_module, "load_vae", lambda *args: pytest.fail("loaded"))
    with pytest.raises(MemoryShort, match=r"^memory is .* short: vae_type 'tae' takes .* of cuda:0 beside what is"):
        engine.use_vae("tae")
    assert engine.memory_plan is plan and engine.stream.networks.codec is codec
    gpu_of(100)
    engine._plan = dataclasses.replace(plan, available=100 * GIB)
    monkeypatch.setattr(engine_module, "load_vae", load)
    engine.use_vae("tae")
    grown = engine.memory_plan
    assert grown.fits and grown.peak > plan.peak and grown.parts["VAE tae"] > 0
    leaner = [*planning.leaner_plans(grown)]
    assert leaner and all(each.parts["VAE tae"] for each in leaner)


def test_a_vae_counts_where_it_lies(gpu_of):
    gpu_of(100)
    config = OptimizationConfig(height=32, width=64)
    plan = plan_for(Asked(locate("tiny"), config, CUDA, torch.device("cuda", 1)))
    grown = planning.with_another_vae(plan, locate("tiny", "lighttae"))
    assert grown.parts == plan.parts and grown.others[0].parts["VAE lighttae"] > 0
    assert grown.choices == plan.choices


def test_an_engine_follows_its_plan(full_size, big_text, caplog):
    """As far as it goes without a GPU: what is chosen reaches the config, the devices and what loads the weights."""
    caplog.set_level(logging.INFO)
    engine = LongLiveEngine.__new__(LongLiveEngine)
    engine._asked = OptimizationConfig.preset("speed", memory_limit_gib=11).sized((480, 832))
    engine.files, engine.config, engine.devices = locate("tiny"), engine._asked, Devices(CPU)
    engine.devices.model = engine.devices.vae = CUDA
    engine.devices.release = lambda: None
    engine._follow_plan()
    assert engine.memory_plan.choices == ("int8", "parked", True, False) and engine.config.low_memory is True
    assert engine._text_keywords() == {"precision": "int8", "residence": "parked", "keep": False}
    assert engine.devices.text == CUDA
    assert [record.message for record in caplog.records if "memory: " in record.message] == [
        f"memory: {engine.memory_plan}"
    ]
    engine._asked = OptimizationConfig.preset("speed", memory_limit_gib=2, text_residence="gpu").sized((480, 832))
    with pytest.raises(MemoryShort, match=r"text_residence='auto'|no smaller"):
        engine._follow_plan()


def ranks_of(count, least=0):
    """Of which another has so much room at least."""
    ranks = Ranks()
    ranks.count, ranks.least = count, lambda mine: min(mine, least)
    return ranks


def test_ranks_share_what_passes_take_and_choose_alike(full_size, big_text):
    """Weights and ring are whole on each rank; what the one with the least room must do, all do."""
    files, config = locate("tiny"), OptimizationConfig.preset("balanced").sized((480, 832))
    one, two, eight = (plan_for(Asked(files, config, CUDA, ranks=ranks_of(count))) for count in (1, 2, 8))
    assert one.parts == two.parts == eight.parts and one.working > two.working > eight.working > one.working // 8
    assert one.available is two.available is None
    engine = LongLiveEngine.__new__(LongLiveEngine)
    engine._asked = engine.config = OptimizationConfig.preset("speed", memory_limit_gib=20).sized((480, 832))
    engine.files, engine.devices = files, Devices(CPU)
    engine.devices.model, engine.devices.release = CUDA, lambda: None
    engine.devices.ranks = ranks_of(2, 11 * GIB)
    engine._follow_plan()
    assert engine.memory_plan.available == 11 * GIB and engine.memory_plan.choices.text_residence == "parked"


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf, "8", True])
def test_a_limit_must_be_finite_and_positive(bad):
    with pytest.raises(ValueError, match="memory_limit_gib"):
        OptimizationConfig(memory_limit_gib=bad)


def test_what_cannot_be_planned_is_refused_by_name(tmp_path):
    with pytest.raises(TypeError, match="config must be of the class OptimizationConfig, got dict"):
        memory_plan("tiny", {}, CPU)
    with pytest.raises(FileNotFoundError, match="model_path"):
        memory_plan(tmp_path / "gone", None, CPU)
    with pytest.raises(ValueError, match="device must be"):
        memory_plan("tiny", None, "nowhere")
    with pytest.raises(ValueError, match="text_residence must be auto or cpu"):
        memory_plan("tiny", OptimizationConfig(text_residence="parked"), CPU)


def test_a_limit_refuses_nothing_on_a_cpu():
    config = OptimizationConfig(height=32, width=48, memory_limit_gib=1e-6)
    engine = LongLiveEngine("tiny", config, CPU)
    assert engine.memory_plan.fits and engine.memory_plan.peak > 0 and not engine.memory_fallback
    with pytest.raises(ValueError, match="memory_limit_gib cannot change"):
        engine.configure(memory_limit_gib=3.0)


def test_a_plan_is_told_in_words_and_numbers(gpu_of):
    gpu_of(10)
    plan = plan_for(Asked(locate("tiny"), OptimizationConfig(height=64, width=96), CUDA))
    assert str(plan) == f"{plan.peak / GIB:.1f} GiB of 10.0 GiB that there are on cuda:0"
    said = plan.as_json()
    assert said["available_gib"] == 10 and said["peak_gib"] == round(plan.peak / GIB, 2) and said["costs"] == []
    assert sum(nbytes for _, nbytes in plan.rows()) == plan.peak


@pytest.mark.parametrize("make", [PackedCodec, ModulesCodec])
@pytest.mark.parametrize("frames", [2, 3, 5])
def test_one_latent_at_a_time_gives_the_same(frames, make):
    """Up to torch's rounding, which depends on how many frames it convolves; our convolutions', on a GPU, does not
    (tests/vae/test_packed.py)."""
    torch.manual_seed(0)
    vae = WanVae(VaeConfig(base=8)).double()
    z, x = torch.randn(2, frames, 16, 2, 3).double(), torch.rand(2, 4 * frames + 1, 3, 16, 24).double() * 2 - 1
    codecs = make(vae), make(vae, in_parts=True)
    pixels = [[stream.decode(each) for each in z] for stream in map(DecoderStream, codecs)]
    latents = [[stream.encode(each[i:]) for i, each in enumerate(x)] for stream in map(EncoderStream, codecs)]
    for whole, parts in (pixels, latents):
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)


def tiny(device="cpu", **changes) -> LongLiveEngine:
    return LongLiveEngine("tiny", OptimizationConfig(height=32, width=64, **changes), device)


def blocks(engine, *prompts) -> list[torch.Tensor]:
    return [engine.generate_block(BlockRequest(prompt)).cpu() for prompt in prompts]


def short_once(monkeypatch, owner, name, times=1):
    """Let a method do its work and then find no memory, so many times."""
    real, calls = getattr(owner, name), []

    def work(*args, **how):
        result = real(*args, **how)
        calls.append(args)
        if len(calls) <= times:
            raise torch.OutOfMemoryError("no memory")
        return result

    monkeypatch.setattr(owner, name, work)
    return calls


@pytest.mark.parametrize("step", ["decode", "denoise", "context"])
def test_a_video_goes_on_where_memory_runs_out(step, monkeypatch, caplog):
    engine, other = tiny(), tiny()
    wanted = blocks(other, *[FOX] * 3)
    made = blocks(engine, FOX, FOX)
    with monkeypatch.context() as short:
        owner = engine.vae if step == "decode" else engine.stream.passes
        short_once(short, owner, step)
        made += blocks(engine, FOX)
    other.codec.in_parts = True
    wanted, made = [*wanted, *blocks(other, BOAT, BOAT)], [*made, *blocks(engine, BOAT, BOAT)]
    assert [len(block) for block in made] == [9, 12, 12, 12, 12] and engine.stream.position == 15
    for one, another in zip(made, wanted, strict=True):
        assert (one.int() - another.int()).abs().max() <= 1
    assert engine.codec.in_parts and engine.memory_plan.choices.vae_in_parts
    assert engine.memory_fallback and LatencyMeter(engine).stats().memory_fallback == engine.memory_fallback
    assert any("memory has run out" in record.message for record in caplog.records)


def test_the_rest_of_a_block_survives_too(monkeypatch):
    engine, other = tiny(), tiny()
    other.codec.in_parts = True
    for each in (engine, other):
        blocks(each, FOX, FOX)
        each.generate_block(BlockRequest(FOX), first_latent_only=True)
    with monkeypatch.context() as short:
        short_once(short, engine.vae, "decode")
        made = engine.rest_of_block()
    assert len(made) == 8 and (made.int() - other.rest_of_block().int()).abs().max() <= 1
    assert (blocks(engine, FOX)[0].int() - blocks(other, FOX)[0].int()).abs().max() <= 1


def test_video_goes_on_where_its_encoder_finds_no_memory(monkeypatch):
    engine, other = tiny(), tiny()
    video = (torch.rand(13, 8, 16, 3) * 255).byte().repeat_interleave(4, 1).repeat_interleave(4, 2)
    wish = BlockRequest(FOX, video=video, noise_scale=0.3)
    wanted = [other.generate_block(wish) for _ in range(2)]
    made = [engine.generate_block(wish)]
    with monkeypatch.context() as short:
        short_once(short, engine.vae, "encode")
        made.append(engine.generate_block(wish))
    assert [len(block) for block in made] == [13, 12] and engine.stream.position == other.stream.position == 7
    assert torch.equal(made[0], wanted[0]) and len(engine.generate_block(wish)) == 12


def test_it_falls_back_once(monkeypatch):
    engine = tiny()
    blocks(engine, FOX)
    with monkeypatch.context() as short, pytest.raises(torch.OutOfMemoryError):
        short_once(short, engine.vae, "decode", times=5)
        blocks(engine, FOX)
    given_up = engine.memory_fallback
    with monkeypatch.context() as short, pytest.raises(torch.OutOfMemoryError):
        short_once(short, engine.vae, "decode")
        blocks(engine, FOX)
    assert engine.memory_fallback == given_up and engine.stream.position == 3
    assert [len(block) for block in blocks(engine, FOX, FOX)] == [12, 12]


def test_weights_in_the_models_dtype_go_first(monkeypatch):
    """In an engine of 8 bits that has both kinds; pictures go on, and LoRA scales and other streams do not mind."""
    engine = tiny(precision="int8")
    second = engine.open_stream(precision="bf16")
    blocks(engine, FOX, FOX)
    before = storage_bytes([engine.model], CPU)
    with monkeypatch.context() as short:
        short_once(short, engine.stream.passes, "denoise")
        blocks(engine, FOX)
    assert engine.config.low_memory and engine.memory_plan.choices.low_memory and not engine.codec.in_parts
    assert before - storage_bytes([engine.model], CPU) == memory_difference(engine)
    lean = tiny(precision="int8", low_memory=True)
    streams = (engine, second), (lean, lean.open_stream(precision="bf16"))
    assert torch.equal(*(each.generate_block(BlockRequest(FOX), stream) for each, stream in streams))
    engine.set_loras([])
    assert len(blocks(engine, BOAT)[0]) == 12


def memory_difference(engine: LongLiveEngine) -> int:
    int8 = sum(t.numel() for name, t in engine.model.named_buffers() if name.endswith("int8_weight"))
    return int8 * engine.dtype.itemsize


def test_opening_a_stream_falls_back_too(monkeypatch):
    engine = tiny(precision="int8")
    engine.model.hold_int8()
    calls = []

    class Short(outlining.Stream):
        def __init__(self, *args, **how):
            calls.append(args)
            if len(calls) == 1:
                raise torch.OutOfMemoryError("no memory")
            super().__init__(*args, **how)

    monkeypatch.setattr("longlive_optimized.engine.engine.Stream", Short)
    assert len(engine.generate_block(BlockRequest(FOX))) == 9 and engine.config.low_memory and len(calls) == 2


def test_a_decoder_remembers_less_than_the_history_holds():
    """A decoder that has lost a long video finds its state again in the last 64 latents, bit for bit."""
    torch.manual_seed(0)
    codec = PackedCodec(WanVae(VaeConfig(base=8)))
    z = torch.randn(MAX_WINDOW + 7, 16, 2, 3)
    one, other = DecoderStream(codec), DecoderStream(codec)
    for part in z[:-1].split(3):
        one.decode_uint8(part)
    for part in z[-MAX_WINDOW - 1 : -1].split(3):
        other.decode_uint8(part)
    assert torch.equal(*(stream.decode_uint8(z[-1:]) for stream in (one, other)))


def test_the_longest_passes_come_first(monkeypatch):
    """Graphs of a stream share a pool: what is captured later finds room in what the longest has left."""
    seen, run = [], GraphCache.run

    def note(cache, key, work, kernels=None):
        if isinstance(key, tuple) and key[0] in ("context", "denoise") and key not in seen:
            seen.append(key)
        return run(cache, key, work, kernels)

    monkeypatch.setattr(GraphCache, "run", note)
    tiny().warmup()
    assert [key[2] for key in seen if key[0] == "context"] == [12, 9, 6, 3] and seen[0][0] == "context"


MIDDLE = ModelConfig(dim=768, ffn_dim=3072, num_heads=6, num_layers=6, text_dim=64, text_len=64)


@pytest.fixture(scope="module")
def middle_model(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(random_checkpoint._CONFIGS, "tiny", (MIDDLE, VaeConfig(base=48), 8))
        yield random_checkpoint.make_checkpoint(tmp_path_factory.mktemp("middle") / "model", "tiny")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("residence", ["gpu", "parked", "cpu"])
@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("model", ["tiny", "middle"])
def test_a_gpu_takes_what_the_plan_says(model, precision, residence, middle_model):
    """Never more, and at most 5 % less, but for workspaces: those are a constant, measured beside the full model."""
    size = (480, 832) if model == "middle" else (320, 576)
    config = OptimizationConfig(height=size[0], width=size[1], precision=precision, text_residence=residence)
    gc.collect(), torch.cuda.empty_cache(), torch.cuda.synchronize(), torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    engine = LongLiveEngine("tiny" if model == "tiny" else middle_model, config, "cuda")
    for prompt in (FOX, FOX, FOX, FOX, BOAT, FOX):  # a recache of a whole window among them
        engine.generate_block(BlockRequest(prompt))
    torch.cuda.synchronize()
    taken, plan = torch.cuda.max_memory_allocated() - before, engine.memory_plan
    assert plan.choices.text_residence == residence
    assert taken <= plan.allocated
    unused = plan.parts["prompts"] + plan.parts["history"]  # fill up later
    assert plan.allocated - plan.parts["workspaces"] - unused <= 1.05 * taken


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_takes_what_the_plan_with_another_vae_says():
    gc.collect(), torch.cuda.empty_cache(), torch.cuda.synchronize(), torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    engine = LongLiveEngine("tiny", OptimizationConfig(height=320, width=576), "cuda")
    blocks(engine, FOX, FOX)
    own = engine.memory_plan
    engine.use_vae("lightvae")
    blocks(engine, FOX, FOX, BOAT)
    torch.cuda.synchronize()
    plan, limit = engine.memory_plan, engine.memory_plan.allocated
    assert plan.parts["VAE lightvae"] > 0 and plan.peak > own.peak and plan.fits
    assert torch.cuda.max_memory_allocated() - before <= limit


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_limit_is_kept_or_told():
    plan = memory_plan("tiny", OptimizationConfig(height=64, width=96), "cuda")
    assert plan.fits and plan.available > plan.peak
    with pytest.raises(MemoryShort, match=r"memory_limit_gib=0\.25"):
        tiny("cuda", memory_limit_gib=0.25)
    assert tiny("cuda", memory_limit_gib=30.0).memory_plan.available <= 30 * GIB


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_video_goes_on_where_memory_runs_out(monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    engine = tiny("cuda", precision="int8")
    engine.warmup()
    blocks(engine, FOX, FOX)
    with monkeypatch.context() as short:
        short_once(short, engine.stream.passes, "denoise")
        blocks(engine, FOX)
    assert engine.memory_fallback and [len(block) for block in blocks(engine, BOAT, FOX)] == [12, 12]
    assert engine.stream.cuda_graphs_active and engine.stream.position == 15


@pytest.mark.parametrize(("preset", "more"), [("balanced", 3.8), ("speed", 3.5)])
def test_control_at_full_size(preset, more, full_size):
    """VACE's module has 1.37 GiB in bfloat16, an encoder of one latent frame at a time about 1.9 beside its weights."""
    config = OptimizationConfig.preset(preset, low_memory=False).sized((480, 832))
    without, plan = (
        plan_for(Asked(locate("tiny"), dataclasses.replace(config, control=on), CUDA)) for on in (False, True)
    )
    assert plan.parts["control"] / GIB == pytest.approx(2 * 734_975_232 / GIB)
    assert plan.parts["passes"] - without.parts["passes"] < 0.1 * GIB
    assert plan.parts["control's encoder"] / GIB == pytest.approx({"balanced": 1.98, "speed": 1.39}[preset], rel=0.05)
    assert plan.working == without.working and plan.reserved == without.reserved
    assert 3.2 < (plan.peak - without.peak) / GIB < more
