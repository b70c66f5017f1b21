"""The nodes for ComfyUI, loaded and called as it does both, by what its documentation says of nodes (schema V1).

ComfyUI itself is not here: it is no package of PyPI. What the nodes call of it, a progress bar and the question
whether a user has pressed stop, stands in for it as ``comfy.utils`` and ``comfy.model_management``.
"""

import importlib.util
import inspect
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import longlive_optimized

FOLDER = Path(__file__).parents[2] / "docs/examples/comfyui"
WIDGETS = {"STRING", "INT", "FLOAT", "BOOLEAN"}


class Stopped(Exception):
    """As ComfyUI raises where a user has pressed stop."""


@pytest.fixture
def comfy(monkeypatch):
    """What ComfyUI shows, ``bars``, and whether somebody has pressed stop."""
    state = types.SimpleNamespace(bars=[], stop=False)

    class ProgressBar:
        def __init__(self, total, node_id=None):
            self.shown = []
            state.bars.append(self)

        def update_absolute(self, value, total=None, preview=None):
            self.shown.append((value, total))

    def throw():
        if state.stop:
            raise Stopped

    modules = {"comfy": types.ModuleType("comfy")}
    for name, content in {
        "utils": {"ProgressBar": ProgressBar},
        "model_management": {"throw_exception_if_processing_interrupted": throw},
    }.items():
        module = modules[f"comfy.{name}"] = types.ModuleType(f"comfy.{name}")
        vars(module).update(content)
        setattr(modules["comfy"], name, module)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return state


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    """As ComfyUI finds them in a folder of custom_nodes."""
    folder = tmp_path / "custom.nodes" / "longlive"
    folder.parent.mkdir()
    folder.symlink_to(FOLDER)
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def defaults(node):
    """The values that a new node's widgets have."""
    values = {}
    for name, (kind, *options) in node.INPUT_TYPES()["required"].items():
        if isinstance(kind, list) or kind in WIDGETS:
            values[name] = options[0]["default"] if options else kind[0]
    return values


def call(node, **inputs):
    """Checked as ComfyUI checks a workflow, and by the name of the node's function."""
    wanted = node.INPUT_TYPES()
    assert set(wanted["required"]) <= set(inputs) <= {*wanted["required"], *wanted.get("optional", ())}
    result = getattr(node, node.FUNCTION)(**inputs)
    assert isinstance(result, tuple) and len(result) == len(node.RETURN_TYPES)
    return result


def test_the_nodes_are_what_comfyui_wants(nodes):
    classes = nodes.NODE_CLASS_MAPPINGS
    assert classes.keys() == nodes.NODE_DISPLAY_NAME_MAPPINGS.keys() and len(classes) == 3
    for node in classes.values():
        inputs = node.INPUT_TYPES()
        assert set(inputs) <= {"required", "optional", "hidden"} and "required" in inputs
        assert isinstance(node.RETURN_TYPES, tuple) and len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
        assert isinstance(node.CATEGORY, str)
        named = {**inputs["required"], **inputs.get("optional", {})}
        for kind, *options in named.values():
            assert isinstance(kind, list) or kind in {*WIDGETS, "LONGLIVE"}
            assert all(isinstance(each, dict) for each in options)
        parameters = inspect.signature(getattr(node, node.FUNCTION)).parameters
        assert [*parameters][1:] == [*named]
        assert all(parameters[name].default is not inspect.Parameter.empty for name in inputs.get("optional", ()))
        node()


def test_it_stays_small():
    assert len((FOLDER / "__init__.py").read_text().splitlines()) < 150 and len([*FOLDER.glob("*.py")]) == 1


def test_a_workflow(nodes, comfy):
    model = nodes.LongLiveModel()
    (engine,) = call(model, **defaults(model))
    assert comfy.bars[0].shown[-1][0] == comfy.bars[0].shown[-1][1]
    video = nodes.LongLiveVideo()
    chosen = defaults(video) | {"prompt": "a red circle", "seconds": 2.0, "seed": 3, "preset": "ultra"}
    later = "0.5: a white cross\n\n"
    images, story = call(video, model=engine, **chosen, later=later)
    assert images.dtype == torch.float32 and images.shape == (32, 64, 96, 3) and 0 <= images.min() < images.max() <= 1
    assert comfy.bars[1].shown == [(9, 32), (21, 32), (32, 32)]
    told = {"version": 1, "seconds": 2.0, "seed": 3, "preset": "ultra", "height": 64, "width": 96}
    prompts = [{"block": 0, "prompt": "a red circle"}, {"seconds": 0.5, "prompt": "a white cross"}]
    wanted = longlive_optimized.generate(longlive_optimized.Story.read(told | {"prompts": prompts}), model=engine)
    assert np.array_equal((images * 255).round().to(torch.uint8).numpy(), wanted.frames)
    again, same = call(nodes.LongLiveStory(), model=engine, story=story)
    assert torch.equal(again, images) and json.loads(same) == json.loads(story)

    comfy.stop = True
    with pytest.raises(Stopped):
        call(video, model=engine, **chosen)
    comfy.stop = False
    assert torch.equal(call(nodes.LongLiveStory(), model=engine, story=story)[0], images)
    lines = {"soon: a boat": "later must have lines of SECONDS: PROMPT", "9: a boat": "must be below 2"}
    for bad, message in lines.items():
        with pytest.raises(ValueError, match=message):
            call(video, model=engine, **chosen, later=bad)
    (other,) = call(model, model="tiny", eight_bits=True)
    assert engine.closed and not other.closed and other.config.precision == "int8"
