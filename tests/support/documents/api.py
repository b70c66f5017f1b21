"""What docs/api.md says of the engine, the pipeline and the configurations."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable

import pytest
import torch

import longlive_optimized
from longlive_optimized import BlockRequest, Control, LongLiveEngine, OptimizationConfig
from longlive_optimized.config import CHANGEABLE, MAX_WINDOW, StreamSettings
from longlive_optimized.demo.scope_integration import (
    LatencyStats,
    OptimizedScopePipeline,
    OverlayConfig,
    ScopeOptimizationConfig,
    create_latency_overlay,
    create_optimized_scope_pipeline,
    story_recorder,
)
from longlive_optimized.engine.latency import WINDOW
from longlive_optimized.engine.snapshot import Snapshot
from longlive_optimized.model.config import ModelConfig
from longlive_optimized.model.ring_cache import RingCache
from longlive_optimized.model.transformer import Transformer
from longlive_optimized.story import MOST_BLOCKS, OF_ENGINE, Story
from longlive_optimized.weights.locate import TINY_SIZE, native_size
from longlive_optimized.weights.user_lora import UserLora

from .claims import lists, says
from .markdown import Unit
from .place import ROOT, Place
from .tables import body, names, same_signature, value, with_defaults

API = "docs/api.md"
PROMPT = "a red circle moves left over a green field"


@says(API, "`LongLiveEngine(model_path, config=None, device=None, progress=None, loras=(), vae_device=None")
def the_engine_is_made(units: list[Unit]):
    same_signature(names(units[0].text)[0], LongLiveEngine.__init__)


@says(
    API,
    "values take 1.73 GB in bfloat16, its keys as much, or 0.87 GB in int8 with 58 MB beside them.",
)
def what_a_ring_takes():
    sizes = {"window": 12, "sink": 3, "relative": True, "dtype": torch.bfloat16, "device": "meta", "int8": True}
    ring = RingCache(ModelConfig(), (480 // 16, 832 // 16), **sizes)
    assert ring.k is None
    held = ring.v.values(), ring.cache8.keys
    assert [f"{sum(t.nbytes for t in each) / 1e9:.2f}" for each in held] == ["1.73", "0.87"]
    assert round(ring._own_k.nbytes / 1e6) == 58


@says(API, "`UserLora(path, scale=1.0)`, from `longlive_optimized.weights.user_lora`")
def a_lora_is_made(units: list[Unit]):
    same_signature(names(units[0].text)[0], UserLora.__init__)


@says(API, "- It is chosen when the engine is made. A network whose widths int8 products do not take is refused.")
def low_memory_is_chosen_once(units: list[Unit]):
    with pytest.raises(ValueError, match="low_memory cannot change"):
        OptimizationConfig().changed(low_memory=True)
    with pytest.raises(ValueError, match="low_memory must be false"):
        Transformer(ModelConfig(dim=1552, num_heads=97), device="meta", int8_only=True)


@says(API, "umT5-XXL takes, in GiB:")
def what_a_text_encoder_takes():
    from longlive_optimized.text.encoder import Dimensions, checkpoint_shapes
    from longlive_optimized.text.footprint import footprint

    xxl = Dimensions(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_heads=64, num_layers=24)
    shapes, text = checkpoint_shapes(xxl), (ROOT / API).read_text()
    for precision in ("bf16", "int8", "fp8"):
        gpu, parked, cpu = (footprint(shapes, precision, residence) for residence in ("gpu", "parked", "cpu"))
        held, busy, parked_busy, host = (
            round(n / 2**30, 1) for n in (gpu.gpu, gpu.gpu_encoding, parked.gpu_encoding, cpu.host)
        )
        cells = [f"{held}, and {busy}", f"{parked_busy}, {host}", str(host)]
        assert re.search(rf"\| `{precision}` \| {re.escape(cells[0])}[^|]*\| {cells[1]} \| {cells[2]} \|", text), cells


@says(
    API,
    "Before an engine reads weights, `memory_plan` adds up what each of its parts will take",
    "From fast to lean, each step with those before; the first plan that fits is taken:",
    "1. everything on the GPU, as it is stored;",
    "2. the text encoder in int8;",
    "3. the text encoder parked in host memory;",
    "4. `low_memory`, with an 8-bit precision;",
    "5. the VAE takes one latent frame at a time",
    "6. prompts encoded by the CPU.",
    "What the config says itself (`text_precision`, `text_residence`, `low_memory`) is never changed.",
)
def memory_is_planned(units: list[Unit]):
    from longlive_optimized.engine.memory_plan import MemoryShort, memory_plan
    from longlive_optimized.engine.memory_shares import STEPS

    steps = [(name, value) for change, _ in STEPS for name, value in change.items()]
    assert [name for name, _ in steps] == [
        "text_precision", "text_residence", "low_memory", "vae_in_parts", "text_residence"
    ]  # fmt: skip
    assert [value for _, value in steps if isinstance(value, str)] == ["int8", "parked", "cpu"]
    plan = memory_plan("tiny", OptimizationConfig(height=32, width=48), "cpu")
    assert plan.fits and plan.available is None and plan.peak > 0 and plan.video_input > 0
    assert issubclass(MemoryShort, ValueError) and not plan.costs and {*dir(plan)} >= {"parts", "host", "choices"}


@says(API, "A VAE on a GPU of its own takes one latent frame at a time before `low_memory` is tried.")
def a_vae_by_itself_gives_way_first():
    from longlive_optimized.engine.memory_plan import Ladder
    from longlive_optimized.engine.memory_shares import Asked
    from longlive_optimized.weights.locate import locate

    gpus = torch.device("cuda", 0), torch.device("cuda", 1)
    steps = Ladder(Asked(locate("tiny"), OptimizationConfig(height=32, width=48), *gpus)).steps
    changed = [name for change, _ in steps for name in change]
    assert changed.index("vae_in_parts") < changed.index("low_memory")


@says(
    API,
    "- With `vae_device` a block is decoded while the next one is made",
    "- With `text_device` a prompt is encoded while the block before is made.",
    "- Both must be GPUs where `device` is one.",
    "- Stages overlap then.",
    "- The memory plan adds up each GPU by itself",
)
def parts_on_other_gpus(place: Place):
    place.passes("tests/engine/test_devices.py")


@says(API, "If memory runs out all the same while a stream is opened or a block is made, the engine goes over to")
def a_video_survives():
    engine = LongLiveEngine("tiny", OptimizationConfig(height=32, width=48), "cpu")
    engine.generate_block(BlockRequest(PROMPT))
    decode, calls = engine.vae.decode, []

    def short(*args):
        calls.append(decode(*args))
        if len(calls) == 1:
            raise torch.OutOfMemoryError("no memory")
        return calls[-1]

    engine.vae.decode = short
    assert len(engine.generate_block(BlockRequest(PROMPT))) == 12 and engine.stream.position == 6
    assert engine.memory_fallback and MAX_WINDOW == 64


def _methods(rows: list[list[str]], of: type) -> None:
    for first, *_ in rows:
        for said in names(first):
            method = getattr(of, said.partition("(")[0], None)
            if "(" in said and method is not None:
                same_signature(said, method)
            else:
                assert hasattr(of, said) or said in vars(OptimizedScopePipeline).get("_show").__code__.co_names, said


@lists(API, "The engine: blocks")
def the_engine(units: list[Unit]):
    assert len(units) == 13
    _methods([unit.cells for unit in units], LongLiveEngine)
    _all_are_listed(units, LongLiveEngine, but={"synchronize", "stream", "device", "model_name"})


def _all_are_listed(units: list[Unit], of: type, but: set[str] = frozenset()) -> None:
    listed = " ".join(unit.cells[0] for unit in units)
    missing = [name for name in vars(of) if not name.startswith("_") and name not in but and f"`{name}" not in listed]
    assert not missing, f"methods that are not named: {missing}"


@lists(API, "LoRAs")
def config_fields(units: list[Unit]):
    """The table of OptimizationConfig: fields, defaults, and what may change."""
    config, seen, changes = OptimizationConfig(), [], set()
    for cells in body(units, "field"):
        fields = names(cells[0])
        defaults = [cells[1]] if len(fields) == 1 else cells[1].split(", ")
        for field, default in zip(fields, defaults, strict=True):
            assert getattr(config, field) == value(default), f"{field}: {default} is said"
        if fields == ["height", "width"]:
            assert "480 and 832, of the built-in model {} and {}.".format(*TINY_SIZE) in cells[2], cells[2]
        seen += fields
        changes |= {*fields} if "•" in cells[0] else set()
    assert seen == [field.name for field in dataclasses.fields(OptimizationConfig)]
    assert changes == {*CHANGEABLE}
    own = [field.name for field in dataclasses.fields(StreamSettings)]
    assert own == seen[: seen.index("use_cuda_graphs") + 1]  # "those down to `use_cuda_graphs`"


@says(API, "`OptimizationConfig`; a stream has those down to `use_cuda_graphs` for itself")
def sizes_where_none_are_given():
    assert OptimizationConfig().size == (480, 832) and native_size("tiny") == TINY_SIZE
    with pytest.raises(ValueError, match="height"):
        OptimizationConfig(height=100)
    with pytest.raises(ValueError, match="fall"):
        OptimizationConfig(denoising_steps=(250, 500))


@says(API, "`BlockRequest`, one block's wishes")
def a_request(units: list[Unit]):
    listed = names(units[0].text)[1:]
    assert listed == [field.name for field in dataclasses.fields(BlockRequest)]


@lists(API, "Snapshots")
@lists(API, "Snapshots", "item")
@says(API, "The first block makes the ring anew (a recache of the oldest latents, then the context passes since)")
def a_snapshot(units: list[Unit]):
    """In brief; ``tests/engine/test_snapshot.py`` tries all of it."""
    engine = LongLiveEngine("tiny", OptimizationConfig(height=32, width=48), device="cpu")
    stream = engine.open_stream()
    for blocks in (2, 8):
        for _ in range(blocks):
            engine.generate_block(BlockRequest(PROMPT), stream)
        new = engine.open_stream(snapshot=Snapshot.from_bytes(stream.snapshot().to_bytes()))
        wanted, found = (engine.generate_block(BlockRequest(PROMPT), each) for each in (stream, new))
        assert wanted.shape == found.shape and (wanted.int() - found.int()).abs().max() <= 1
        difference = (stream.history[-3:] - new.history[-3:]).norm() / stream.history[-3:].norm()
        assert difference == 0 if blocks == 2 else 0 < difference < 3e-6
    assert len(stream.snapshot().tensors["latents"]) == 24
    assert len(stream.snapshot(latents=MAX_WINDOW).tensors["latents"]) == 36  # all


@says(API, "At 480×832 in bfloat16 it takes 5.4 MB and 8 kB for each token of the prompts in use.")
def what_a_snapshot_takes():
    latents = torch.empty(24 + 3, 16, 480 // 8, 832 // 8, dtype=torch.bfloat16, device="meta")
    assert round(latents.nbytes / 1e6, 1) == 5.4
    assert round(torch.empty(ModelConfig().text_dim, dtype=torch.bfloat16, device="meta").nbytes / 1e3) == 8


@lists(API, "Control")
def a_control(units: list[Unit]):
    """The table of Control's fields."""
    fields = [name for cells in body(units, "field of `Control`") for name in names(cells[0])]
    assert fields == [field.name for field in dataclasses.fields(Control)]
    picture = torch.zeros(16, 16, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"OptimizationConfig\(control=True\)"):
        LongLiveEngine("tiny", device="cpu").generate_block(BlockRequest(PROMPT, control=Control(first_frame=picture)))


