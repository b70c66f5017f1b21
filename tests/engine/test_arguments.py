"""What people hand over: NumPy's and OpenCV's numbers, lists and pictures are taken, all else is refused by name."""

import dataclasses
import typing
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.demo.scope_integration import (
    OptimizedScopePipeline,
    OverlayConfig,
    ScopeOptimizationConfig,
    create_latency_overlay,
)
from longlive_optimized.demo.server.settings import ServerSettings
from longlive_optimized.weights.locate import TINY_SIZE

PICTURE = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
READ_ONLY = PICTURE.copy()
READ_ONLY.flags.writeable = False
VIDEO = np.stack([PICTURE] * 3)


@pytest.fixture(scope="module")
def engine():
    return LongLiveEngine("tiny", OptimizationConfig(height=32, width=32))


@pytest.fixture(scope="module")
def pipeline():
    return OptimizedScopePipeline("tiny", ScopeOptimizationConfig(height=32, width=32))


@pytest.mark.parametrize(
    ("field", "given", "read"),
    [
        ("prompt", np.str_("a fox"), "a fox"),
        ("prompt", [("a fox", 1)], (("a fox", 1),)),
        ("prompt", [["a fox", np.float32(0.5)], ("a hen", np.int64(2))], (("a fox", 0.5), ("a hen", 2))),
        ("prompt", [("a fox", torch.tensor(0.5))], (("a fox", 0.5),)),
        ("transition_blocks", np.int64(3), 3),
        ("transition_blocks", np.array(3), 3),
        ("transition_blocks", 3.0, 3),
        ("transition_blocks", np.float64(3), 3),
        ("transition_from_source", np.bool_(True), True),
        ("denoising_steps", [1000, 500], (1000, 500)),
        ("denoising_steps", np.array([1000, 500]), (1000, 500)),
        ("denoising_steps", np.array([1000.0, 500.0], np.float32), (1000, 500)),
        ("denoising_steps", torch.tensor([1000, 500]), (1000, 500)),
        ("denoising_steps", (np.uint16(1000), 500), (1000, 500)),
        ("denoising_steps", range(1000, 0, -500), (1000, 500)),
        ("reset", np.bool_(True), True),
        ("seed", np.uint64(2**63 - 1), 2**63 - 1),
        ("seed", np.int32(0), 0),
        ("seed", torch.tensor(5), 5),
        ("noise_scale", np.float32(0.5), 0.5),
        ("noise_scale", np.array(0.5), 0.5),
        ("noise_scale", 1, 1),
    ],
)
def test_numbers_and_lists_of_a_request(field, given, read):
    request = BlockRequest(**{"prompt": "a fox", field: given})
    value = getattr(request, field)
    assert value == read and type(value) in (type(read), np.str_)
    hash(request)


@pytest.mark.parametrize(
    "video",
    [
        VIDEO,
        [PICTURE] * 3,
        tuple([PICTURE] * 3),
        [READ_ONLY] * 3,
        VIDEO[:, :, ::-1][:, :, ::-1],
        np.asfortranarray(VIDEO),
        [PICTURE, torch.from_numpy(PICTURE), PICTURE],
        torch.from_numpy(VIDEO),
        np.repeat(VIDEO, 2, axis=0)[::2],
    ],
)
def test_pictures_of_numpy_are_those_of_torch(engine, video):
    def second_block(video):
        request = BlockRequest("a red circle", video=video, denoising_steps=(500,))
        engine.reset()
        return [engine.generate_block(request) for _ in range(2)][1]

    assert torch.equal(second_block(video), second_block(torch.from_numpy(VIDEO)))


def test_pictures_in_opencvs_order_turned_around():
    bgr = np.stack([PICTURE] * 2)
    assert torch.equal(BlockRequest("a fox", video=bgr[..., ::-1]).video, torch.from_numpy(VIDEO[:2]).flip(-1))


