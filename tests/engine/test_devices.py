"""Transformer, VAE and text encoder on devices of their own: where each runs, what is handed over, what is planned."""

import contextlib
import dataclasses
import inspect
import json
import re
import time

import pytest
import torch

from longlive_optimized import BlockRequest, Control, LongLiveEngine, OptimizationConfig, cli
from longlive_optimized.demo.scope_integration import OptimizedScopePipeline, create_optimized_scope_pipeline
from longlive_optimized.engine import devices as devices_module
from longlive_optimized.engine import memory_outline as outlining
from longlive_optimized.engine import memory_plan as planning
from longlive_optimized.engine.devices import Devices
from longlive_optimized.engine.latency import LatencyMeter
from longlive_optimized.engine.memory_plan import MemoryShort, check_fits, gpu_of, leaner_plans, plan_for
from longlive_optimized.engine.memory_shares import GIB, Asked, MemoryPlan
from longlive_optimized.engine.places import Place
from longlive_optimized.engine.timing import BlockTimer
from longlive_optimized.kernels import native
from longlive_optimized.model.config import ModelConfig
from longlive_optimized.vae.wan.model import WanVae
from longlive_optimized.weights.locate import locate
from support.wishes import BOAT, FOX, every_kind, noise, play

CPU, META = torch.device("cpu"), torch.device("meta")
FIRST, SECOND, THIRD = (torch.device("cuda", i) for i in range(3))


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs that are not there."""
    for name, value in {"is_available": True, "device_count": 2, "current_device": 0}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "Event", object)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: (device, priority))


def test_without_other_devices_all_is_one(gpus):
    for device in ("cpu", "cuda"):
        one = Devices(device)
        assert one.all == (one.model,) and one.model == one.vae == one.text == one.embeddings and not one.async_vae
        assert one.at_model is one.at_decoder is one.at_encoder is one.at_text and not one.at_model.apart


def test_each_part_is_where_it_was_asked_for(gpus):
    devices = Devices("cuda:0", vae_device="cuda:1", text_device=SECOND)
    assert (devices.model, devices.vae, devices.text, devices.embeddings) == (FIRST, SECOND, SECOND, SECOND)
    assert devices.all == (FIRST, SECOND) and devices.async_vae and devices.text_residence == "gpu"
    places = devices.at_decoder, devices.at_encoder, devices.at_text
    assert len({*places}) == 3 and all(place.apart and place.device == SECOND for place in places)
    assert [place.cuda_stream for place in places] == [(SECOND, 0), (SECOND, -1), (SECOND, -1)]
    assert not devices.at_model.apart and devices.at_model.device == FIRST
    devices.move_text("parked")
    assert devices.text == devices.at_text.device == SECOND and devices.text_residence == "parked"


def test_only_what_is_elsewhere_has_an_order_of_its_own(gpus):
    devices = Devices("cuda:0", vae_device="cuda:0", text_device="cuda:1")
    assert devices.at_decoder is devices.at_model and devices.at_text.apart and not devices.async_vae
    devices = Devices("cuda:1", vae_device="cuda:0")
    assert devices.at_decoder.apart and devices.at_text is devices.at_model and devices.text == SECOND


def test_a_text_device_of_cpu_is_a_residence(gpus):
    for devices in (
        Devices("cuda:0", text_device="cpu"),
        Devices("cuda:0", "cpu"),
        Devices("cuda:0", "cpu", None, "cpu"),
    ):
        assert devices.text == CPU and devices.embeddings == FIRST and devices.text_residence == "cpu"
        assert devices.at_text is devices.at_model


ON_CPU = {"device": "cpu"}
BAD = {
    "a GPU that is not here": ({"vae_device": "cuda:2"}, "vae_device must be one of the 2 that are here, got 'cuda:2'"),
    "none here for texts": ({"text_device": "cuda:7"}, "text_device must be one of the 2 that are here, got 'cuda:7'"),
    "no device": ({"vae_device": "nowhere"}, "vae_device must be cuda, cuda:N or cpu, got 'nowhere'"),
    "no name": ({"text_device": 1.5}, "text_device must be cuda, cuda:N or cpu, got 1.5"),
    "a CPU beside a GPU": ({"vae_device": "cpu"}, "vae_device must be a GPU beside the device cuda:0, got 'cpu'"),
    "a GPU beside a CPU": (
        ON_CPU | {"vae_device": "cuda:1"},
        "vae_device must be cpu beside the device cpu, got 'cuda:1'",
    ),
    "texts on a GPU beside a CPU": (
        ON_CPU | {"text_device": "cuda"},
        "text_device must be cpu beside the device cpu, got 'cuda:0'",
    ),
    "two places for texts": (
        {"text_device": "cuda:1", "text_residence": "cpu"},
        "text_device must be cpu, or none, with text_residence cpu, got 'cuda:1'",
    ),
    "texts parked beside a CPU": (
        {"text_device": "cpu", "text_residence": "parked"},
        "text_residence must be auto or cpu with text_device cpu, got 'parked'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_devices_are_named(case, gpus):
    how, said = BAD[case]
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        Devices(**{"device": "cuda:0", **how})
    with pytest.raises(ValueError, match=r"^vae_device must be cuda, cuda:N or cpu, got 'mps'"):
        Devices("cuda:0", vae_device="mps")


def test_a_device_that_is_not_here_is_named_before_anything_is_looked_for(monkeypatch):
    monkeypatch.setattr("longlive_optimized.engine.engine.locate", lambda *_: pytest.fail("files are looked for"))
    if torch.cuda.is_available():
        pytest.skip("there is one")
    for name in ("vae_device", "text_device"):
        said = rf"^{name} must be one that is here, got 'cuda:1': torch finds no CUDA$"
        for make in (LongLiveEngine, OptimizedScopePipeline, create_optimized_scope_pipeline, planning.memory_plan):
            with pytest.raises(ValueError, match=said):
                make("tiny", device="cpu", **{name: "cuda:1"})


@pytest.mark.parametrize("option", ["--vae-device", "--text-device"])
def test_on_the_command_line(option, tmp_path, monkeypatch, capsys):
    """The option is named, before anything is loaded; what is the engine's own device changes nothing."""
    if torch.cuda.is_available():
        pytest.skip("there is one")
    call = ["longlive-optimized", "generate", "--prompt", FOX, "--height", "32", "--width", "48", "--seconds", "1.2"]
    call += ["--device", "cpu", "--force", "--out", str(tmp_path / "x.mp4"), "--json", str(tmp_path / "x.json")]
    for device, status in (("cuda:1", 2), ("cpu", 0)):
        monkeypatch.setattr("sys.argv", [*call, option, device])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert (ended.value.code or 0) == status, capsys.readouterr()
        said = " ".join(capsys.readouterr().err.split())
        assert status == 0 or f"{option} must be one that is here, got 'cuda:1'" in said
    report = json.loads((tmp_path / "x.json").read_text())
    assert report["async_vae_active"] is False and [block["frames"] for block in report["blocks"]] == [9, 12]
    assert all(block["interval"] == block["total"] for block in report["blocks"])