@says(API, "The encoder for control video takes 1.9 GiB of a GPU at 480×832 (1.3 with the VAE in int8)")
def an_encoder_for_control():
    from longlive_optimized.engine.live_bytes import storage_bytes
    from longlive_optimized.vae.packed.codec import PackedCodec
    from longlive_optimized.vae.wan.model import WanVae

    meta = torch.device("meta")
    for int8, gib in ((False, 1.9), (True, 1.3)):
        codec = PackedCodec(WanVae(device="meta").bfloat16(), int8=int8)
        encoder = codec.new_encoder((480, 832), None, in_parts=True)
        seen: set[int] = set()
        storage_bytes([encoder.weights, codec], meta, seen)
        assert abs(storage_bytes([encoder], meta, seen) / 2**30 - gib) < 0.05


@says(API, "`noise_scale`, 0.1 to 1, is the share of noise")
def passes_of_video_input():
    from longlive_optimized.engine.sampler import from_noise_scale, make_schedule

    # "With four steps that leaves one pass below 0.625, two at 0.7, all four from 0.94 on"
    steps = make_schedule((1000, 750, 500, 250), "longlive")
    passes = {scale: len(from_noise_scale(steps, scale, "cut")) for scale in (0.1, 0.62, 0.7, 0.93, 0.94, 1.0)}
    assert passes == {0.1: 1, 0.62: 1, 0.7: 2, 0.93: 3, 0.94: 4, 1.0: 4}, passes
    # "With `noise_from_motion` the video's motion decides (0.54 to 0.72), and `noise_scale` adds a tenth of itself"
    assert [round(0.9 * (0.8 - 0.2 * motion), 2) for motion in (1, 0)] == [0.54, 0.72]
    source = (ROOT / "longlive_optimized/engine/video_input.py").read_text()
    assert "return 0.9 * (0.8 - 0.2 * motion) + 0.1 * scale" in source
    for scale in (0.09, 1.1):
        with pytest.raises(ValueError, match="noise_scale"):
            BlockRequest(PROMPT, noise_scale=scale)