@pytest.mark.parametrize(
    ("field", "given", "kind"),
    [
        ("prompt", None, TypeError),
        ("prompt", 3, TypeError),
        ("prompt", b"a fox", TypeError),
        ("prompt", ["a fox", "a hen"], TypeError),
        ("prompt", ["ab"], TypeError),
        ("prompt", {"a fox": 1.0}, TypeError),
        ("prompt", [{"text": "a fox", "weight": 1.0}], TypeError),
        ("prompt", [("a fox",)], TypeError),
        ("prompt", [("a fox", 1.0, 2.0)], TypeError),
        ("prompt", [(None, 1.0)], TypeError),
        ("prompt", [("a fox", None)], ValueError),
        ("prompt", [("a fox", "1")], ValueError),
        ("prompt", [("a fox", True)], ValueError),
        ("prompt", [("a fox", 1j)], ValueError),
        ("prompt", (text for text in ("a", "b")), TypeError),
        ("prompt", Path("a.txt"), TypeError),
        ("prompt", np.array(["a", "b"]), TypeError),
        ("prompt", np.array([]), ValueError),
        ("blend", None, ValueError),
        ("blend", ["linear"], ValueError),
        ("blend", 3, ValueError),
        ("transition_blocks", None, ValueError),
        ("transition_blocks", "2", ValueError),
        ("transition_blocks", True, ValueError),
        ("transition_blocks", 1.5, ValueError),
        ("transition_blocks", float("nan"), ValueError),
        ("transition_blocks", float("inf"), ValueError),
        ("transition_blocks", np.array([1, 2]), ValueError),
        ("transition_blend", ["slerp"], ValueError),
        ("transition_from_source", "no", TypeError),
        ("transition_from_source", None, TypeError),
        ("denoising_steps", 1000, ValueError),
        ("denoising_steps", "1000", ValueError),
        ("denoising_steps", [None], ValueError),
        ("denoising_steps", [1000.5], ValueError),
        ("denoising_steps", [[1000, 500]], ValueError),
        ("denoising_steps", np.array([[1000, 500]]), ValueError),
        ("denoising_steps", np.array([]), ValueError),
        ("denoising_steps", [True], ValueError),
        ("reset", 1, TypeError),
        ("reset", "false", TypeError),
        ("restart", None, TypeError),
        ("seed", "1", ValueError),
        ("seed", 1.5, ValueError),
        ("seed", True, ValueError),
        ("seed", np.uint64(2**63), ValueError),
        ("noise_scale", None, ValueError),
        ("noise_scale", "0.5", ValueError),
        ("noise_scale", True, ValueError),
        ("noise_scale", np.array([0.5, 0.6]), ValueError),
        ("noise_from_motion", "yes", TypeError),
        ("video", "a.mp4", TypeError),
        ("video", Path("a.mp4"), TypeError),
        ("video", b"a.mp4", TypeError),
        ("video", 3, TypeError),
        ("video", {}, TypeError),
        ("video", (frame for frame in VIDEO), TypeError),
        ("video", iter(VIDEO), TypeError),
        ("video", [None], TypeError),
        ("video", ["a.png"], TypeError),
        ("video", [[[[0, 0, 0]]]], TypeError),
        ("video", [], ValueError),
        ("video", PICTURE, ValueError),
        ("video", torch.from_numpy(PICTURE), ValueError),
        ("video", VIDEO[0:0], ValueError),
        ("video", VIDEO[:, :0], ValueError),
        ("video", VIDEO.astype(np.float32), ValueError),
        ("video", VIDEO.astype(np.uint16), ValueError),
        ("video", VIDEO.astype(object), ValueError),
        ("video", VIDEO[..., :1], ValueError),
        ("video", VIDEO[..., 0], ValueError),
        ("video", np.moveaxis(VIDEO, -1, 1), ValueError),
        ("video", [VIDEO], ValueError),
        ("video", [PICTURE[..., 0]], ValueError),
        ("video", np.zeros((2, 16, 16, 4), np.uint8), ValueError),
    ],
)
def test_what_is_wrong_in_a_request_is_named(field, given, kind):
    with pytest.raises(kind, match=f"^{field}"):
        BlockRequest(**{"prompt": "a fox", field: given})