def test_the_same_names_everywhere():
    for make in (
        LongLiveEngine,
        OptimizedScopePipeline,
        create_optimized_scope_pipeline,
        planning.memory_plan,
        Devices,
    ):
        parameters = inspect.signature(make).parameters
        assert parameters["vae_device"].default is None and parameters["text_device"].default is None


def test_a_cpu_engine_takes_its_own_name():
    config = OptimizationConfig(height=32, width=48)
    engine = LongLiveEngine("tiny", config, "cpu", vae_device="cpu", text_device=CPU)
    stats = LatencyMeter(engine).stats()
    assert engine.generate_block(BlockRequest(FOX)).shape == (9, 32, 48, 3) and not stats.async_vae_active
    assert engine.memory_plan.others == () and engine.memory_plan.devices == (engine.memory_plan,)


def test_async_vae_is_active_on_two_gpus_alone(gpus):
    engine = LongLiveEngine("tiny", OptimizationConfig(height=32, width=48), "cpu")
    meter = LatencyMeter(engine)
    for where, wanted in ((("cuda:0", "cuda:1"), True), (("cuda:1", "cuda:1"), False), (("cuda:0", None), False)):
        engine.devices = Devices(where[0], vae_device=where[1])
        assert meter.stats().async_vae_active is wanted