@says(API, "differ by about 127, 54, 51 and 0 of 255 from a black and a white one at 0.1, 0.3, 0.5 and 0.7")
def strength_of_video_input(place: Place):
    import torch

    del place  # it takes half a minute
    engine, found = LongLiveEngine("tiny", device="cpu"), []
    for scale in (0.1, 0.3, 0.5, 0.7):
        made = []
        for colour in (0, 255):
            stream, video = engine.open_stream(), torch.full((13, *TINY_SIZE, 3), colour, dtype=torch.uint8)
            request = BlockRequest(PROMPT, video=video, noise_scale=scale)
            made.append([engine.generate_block(request, stream) for _ in range(3)][-1].float())
        found.append((made[0] - made[1]).abs().mean().item())
    assert all(abs(a - b) <= 12 for a, b in zip(found, (127, 54, 51, 0), strict=True)), found


@says(
    API, "`from longlive_optimized import LongLiveEngine", "`from longlive_optimized.demo.scope_integration import …`"
)
def imports(units: list[Unit]):
    for unit in units:
        exec(names(unit.text)[0].replace("…", "*"), {})


@says(API, "`longlive_optimized.generate(prompt, seconds=None,", "`longlive_optimized.stream(prompt, model=")
def a_call_and_a_loop(units: list[Unit]):
    said = names(units[0].text)[0]
    name = said.partition("(")[0].rpartition(".")[2]
    same_signature(said.rpartition("optimized.")[2], getattr(longlive_optimized, name), method=False)