@pytest.mark.parametrize(
    "fields",
    [
        {"height": np.int64(64), "width": np.int32(96)},
        {"height": 64.0, "width": np.float32(96)},
        {"denoising_steps": np.array([1000, 500])},
        {"denoising_steps": [np.int64(1000), np.float32(500)]},
        {"denoising_steps": torch.tensor([1000, 500])},
        {"local_attn_size": np.uint8(9)},
        {"global_sink": np.bool_(False)},
        {"seed": np.int64(2**53 + 1)},
        {"use_cuda_graphs": np.bool_(True)},
        {"target_fps": np.float64(25.0)},
        {"overlay_opacity": np.float32(0.5)},
        {"prompt_debounce_ms": np.int16(0)},
    ],
)
def test_numbers_of_numpy_in_a_config(fields):
    config = ScopeOptimizationConfig(**fields)
    for name, value in fields.items():
        read, plain = getattr(config, name), np.asarray(value).tolist()
        assert read == (tuple(plain) if isinstance(plain, list) else plain)
        assert type(read) in (int, float, bool, tuple)


def fields_of(kind: type) -> list[tuple[type, str]]:
    """The fields of all configs that are numbers or flags, as bool, int and float (a bool is no int here)."""
    configs = ScopeOptimizationConfig, OverlayConfig, ServerSettings
    hints = [(config, *hint) for config in configs for hint in typing.get_type_hints(config).items()]
    return [(config, name) for config, name, hint in hints if hint in (kind, kind | None)]


NO_NUMBERS = [True, np.bool_(True), "16", b"16", 1j, float("nan"), float("inf"), [16]]


def test_a_number_is_a_number_in_every_config():
    assert len(fields_of(int)) >= 15 and len(fields_of(float)) >= 6 and len(fields_of(bool)) >= 10
    for config, name in fields_of(int):
        least = {"bitrate": 100_000, "sink_size": 3, "shown_fps": 24}.get(name, 16)
        beside = {"interpolation": "blend"} if name == "shown_fps" else {}
        given = [float(least), np.float32(least), np.int32(least), np.array(least), torch.tensor(least)]
        for number in given if config is not ServerSettings else [least]:  # which only the command line makes
            read = getattr(config(**{name: number}, **beside), name)
            assert read == least and type(read) is int, name
        for wrong in (*NO_NUMBERS, 16.5, Decimal(16), Fraction(16), 10**400 if name == "seed" else "x"):
            with pytest.raises(ValueError, match=name):
                config(**{name: wrong}, **beside)
    for config, name in fields_of(float):
        good = 40 if name.endswith("_ms") else 0.5
        for number in (good, np.float32(good), np.array(good), torch.tensor(good)):
            assert getattr(config(**{name: number}), name) == good
        for wrong in NO_NUMBERS:
            with pytest.raises(ValueError, match=name):
                config(**{name: wrong})
    for config, name in fields_of(bool):
        for given in (False, np.bool_(False), np.array(False), torch.tensor(False)):
            assert getattr(config(**{name: given}), name) is False
        # None leaves low_memory to the memory plan.
        for wrong in (0, 1, 1.0, "yes", "off", b"1", *([] if name == "low_memory" else [None])):
            with pytest.raises(ValueError, match=name):
                config(**{name: wrong})