class Seen(Place):
    """A place on a CPU that notes what is handed over, and hands over copies."""

    def __init__(self, name: str, device: torch.device, notes: list, inside: list):
        super().__init__(device)
        self.name, self.notes, self.inside = name, notes, inside

    @contextlib.contextmanager
    def here(self):
        self.inside.append(self.name)
        yield
        self.inside.pop()

    def bring(self, x, source):
        self.notes.append((source.name, self.name))
        return torch.zeros_like(x, device=self.device) if x.is_meta else x.clone().to(self.device)

    def receive(self, tensors):
        self.notes.append((len([*tensors]), self.name))

    def hand_out(self, x):
        self.notes.append((self.name, "caller"))
        return x


def spread(engine: LongLiveEngine, vae: torch.device = CPU) -> tuple[list, list]:
    """Give the parts of an engine on a CPU places of their own; what is handed over, and where the work is."""
    notes, inside = [], []
    for name, device in {"model": CPU, "decoder": vae, "encoder": vae, "text": CPU}.items():
        setattr(engine.devices, f"at_{name}", Seen(name, device, notes, inside))
    engine.devices.vae = vae
    return notes, inside


def tiny(**changes) -> LongLiveEngine:
    return LongLiveEngine("tiny", OptimizationConfig(height=32, width=48, **changes), "cpu")


@pytest.mark.parametrize("changes", [{}, {"precision": "int8"}, {"control": True}, {"low_memory": True}], ids=str)
def test_handed_over_copies_give_the_same_video(changes):
    """Nothing passes from place to place but by being handed over, and nothing that is handed over is written to."""
    plain, apart = tiny(**changes), tiny(**changes)
    notes, inside = spread(apart)
    calls = {"decode": "decoder", "encode": "encoder"}
    for name, place in calls.items():
        real = getattr(apart.vae, name)

        def call(*args, real=real, place=place):
            assert inside[-1] == place
            return real(*args)

        setattr(apart.vae, name, call)
    wishes = every_kind(noise(32, 48), "control" in changes)
    assert all(map(torch.equal, play(plain, wishes), play(apart, wishes)))
    assert not inside and {("model", "decoder"), ("encoder", "model"), ("text", "model")} <= {*notes}
    blocks = sum(isinstance(wish, BlockRequest) for wish in wishes)
    assert notes.count(("decoder", "caller")) == blocks and notes.count(("text", "model")) == 2
    if "control" in changes:
        assert {(2, "encoder"), (1, "encoder")} <= {*notes}


def test_the_first_latent_first_is_handed_over_in_two():
    plain, apart = tiny(), tiny()
    notes, _ = spread(apart)
    for engine in (plain, apart):
        engine.generate_block(BlockRequest(FOX))
    notes.clear()
    firsts = [engine.generate_block(BlockRequest(FOX), first_latent_only=True) for engine in (plain, apart)]
    rests = [engine.rest_of_block() for engine in (plain, apart)]
    assert torch.equal(*firsts) and torch.equal(*rests) and [len(firsts[0]), len(rests[0])] == [4, 8]
    assert notes == [("model", "decoder"), ("decoder", "caller")] * 2


@pytest.mark.parametrize("control", [False, True])
def test_nothing_of_the_vae_meets_what_is_elsewhere(control):
    """With the VAE on the meta device, where anything that was not brought there would be refused."""
    engine, video = tiny(control=control), noise(32, 48)
    spread(engine, META)
    engine.codec.vae.to(META)
    engine.codec.device = META
    stream = engine.open_stream()
    wishes = [BlockRequest(FOX), BlockRequest(BOAT), BlockRequest(FOX, video=video, noise_scale=0.5)]
    wishes += [BlockRequest(FOX, control=Control(video, first_frame=video[0]))] if control else []
    frames = [engine.generate_block(wish, stream) for wish in wishes]
    assert all(each.is_meta and each.shape[1:] == (32, 48, 3) for each in frames)
    assert [len(each) for each in frames] == [9, 12, 9, 9][: len(frames)]
    assert stream.history.device == CPU and stream.history.isfinite().all()