@says(API, "Engine, its streams, pipeline and `stream(...)` have `close()`")
def all_can_be_closed(place: Place):
    place.passes("tests/engine/test_close.py tests/demo/test_live.py")


@says(API, '"version": 1, "model": "tiny", "seed": 7, "preset": "balanced"')
def a_story_as_it_is_shown(units: list[Unit]):
    story = Story.read(json.loads(units[0].text))
    moments = [*story.moments()]
    assert (story.model, story.height, story.width) == ("tiny", *TINY_SIZE), story
    assert (len(moments), moments[4].preset, moments[12].loras) == (20, "ultra", {"paint.safetensors": 0.2})
    assert (moments[8].prompt.transition_blocks, moments[16].restart, moments[16].seed) == (3, True, 8)


@lists(API, "Stories")
def fields_of_a_story(units: list[Unit]):
    rows = {name: unit.cells for unit in units for name in names(unit.cells[0])}
    assert {*Story.model_fields} <= {*rows} and {"block", "prompt"} <= {*rows}
    assert {*names(rows["settings"][1])} == {"use_cuda_graphs", "vae_type", *OF_ENGINE}


@says(API, "A story is what a video was made from, as JSON")
@says(API, "A recording holds 48 KiB of prompts and changes and 200000 blocks")
def stories(place: Place):
    assert (story_recorder.MOST_BYTES, MOST_BLOCKS) == (48 * 1024, 200_000)
    place.passes("tests/engine/test_story.py tests/demo/test_server_story.py")


@says(API, "`generate` writes an mp4, a GIF or an animated WebP", "All are checked before the model is loaded.")
def files_from_the_command_line(place: Place):
    place.passes("tests/cli/test_stories.py")