@pytest.mark.parametrize("make", [OptimizationConfig, lambda **fields: BlockRequest("a fox", **fields)])
def test_lists_of_steps(make):
    for steps in ([1000.0, np.int16(500)], (s for s in (1000, 500)), iter([1000, 500]), map(np.int64, (1000, 500))):
        assert make(denoising_steps=steps).denoising_steps == (1000, 500)
    for wrong in ([True], ["1000"], [1000, "500"], {1000: 1}, "1000", b"1000", 1000, [Decimal(1000)], [[1000]]):
        with pytest.raises(ValueError, match="denoising_steps"):
            make(denoising_steps=wrong)


@pytest.mark.parametrize("field", ["target_fps", "prompt_debounce_ms", "transition_frames"])
def test_numbers_that_no_clock_can_hold_are_refused(field):
    with pytest.raises(ValueError, match=field):
        ScopeOptimizationConfig(**{field: 10**400})


def test_numbers_of_calls_are_the_configs(engine, pipeline):
    for wrong in (True, "1", b"1", Decimal(1)):
        for call in (
            lambda seed: engine.open_stream(seed=seed),
            lambda seed: engine.reset(seed=seed),
            lambda seed: engine.configure(restart_at=seed),
            lambda seed: engine.warmup(seed),
            lambda seed: pipeline.configure(max_queue_depth=seed),
            lambda seed: pipeline.warmup(seed),
        ):
            with pytest.raises(ValueError, match=r"seed|restart_at|max_queue_depth|blocks|num_frames"):
                call(wrong)


def test_numbers_of_numpy_in_calls(engine, pipeline):
    stream = engine.open_stream(height=np.int64(32), width=np.array(48), seed=np.int32(1), total_frames=np.int64(6))
    assert engine.generate_block(BlockRequest("a fox"), stream).shape == (9, 32, 48, 3)
    engine.reset(seed=np.int64(3))
    engine.configure(denoising_steps=np.array([1000, 500]), local_attn_size=np.int64(9))
    assert engine.stream.settings.denoising_steps == (1000, 500) and engine.stream.settings.seed == 3
    pipeline.configure(target_fps=np.int64(20), denoising_steps=np.array([1000]))
    steps = np.array([500])
    frame = pipeline.generate_frame([("a fox", np.float32(1))], denoising_steps=steps, transition_blocks=np.int64(2))
    assert frame.shape == (3, 32, 32) and pipeline.config.target_fps == 20
    assert create_latency_overlay(opacity=np.float32(0.5), graph_history=np.int64(10)).config.graph_history == 10


