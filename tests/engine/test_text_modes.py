"""``text_precision`` and ``text_residence``: what an engine says of its text encoder, and what it refuses."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.demo.scope_integration import create_optimized_scope_pipeline
from longlive_optimized.engine.devices import Devices
from longlive_optimized.engine.latency import LatencyMeter
from longlive_optimized.weights import locate, text
from longlive_optimized.weights.kept import kept_path

CONFIG = OptimizationConfig(height=32, width=64, denoising_steps=(1000, 250))
PROMPT = "a red square stands still over a green field"
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def stats(engine):
    found = LatencyMeter(engine).stats()
    return found.text_precision, found.text_residence


@pytest.fixture(scope="module")
def plain():
    return LongLiveEngine("tiny", CONFIG, device="cpu")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The built-in model, in a folder of the test's own."""
    folder = shutil.copytree(locate._BUILT_IN, tmp_path / "tiny")
    monkeypatch.setattr(locate, "_BUILT_IN", folder)
    return locate.locate("tiny")


def test_int8_embeddings_are_close_and_it_says_so(plain):
    engine = LongLiveEngine("tiny", replace(CONFIG, text_precision="int8", text_residence="cpu"), device="cpu")
    assert stats(plain) == ("bf16", "cpu") and stats(engine) == ("int8", "cpu")
    a, b = (each.prompts.get(PROMPT) for each in (plain, engine))
    assert a.dtype == b.dtype == torch.float32 and 1e-3 < (a - b).norm() / a.norm() < 0.05
    for each in (plain, engine):
        assert each.generate_block(BlockRequest(PROMPT)).shape == (9, 32, 64, 3)
        assert "text" in each.block_times()[0].stages


def test_on_a_cpu_nothing_is_parked_in_silence(monkeypatch):
    monkeypatch.setattr("longlive_optimized.engine.engine.locate", lambda *_: pytest.fail("files are looked for"))
    for asked in ("gpu", "parked"):
        with pytest.raises(ValueError, match=f"^text_residence must be auto or cpu .*got '{asked}'"):
            LongLiveEngine("tiny", replace(CONFIG, text_residence=asked), device="cpu")
    assert Devices("cpu").text_residence == Devices("cpu", "cpu").text_residence == "cpu"


def test_what_the_file_cannot_give_is_refused_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr("longlive_optimized.engine.engine.load_generator", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=r"^text_precision must be auto, bf16 or int8 with "):
        LongLiveEngine("tiny", replace(CONFIG, text_precision="fp8"), device="cpu")


@pytest.mark.parametrize(
    ("field", "value"),
    [("text_precision", "fp16"), ("text_precision", None), ("text_residence", "disk"), ("keep_text_int8", "yes")],
)
def test_bad_values_name_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        OptimizationConfig(**{field: value})


def test_only_int8_is_kept():
    with pytest.raises(ValueError, match="keep_text_int8 must be false or text_precision must be int8, got auto"):
        OptimizationConfig(keep_text_int8=True)


def test_it_is_fixed_when_the_engine_is_made(plain):
    with pytest.raises(ValueError, match="text_precision cannot change while a stream runs"):
        plain.configure(text_precision="int8")


def test_what_is_kept_is_loaded_the_next_time(own, monkeypatch):
    config = replace(CONFIG, text_precision="int8", keep_text_int8=True)
    first = LongLiveEngine("tiny", config, device="cpu")
    assert kept_path(own.text).is_file()
    monkeypatch.setattr(text, "quantize_blocks", lambda *_: pytest.fail("made again"))
    again = LongLiveEngine("tiny", replace(config, keep_text_int8=False), device="cpu")
    assert torch.equal(*(engine.prompts.get(PROMPT) for engine in (first, again)))


def test_a_pipeline_says_so_too():
    pipeline = create_optimized_scope_pipeline("tiny", "realtime", "cpu", height=32, width=64, text_precision="int8")
    found = pipeline.get_latency_stats()
    assert (found["text_precision"], found["text_residence"]) == ("int8", "cpu")


def test_on_the_command_line(tmp_path, monkeypatch):
    import longlive_optimized.cli

    def call(*options):
        files = "--out", str(tmp_path / "x.mp4"), "--json", str(tmp_path / "x.json"), "--force"
        size = "--height", "32", "--width", "64", "--seconds", "0.1", "--device", "cpu"
        monkeypatch.setattr(
            "sys.argv", ["longlive-optimized", "generate", "--prompt", "a fox", *size, *files, *options]
        )
        with pytest.raises(SystemExit) as ended:
            longlive_optimized.cli.main()
        return ended.value.code

    assert not call("--text-precision", "int8", "--text-residence", "cpu")
    report = json.loads((tmp_path / "x.json").read_text())
    assert (report["text_precision"], report["text_residence"]) == ("int8", "cpu")
    assert call("--text-residence", "parked")
    assert call("--keep-text-int8")


@GPU
@pytest.mark.gpu
def test_the_same_video_wherever_the_weights_lie():
    made = {}
    for residence in ("auto", "gpu", "parked", "cpu"):
        engine = LongLiveEngine("tiny", replace(CONFIG, text_precision="int8", text_residence=residence), "cuda")
        assert stats(engine) == ("int8", "gpu" if residence == "auto" else residence)
        assert engine.devices.text.type == ("cpu" if residence == "cpu" else "cuda")
        assert engine.prompts.get(PROMPT).is_cuda
        made[residence] = [engine.generate_block(BlockRequest(PROMPT)) for _ in range(2)]
    for other in ("gpu", "parked"):
        assert all(map(torch.equal, made["auto"], made[other]))