@says(API, "A `Stream` is one video.")
def a_stream_has_settings():
    stream = LongLiveEngine("tiny", device="cpu").open_stream(local_attn_size=9)
    assert isinstance(stream.settings, StreamSettings) and stream.settings.local_attn_size == 9
    stream.configure(denoising_steps=(1000, 250))


@says(API, "`OptimizedScopePipeline(model_path, config=None, device=None)`")
def the_pipeline_is_made(units: list[Unit]):
    made, on, create = names(units[0].text)
    same_signature(made, OptimizedScopePipeline.__init__)
    same_signature(on.removeprefix("OptimizedScopePipeline."), OptimizedScopePipeline.on, method=False)
    same_signature(create, create_optimized_scope_pipeline, method=False)


@lists(API, "The pipeline: frames")
def the_pipeline(units: list[Unit]):
    rows = [unit.cells for unit in units]
    _methods([row for row in rows if row[0]], OptimizedScopePipeline)
    _all_are_listed(units, OptimizedScopePipeline, but={"on"})
    assert "`blend`, `transition_blocks`, `denoising_steps`" in rows[1][1]


@says(API, "`ScopeOptimizationConfig` has all of the above and, to be changed at any time")
def the_pipelines_config(units: list[Unit]):
    said = with_defaults(units[0].text)
    own = {field.name for field in dataclasses.fields(ScopeOptimizationConfig)}
    own -= {field.name for field in dataclasses.fields(OptimizationConfig)}
    assert said.keys() == own
    config = ScopeOptimizationConfig()
    assert {name: getattr(config, name) for name in said} == said
    other = {"overlay_position": "top-left", "enable_latency_overlay": False}
    for name, default in said.items():
        config.changed(**{name: other.get(name, not default if isinstance(default, bool) else default)})


@says(API, "`LatencyStats`, per *pixel frame*")
def statistics(units: list[Unit]):
    said = names(units[0].text)[1:]
    assert {*said} == {field.name for field in dataclasses.fields(LatencyStats)}
    assert "(over the last 1000 frames)" in units[0].text and WINDOW == 1000


@says(API, "`OverlayConfig`, as keywords of `create_latency_overlay(")
def the_panels_config(units: list[Unit]):
    _, made, *fields = names(units[0].text)
    same_signature(made, create_latency_overlay, method=False)
    assert fields == [field.name for field in dataclasses.fields(OverlayConfig)]
    for name, default in with_defaults(units[0].text).items():
        assert getattr(OverlayConfig(), name) == default


@says(API, "`longlive_optimized.demo.video_track.PipelineVideoTrack(pipeline, prompt)`")
def the_track(units: list[Unit]):
    from longlive_optimized.demo.video_track import PipelineVideoTrack

    same_signature(names(units[0].text)[0].rpartition("track.")[2], PipelineVideoTrack.__init__)
    assert callable(PipelineVideoTrack.set_prompt)


def _errors() -> list[tuple[Callable, type[Exception], str]]:
    engine = LongLiveEngine("tiny", device="cpu")
    return [
        (lambda: engine.generate_block(PROMPT), TypeError, "request"),
        (lambda: LongLiveEngine("tiny", {"height": 64}), TypeError, "config"),
        (lambda: LongLiveEngine("nowhere"), FileNotFoundError, "model_path"),
        (lambda: BlockRequest(""), ValueError, "prompt"),
        (lambda: BlockRequest(PROMPT, denoising_steps=[1, 2]), ValueError, "denoising_steps"),
        (lambda: OptimizationConfig(hight=64), ValueError, "did you mean.*height"),
        (lambda: OptimizationConfig.preset("fast"), ValueError, "preset"),
        (lambda: engine.configure(height=80), ValueError, "height cannot change.*denoising_steps"),
        (lambda: engine.open_stream(height=10), ValueError, "height"),
        (lambda: create_latency_overlay("middle"), ValueError, "position"),
        (lambda: UserLora("none.safetensors"), FileNotFoundError, "path"),
    ]