BAD_CALLS = {
    "generate_block of a text": (TypeError, "request must be", lambda e, p: e.generate_block("a fox")),
    "generate_block of None": (TypeError, "request must be", lambda e, p: e.generate_block(None)),
    "generate_block of a dict": (TypeError, "request must be", lambda e, p: e.generate_block({"prompt": "a fox"})),
    "a stream that is none": (TypeError, "stream must be", lambda e, p: e.generate_block(BlockRequest("a fox"), "s")),
    "a stream of another engine": (ValueError, "stream must be", lambda e, p: e.reset(p.stream)),
    "part of a block": (TypeError, "first_latent_only", lambda e, p: e.generate_block(BlockRequest("a"), None, "no")),
    "progress of a number": (TypeError, "progress must be", lambda e, p: LongLiveEngine("tiny", progress=5)),
    "a track of an engine": (TypeError, "pipeline must be", lambda e, p: _track(e)),
    "rest of a text": (TypeError, "stream must be", lambda e, p: e.rest_of_block("a")),
    "times of a text": (TypeError, "stream must be", lambda e, p: e.block_times("a")),
    "warmup of a text": (ValueError, "blocks must be", lambda e, p: e.warmup("a")),
    "reset to a text": (ValueError, "seed must be", lambda e, p: e.reset(seed="a")),
    "total_frames of a text": (ValueError, "total_frames must be", lambda e, p: e.open_stream(total_frames="a")),
    "a dict as config": (TypeError, "config must be", lambda e, p: LongLiveEngine("tiny", {"height": 64})),
    "a text as config": (TypeError, "config must be", lambda e, p: LongLiveEngine("tiny", "balanced")),
    "an empty dict as config": (TypeError, "config must be", lambda e, p: LongLiveEngine("tiny", {})),
    "None as model": (TypeError, "model_path must be", lambda e, p: LongLiveEngine(None)),
    "a number as device": (ValueError, "device must be", lambda e, p: LongLiveEngine("tiny", device=3.5)),
    "a text as loras": (TypeError, "loras must be", lambda e, p: LongLiveEngine("tiny", loras="a.safetensors")),
    "texts as loras": (TypeError, "loras must be", lambda e, p: LongLiveEngine("tiny", loras=["a.safetensors"])),
    "None as loras": (TypeError, "loras must be", lambda e, p: LongLiveEngine("tiny", loras=None)),
    "set_loras of texts": (TypeError, "loras must be", lambda e, p: e.set_loras(["a.safetensors"])),
    "set_loras of None": (TypeError, "loras must be", lambda e, p: e.set_loras(None)),
    "pipeline, a dict": (TypeError, "config must be", lambda e, p: OptimizedScopePipeline("tiny", {"height": 64})),
    "pipeline, an engine's": (TypeError, "config", lambda e, p: OptimizedScopePipeline("tiny", OptimizationConfig())),
    "pipeline on a text": (TypeError, "engine must be", lambda e, p: OptimizedScopePipeline.on("tiny")),
    "pipeline on, a dict": (TypeError, "config must be", lambda e, p: OptimizedScopePipeline.on(e, {})),
    "frame of None": (TypeError, "prompt must be", lambda e, p: p.generate_frame(None)),
    "frame of texts": (TypeError, "prompt must be", lambda e, p: p.generate_frame(["a", "b"])),
    "frame, steps": (ValueError, "denoising_steps", lambda e, p: p.generate_frame("a", denoising_steps="x")),
    "block of None": (TypeError, "prompt must be", lambda e, p: p.generate_block(None)),
    "switch to None": (TypeError, "prompt must be", lambda e, p: p.switch_prompt(None)),
    "switch to a dict": (TypeError, "prompt must be", lambda e, p: p.switch_prompt({"text": "a"})),
    "pipeline's warmup": (ValueError, "num_frames must be", lambda e, p: p.warmup("a")),
    "preset of None": (ValueError, "preset must be one of", lambda e, p: p.set_optimization_preset(None)),
    "preset of a list": (ValueError, "preset must be one of", lambda e, p: p.set_optimization_preset(["ultra"])),
    "config's preset": (ValueError, "preset must be one of", lambda e, p: OptimizationConfig.preset(3)),
    "overlay of None": (TypeError, "frame", lambda e, p: create_latency_overlay().apply(None, {})),
    "overlay's stats": (TypeError, "stats", lambda e, p: create_latency_overlay().apply(torch.zeros(3, 9, 9), None)),
}


def _track(pipeline):
    pytest.importorskip("aiortc")
    from longlive_optimized.demo.video_track import PipelineVideoTrack

    return PipelineVideoTrack(pipeline, "a fox")


@pytest.mark.parametrize("call", BAD_CALLS)
def test_a_wrong_argument_is_named(engine, pipeline, call):
    kind, message, make = BAD_CALLS[call]
    with pytest.raises(kind, match=f"^{message}"):
        make(engine, pipeline)


