"""The stand-in for scope has scope's names and does what scope's own processor does.

Runs where SCOPE_CHECKOUT names a checkout of scope whose requirements this interpreter has.
"""

import copy
import importlib
import inspect
import json
import os
import queue
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pydantic import Field

from support.scope_double import Manager
from support.scope_double.names import (
    MODULES,
    BasePipelineConfig,
    ModeDefaults,
    Pipeline,
    Requirements,
    ui_field_config,
)
from support.scope_double.processor import Processor


@pytest.fixture(scope="module")
def checkout():
    """scope's own modules, from a checkout."""
    if not os.environ.get("SCOPE_CHECKOUT"):
        pytest.skip("SCOPE_CHECKOUT does not name a checkout of scope")
    source = str(Path(os.environ["SCOPE_CHECKOUT"], "src").resolve())
    sys.path.insert(0, source)
    try:
        pytest.importorskip("scope.server.pipeline_manager", exc_type=ImportError)
        yield importlib.import_module
    finally:
        sys.path.remove(source)
        for name in [name for name in sys.modules if name.split(".")[0] == "scope"]:
            del sys.modules[name]


def signature(function) -> list:
    return [(one.name, one.kind, one.default) for one in inspect.signature(function).parameters.values()]


def test_every_name_is_scopes(checkout):
    for module, names in MODULES.items():
        real = checkout(module)
        for name, own in names.items():
            assert hasattr(real, name), f"{module} has no {name}"
            if inspect.isfunction(own):
                assert signature(own) == signature(getattr(real, name))
    for name, own in inspect.getmembers(Pipeline, callable):
        if not name.startswith("_") or name in ("__init__", "__call__"):
            assert signature(own) == signature(getattr(checkout("scope.core.pipelines.interface").Pipeline, name))
    manager = checkout("scope.server.pipeline_manager").PipelineManager
    assert [*inspect.signature(manager.set_loading_stage).parameters] == ["self", "stage"]


@pytest.mark.parametrize("name", ["BasePipelineConfig", "ModeDefaults", "Requirements", "HuggingfaceRepoArtifact"])
def test_every_model_has_scopes_fields(checkout, name):
    [module] = [module for module, names in MODULES.items() if name in names]
    own, real = MODULES[module][name], getattr(checkout(module), name)

    def rules(model) -> dict:
        return {
            key: (field.default, repr(field.annotation), sorted(map(repr, field.metadata)))
            for key, field in model.model_fields.items()
        }

    assert rules(own) == rules(real) and own.model_config.get("extra") == real.model_config.get("extra")