@says(API, "Everything is checked before any work; errors are ValueErrors that name the argument, TypeErrors")
def errors_name_the_argument():
    import numpy as np

    for call, kind, words in _errors():
        with pytest.raises(kind, match=words):
            call()
    steps = np.array([1000, 500])
    assert OptimizationConfig(denoising_steps=steps, seed=np.int64(3)).denoising_steps == (1000, 500)
    assert BlockRequest(PROMPT, denoising_steps=steps, noise_scale=np.float32(0.5)).denoising_steps == (1000, 500)


@says(
    API,
    "One rule for engine, pipeline, track, server and plugin",
    "- A wish counts from the moment it is said",
    "- Repeating an old argument is no wish",
    "`tests/demo/test_last_wish.py` tries this in every order of calls.",
)
@says(
    API, "A transition starts from what is on screen.", "A video that begins anew begins with the last prompt at once"
)
def the_last_wish_in_every_order(place: Place):
    place.passes("tests/demo/test_last_wish.py")


@says(API, "A prompt of more than 512 tokens (of the built-in model: 48) is cut at the end; the log says so once")
def long_prompts(place: Place):
    code = f"""
from longlive_optimized import BlockRequest, LongLiveEngine
engine = LongLiveEngine("tiny", device="cpu")
for _ in range(2):
    engine.generate_block(BlockRequest("{PROMPT} " * 120))
"""
    (place.folder / "long.py").write_text(code)
    ran = place.run("python long.py")
    told = re.findall(r"the prompt has (\d+) tokens: the last (\d+) are left out", ran.text)
    assert ran.status == 0 and len(told) == 1, ran.text
    assert int(told[0][0]) - int(told[0][1]) == 48 and ModelConfig().text_len == 512, told


@lists(API, "LoRAs")
@says(API, "Modules that this model lacks are passed over, as are those of which `lora_A` or `lora_B` is missing")
@says(
    API, "From then on `set_loras` opens no file, and the weights are bit for bit those of an engine loaded with these"
)
def kinds_of_loras(place: Place):
    place.passes("tests/weights -k lora")


@lists(API, "A model's files")
@says(API, "Every file is checked before any of it is mapped or built")
def files_are_checked(place: Place):
    from longlive_optimized.weights import CheckpointError
    from longlive_optimized.weights.load import check
    from longlive_optimized.weights.locate import locate

    check(locate(place.model))
    place.run(f"cp -r {place.model} hurt")
    config = place.folder / "hurt/wan_models/Wan2.1-T2V-1.3B/config.json"
    config.write_text(config.read_text().replace('"num_layers": 2', '"num_layers": 1e9'))
    with pytest.raises(CheckpointError, match=r"config\.json.*num_layers"):
        check(locate(place.folder / "hurt"))
    ran = place.run("longlive-optimized doctor hurt")
    assert ran.status == 2 and "num_layers" in ran.text and "Traceback" not in ran.text, ran.text


@says(API, "it damages a small model's files, by default in 2000 ways, and loads each")
def the_fuzzer(place: Place):
    ran = place.run("python tests/measure/fuzz_files.py --help", place.checkout)
    assert "--cases" in ran.text
    source = (place.checkout / "tests/measure/fuzz_files.py").read_text()
    assert re.search(r'"--cases".*default=2000', source)
    ran = place.run("python tests/measure/fuzz_files.py --cases 20 --seed 7", place.checkout)
    assert ran.status == 0, ran.text


@says(API, "which `make-checkpoint`'s files lack")
def verified(place: Place):
    ran = place.run("longlive-optimized doctor $MODEL --verify")
    assert ran.status == 0 and "records have no checksum" in ran.text and "is complete" in ran.text, ran.text
    code = "import torch; torch.save({'a': torch.zeros(4)}, 'sums.pt')"
    code += "; from longlive_optimized.weights.files import verify; from pathlib import Path"
    ran = place.run(f"python -c \"{code}; print(verify(Path('sums.pt')))\"")
    assert ran.status == 0 and "no checksum" not in ran.text, ran.text


@says(
    API,
    "only the rest comes",
    "checked before; on a disk that gets full what has arrived stays",
    "is never replaced without `--force`",
)
def the_hub_on_loopback(place: Place):
    ran = place.run("python -m pytest -q tests/weights/test_hub.py tests/cli/test_download.py", place.checkout)
    assert ran.status == 0 and re.search(r"\d{2} passed", ran.text), ran.text