TYPOS = {
    "config": ("hieght is no field of OptimizationConfig; .*'height'", lambda e, p: OptimizationConfig(hieght=64)),
    "preset's fields": ("hieght .*'height'", lambda e, p: OptimizationConfig.preset("ultra", hieght=64)),
    "scope config": ("targe_fps .*'target_fps'", lambda e, p: ScopeOptimizationConfig(targe_fps=20)),
    "overlay": ("possition .*'position'", lambda e, p: create_latency_overlay(possition="top-left")),
    "preset": ("'balenced'; did you mean 'balanced'", lambda e, p: OptimizationConfig.preset("balenced")),
    "stream": ("hieght .*'height'", lambda e, p: e.open_stream(hieght=64)),
    "configure": ("denoising_step is no field; .*'denoising_steps'", lambda e, p: e.configure(denoising_step=(1000,))),
    "stream.configure": ("sed is no field", lambda e, p: e.stream.configure(sed=1)),
    "pipeline.configure": ("target_fp is .*'target_fps'", lambda e, p: p.configure(target_fp=20)),
    "generate_frame": ("'blned'; .*'blend'", lambda e, p: p.generate_frame("a", blned="slerp")),
    "frame's steps": ("'denoising_step'; .*'denoising_steps'", lambda e, p: p.generate_frame("a", denoising_step=[1])),
    "switch_prompt": (
        "'transition_block'; .*'transition_blocks'",
        lambda e, p: p.switch_prompt("a", transition_block=2),
    ),
    "blend": ("'slrp'; .*'slerp'", lambda e, p: BlockRequest("a", blend="slrp")),
}


@pytest.mark.parametrize("typo", TYPOS)
def test_a_typo_is_answered_by_what_was_meant(engine, pipeline, typo):
    message, make = TYPOS[typo]
    with pytest.raises((ValueError, TypeError), match=message) as error:
        make(engine, pipeline)
    assert "did you mean" in str(error.value) or typo == "stream.configure"


@pytest.mark.parametrize("field", ["height", "positions", "model_dtype", "no_such_field"])
def test_configure_lists_what_can_change(engine, pipeline, field):
    for configure in (engine.configure, engine.stream.configure, pipeline.configure):
        with pytest.raises(
            ValueError, match=f"{field} (cannot change|is no field).*denoising_steps, .*use_cuda_graphs"
        ) as e:
            configure(**{field: {"height": 64, "positions": "base", "model_dtype": "bfloat16"}.get(field)})
        assert ("target_fps" in str(e.value)) == (configure == pipeline.configure)


def test_the_built_in_model_has_its_own_size():
    for config in (None, OptimizationConfig(), OptimizationConfig.preset("ultra"), ScopeOptimizationConfig()):
        engine = LongLiveEngine("tiny", config)
        assert engine.config.size == engine.stream.settings.size == TINY_SIZE
    assert (engine.config.height, engine.config.width) == TINY_SIZE
    assert engine.open_stream(height=32).settings.size == (32, TINY_SIZE[1])
    assert LongLiveEngine("tiny", OptimizationConfig(width=48)).config.size == (TINY_SIZE[0], 48)
    assert OptimizationConfig().size == (480, 832)
    pipelines = OptimizedScopePipeline("tiny"), OptimizedScopePipeline.on(engine)
    pipelines += (OptimizedScopePipeline.on(engine, ScopeOptimizationConfig.preset_ultra()),)
    for pipeline in pipelines:
        assert dataclasses.asdict(pipeline.config)["height"] == TINY_SIZE[0]
        assert pipeline.stream.settings.size == TINY_SIZE


@pytest.mark.parametrize("size", [(16, 16), (16, 32), (32, 16), (96, 16), (16, 96)])
@pytest.mark.parametrize("vae", ["wan", "lightvae", "tae"])
def test_the_smallest_sizes_work(size, vae):
    height, width = size
    engine = LongLiveEngine(
        "tiny", OptimizationConfig(height=height, width=width, vae_type=vae, denoising_steps=(1000,))
    )
    for frames in 9, 12:
        assert engine.generate_block(BlockRequest("a red circle")).shape == (frames, height, width, 3)
    assert engine.generate_block(BlockRequest("a white cross")).shape[1:3] == size  # a recache
    if vae == "wan":
        engine.reset()
        video = np.zeros((12, height, width, 3), np.uint8)
        assert engine.generate_block(BlockRequest("a red circle", video=video)).shape[1:3] == size