def test_a_blocks_interval_is_what_the_busier_place_takes():
    here, there = Place(CPU), Place(CPU)
    timer = BlockTimer(here)
    for long, short in ((0.02, 0.01), (0.01, 0.03)):
        with timer.stage("denoise"):
            time.sleep(long)
        with timer.stage("context"):
            time.sleep(0.005)
        with timer.stage("decode", there):
            time.sleep(short)
        timer.block_done(12)
    for times, busier in zip(timer.collect(), ("denoise context", "decode"), strict=True):
        assert times.total == pytest.approx(sum(times.stages.values()))
        assert times.interval == pytest.approx(sum(times.stages[name] for name in busier.split()))
        assert times.interval < times.total
    with timer.stage("decode", here), timer.stage("denoise"):
        time.sleep(0.001)
    timer.block_done(12)
    assert timer.collect()[-1].interval == timer.collect()[-1].total


def test_statistics_count_intervals(monkeypatch):
    engine = tiny()
    spread(engine)
    meter = LatencyMeter(engine)
    for _ in range(2):
        engine.generate_block(BlockRequest(FOX))
    times, stats = engine.block_times()[-1], meter.stats()
    assert stats.block_ms == times.interval < times.total and stats.current_ms == times.interval / 12


# The memory plan, on GPUs that are not there.


@pytest.fixture
def full_size(monkeypatch):
    """LongLive's own dimensions on Hopper GPUs, beside the built-in model's text encoder; GiB that each has."""
    vae, there = WanVae(device="meta"), {FIRST: 1000.0, SECOND: 1000.0, THIRD: 1000.0}
    monkeypatch.setattr(outlining, "outline", lambda files: (ModelConfig(), vae))
    monkeypatch.setattr(native, "missing", lambda device: None)
    monkeypatch.setattr(planning, "available_on", lambda device, limit: int(min(there[device], limit or 1e9) * GIB))
    return there


def planned(preset: str = "speed", vae=SECOND, text=SECOND, **changes) -> MemoryPlan:
    config = OptimizationConfig.preset(preset, **changes).sized((480, 832))
    return plan_for(Asked(locate("tiny"), config, FIRST, vae, text))


@pytest.mark.parametrize("preset", ["balanced", "speed"])
@pytest.mark.parametrize("control", [False, True])
def test_each_device_has_its_own_sum(preset, control, full_size):
    """Every part lies on one device, as large as where all is on one; only what CUDA and torch take is there twice."""
    one, two = planned(preset, None, None, control=control), planned(preset, control=control)
    [other] = two.others
    assert (two.device, other.device) == (FIRST, SECOND) and one.others == ()
    shared = {"workspaces"}
    assert {*two.parts} & {*other.parts} == shared
    together = {**two.parts, **other.parts}
    assert {name: n for name, n in together.items() if name not in shared} == {
        name: n for name, n in one.parts.items() if name not in shared
    }
    on_second = {"VAE", "VAE's stream", "text encoder", "pictures"} | ({"control's encoder"} if control else set())
    assert {*other.parts} - shared == on_second
    assert two.video_input == 0 and other.video_input == one.video_input > GIB
    assert two.peak < one.peak and other.peak < one.peak and two.context == other.context
    assert two.working == one.working and 0 < other.working < one.working


def test_three_devices(full_size):
    plan = planned(text=THIRD)
    assert [each.device for each in plan.devices] == [FIRST, SECOND, THIRD]
    assert [next(iter(each.parts)) for each in plan.others] == ["VAE", "text encoder"]
    alone = planned(vae=None, text=None)
    assert planned(vae=FIRST, text=FIRST).peak == alone.peak and planned(vae=FIRST, text=FIRST).others == ()