def plain(value):
    """Without texts for people, and without the modules' own classes."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key not in ("description", "title")}
    return [plain(item) for item in value] if isinstance(value, list) else value


def described(base, mode, node, ui) -> list:
    """All that a pipeline tells of itself, built on these classes."""

    class Config(base):
        pipeline_id = "described"
        modes = {"text": mode(height=16), "video": mode(default=True, noise_scale=0.0)}  # noqa: RUF012

        preset: str = Field("balanced", json_schema_extra=ui(order=1, modes=["text"], modulatable=True, label="Preset"))

    class Node(node):
        @classmethod
        def get_config_class(cls):
            return Config

    definition = Node.get_definition()
    ports = [(port.name, port.port_type, port.required) for port in definition.inputs + definition.outputs]
    constants = [name for name in base.__annotations__ if name not in base.model_fields]
    return [
        {name: str(getattr(base, name)) for name in constants},
        plain(base.get_schema_with_metadata()),
        plain(Config.get_schema_with_metadata()),
        [Config.get_defaults_for_mode(mode) for mode in ("text", "video", "none")],
        (definition.node_type_id, definition.display_name, definition.category, plain(definition.pipeline_meta)),
        ports,
        (Node.get_artifacts(), Node.get_dynamic_output_ports({}), vars(Node()), plain(ui())),
    ]


def test_a_pipeline_describes_itself_as_on_scopes_classes(checkout):
    real, nodes = checkout("scope.core.pipelines.base_schema"), checkout("scope.core.pipelines.interface")
    own = described(BasePipelineConfig, ModeDefaults, Pipeline, ui_field_config)
    scopes = described(real.BasePipelineConfig, real.ModeDefaults, nodes.Pipeline, real.ui_field_config)
    for mine, expected in zip(own, scopes, strict=True):
        assert mine == expected


def test_the_manager_loads_and_keeps_as_scopes(checkout):
    made: dict[int, list] = {}

    class Config(BasePipelineConfig):
        pipeline_id = "kept"
        made: list = Field(default_factory=list)

    class Kept(Pipeline):
        @classmethod
        def get_config_class(cls):
            return Config

        def __init__(self, **kwargs):
            made[side].append(kwargs)
            if kwargs["height"] == 13:
                raise ValueError("height")

    checkout("scope.core.nodes.registry").NodeRegistry.register(Kept)
    scopes, own = checkout("scope.server.pipeline_manager").PipelineManager(), Manager()
    sides = [
        (
            lambda params: scopes._load_pipelines_sync([("kept", "kept", params)]),
            lambda: scopes.get_status_info()["status"],
        ),
        (lambda params: own.load(Kept, params), own.status),
    ]
    told = []
    for side, (load, status) in enumerate(sides):
        made[side] = []
        told.append([status()])
        for params in (None, {}, {"height": 16, "extra": [1]}, {"extra": [1], "height": 16}, {"height": 13}, None):
            told[side] += [load(params), len(made[side]), status(), status()]
    assert told[0] == told[1] and made[0] == made[1] and len(made[0]) == 4


class Scripted:
    """Does what its random script says, and keeps what it was asked."""

    def __init__(self, seed: int):
        self.dice, self.calls, self.state = random.Random(seed), [], {}

    @classmethod
    def get_definition(cls):
        ports = SimpleNamespace(name="video", port_type="video"), SimpleNamespace(name="prompts", port_type="string")
        return SimpleNamespace(node_type_id="scripted", inputs=[*ports])

    def prepare(self, **kwargs):
        self.calls.append(("prepare", describe(kwargs)))
        if self.dice.random() < 0.05:
            raise RuntimeError("prepare")
        return Requirements(input_size=self.dice.randint(1, 9)) if kwargs.get("video") else None

    def __call__(self, **kwargs):
        self.calls.append(("call", describe(kwargs)))
        self.state["_transition_active"] = self.dice.random() < 0.5
        video = torch.full((self.dice.randint(1, 25), 2, 2, 3), self.dice.uniform(-0.2, 1.2))
        odd = [
            *({}, None, {"log": 1}, {"video": None}, [], {"video": "frames"}, "text"),
            {"video": video.permute(3, 0, 1, 2)[None] - 0.5},
            {"video": video.to(torch.bfloat16)},
            {"video": (video.clamp(0, 1) * 255).byte(), "frame_rate": self.dice.choice([None, 24, 0, "x"])},
        ]
        if self.dice.random() < 0.2:
            raise ValueError("call")
        return self.dice.choice(odd) if self.dice.random() < 0.5 else {"video": video}


def describe(kwargs: dict) -> dict:
    """A copy, with the numbers of the frames in their place and without the stamps' class."""
    frames = kwargs.get("video")
    seen = {key: copy.deepcopy(value) for key, value in kwargs.items() if not key.startswith("video")}
    if isinstance(frames, list):
        seen["video"] = [int(frame.flatten()[0]) for frame in frames]
        seen["stamps"] = [(stamp.pts, stamp.time_base) for stamp in kwargs["video_timestamps"]]
    elif frames is not None:
        seen["video"] = frames
    return seen


class ScopesOwn:
    """scope's processor with one input and one output, turned by hand."""

    def __init__(self, checkout, pipeline, parameters):
        module = checkout("scope.server.pipeline_processor")
        self.processor = module.PipelineProcessor(pipeline, "scripted", parameters)
        self.processor.input_queues = {"video": queue.Queue(30), "prompts": queue.Queue()}
        self.processor.output_queues = {"video": [queue.Queue(30)]}
        self.update = self.processor.update_parameters

    def turn(self) -> None:
        try:
            self.processor.process_chunk()
        except Exception:
            pass

    def put(self, port, value) -> None:
        packet = checkout_packet(value) if port == "video" else value
        try:
            self.processor.input_queues[port].put_nowait(packet)
        except queue.Full:
            pass

    def frames(self) -> list[torch.Tensor]:
        taken, out = [], self.processor.output_queues["video"][0]
        while not out.empty():
            taken.append(out.get_nowait().tensor)
        return taken

    def rate(self):
        return self.processor.native_fps


class Double:
    """The stand-in's processor behind the same methods."""

    def __init__(self, pipeline, parameters):
        self.processor = Processor(pipeline, parameters)
        self.processor.inputs["video"] = queue.Queue(30)
        self.update, self.turn = self.processor.update, self.processor.turn

    def put(self, port, value) -> None:
        target = self.processor.inputs if port == "video" else self.processor.values
        try:
            target[port].put_nowait(value)
        except queue.Full:
            pass

    def frames(self) -> list[torch.Tensor]:
        taken = []
        while not self.processor.outputs.empty():
            taken.append(self.processor.outputs.get_nowait())
        return taken

    def rate(self):
        return self.processor.frame_rate


def checkout_packet(frame):
    from scope.server.media_packets import VideoPacket

    return VideoPacket(tensor=frame)


def random_update(dice: random.Random) -> dict:
    prompts = [[{"text": text, "weight": 1.0}] for text in ("a fox", "a boat")]
    choices = {
        "prompts": [*prompts, "a storm"],
        "transition": [{"target_prompts": prompts[1], "num_steps": 3}, None],
        "reset_cache": [True, False, None],
        "lora_scales": [[{"path": "a", "scale": 0.5}], None],
        "paused": [True, False, False, None],
        "input_mode": ["text", "video"],
        "images": [["x.png"]],
        "vace_ref_images": [["y.png"]],
        "video": [None, 1],
        "init_cache": [True],
        "type": ["set_optimization_preset"],
        "noise_scale": [0.1, 0.9],
    }
    return {key: dice.choice(choices[key]) for key in dice.sample([*choices], dice.randint(0, 4))}


@pytest.mark.parametrize("seed", range(20))
def test_the_processor_does_what_scopes_does(checkout, seed, monkeypatch):
    """The same random session on both: the same calls and prepares with the same keywords, and the same frames out."""
    for module in ("scope.server.pipeline_processor", "support.scope_double.processor"):
        monkeypatch.setattr(checkout(module), "SLEEP_TIME" if "server" in module else "REST", 0)
    dice = random.Random(seed)
    first = random_update(dice) | {"input_mode": dice.choice(["text", "video"])}
    real = ScopesOwn(checkout, Scripted(seed), copy.deepcopy(first))
    own = Double(Scripted(seed), copy.deepcopy(first))
    own.processor.pipeline.dice.setstate(real.processor.pipeline.dice.getstate())
    own.processor.pipeline.calls.clear()
    calls = 0
    for i in range(150):
        for _ in range(dice.choice([0, 0, 1, 1, 2, 6])):
            update = random_update(dice)
            dropped = [side.update(copy.deepcopy(update)) is False for side in (real, own)]
            assert dropped[0] == dropped[1]
        for _ in range(dice.choice([0, 0, 3, 9])):
            for side in (real, own):
                side.put("video", torch.full((1, 2, 2, 3), i % 256, dtype=torch.uint8))
        if dice.random() < 0.1:
            for side in (real, own):
                side.put("prompts", f"from a port {i}")
        for side in (real, own):
            side.turn()
        expected, got = real.processor.pipeline.calls, own.processor.pipeline.calls
        assert json.dumps(got, sort_keys=True) == json.dumps(expected, sort_keys=True), f"turn {i}"
        calls += sum(kind == "call" for kind, _ in got)
        expected.clear(), got.clear()
        if dice.random() < 0.7:
            expected, got = real.frames(), own.frames()
            assert len(got) == len(expected) and all(map(torch.equal, got, expected)), f"turn {i}"
        assert own.rate() == real.rate()
    assert calls > 20