def test_what_is_short_is_what_gives_way(full_size):
    """On the transformer's device int8 weights, on the VAE's one latent at a time; neither for the other's sake."""
    plan = planned()
    assert plan.fits and not plan.costs
    full_size[FIRST] = plan.peak / GIB - 0.5
    first = planned()
    assert first.fits and first.choices.low_memory and not first.choices.vae_in_parts
    full_size[FIRST], full_size[SECOND] = 1000.0, plan.others[0].peak / GIB - 0.5
    second = planned()
    assert second.fits and second.choices.vae_in_parts and not second.choices.low_memory
    assert second.parts == plan.parts


def test_a_text_encoder_stays_on_the_device_that_was_named(full_size):
    full_size[SECOND] = 0.1
    assert planned().choices.text_residence == "parked" and not planned().fits
    config, cpu = OptimizationConfig.preset("speed").sized((480, 832)), {"text_residence": "cpu"}
    for text, may in ((SECOND, False), (FIRST, False), (None, True)):
        outlined = planning.Ladder(Asked(locate("tiny"), config, FIRST, SECOND, text))
        assert outlined.allows(cpu, outlined.first()) is may and outlined.allows(
            {"vae_in_parts": True}, outlined.first()
        )
    full_size[SECOND] = 1000.0
    plan = planned(text=CPU)
    assert plan.choices.text_residence == "cpu" and [each.device for each in plan.others] == [SECOND]
    assert plan.host["text encoder"] > 0 and "text encoder" not in plan.parts


def test_the_device_that_is_short_is_named(full_size):
    full_size[SECOND] = 2.4
    config = OptimizationConfig.preset("speed").sized((480, 832))
    asked = Asked(locate("tiny"), config, FIRST, SECOND, SECOND)
    with pytest.raises(MemoryShort, match=r"480x832 takes .* of cuda:1 at least, 2\.4 GiB are there; what would do: "):
        check_fits(plan_for(asked))
    asked = asked._replace(config=dataclasses.replace(config, memory_limit_gib=1.5))
    with pytest.raises(MemoryShort, match=r" of cuda:0 at least, 1\.5 GiB are there \(memory_limit_gib=1\.5\)"):
        check_fits(plan_for(asked))


def test_a_plan_tells_of_each_device(full_size):
    plan = planned()
    said = plan.as_json()
    assert said["others"] == {"cuda:1": plan.others[0].in_gib()} and said["parts_gib"].keys() >= {"transformer", "ring"}
    assert "on cuda:0, " in str(plan) and str(plan).endswith("on cuda:1")
    assert all(sum(n for _, n in each.rows()) == each.peak for each in plan.devices)
    assert "others" not in planned(vae=None, text=None).as_json()


def test_what_a_running_engine_gives_up_is_on_the_gpu_that_ran_out(full_size):
    plan = planned(low_memory=None)
    chosen = {short: [after.choices for after in leaner_plans(plan, short)] for short in (None, 0, 1)}
    assert [choices.low_memory for choices in chosen[0]] == [True]
    assert [(choices.text_residence, choices.vae_in_parts) for choices in chosen[1][:2]] == [
        ("parked", False),
        ("gpu", True),
    ]
    assert {*chosen[0], *chosen[1]} == {*chosen[None]}


def test_torch_names_the_gpu_that_ran_out():
    said = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 1 has a total capacity of 139.81 GiB of which 4 MiB"
    assert gpu_of(torch.OutOfMemoryError(said)) == 1 and gpu_of(torch.OutOfMemoryError("no memory")) is None


def test_what_runs_apart_may_be_made_so_on_one_device(gpus, monkeypatch):
    """What the tests on a GPU do where there is one only."""
    monkeypatch.setattr(devices_module, "_apart", lambda device, other: True)
    devices = Devices("cuda:0")
    assert devices.at_decoder.apart and devices.at_decoder.device == FIRST and not devices.async_vae
