"""What type checkers and editors see of the public names."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

import longlive_optimized
from longlive_optimized import keywords
from longlive_optimized.config import ALIASES, PRESETS, StreamSettings
from longlive_optimized.demo.scope_integration import OverlayConfig, ScopeOptimizationConfig
from longlive_optimized.engine.request import BlockRequest

USE = """
import numpy as np
import torch
from longlive_optimized import BlockRequest, LongLiveEngine, OptimizationConfig
from longlive_optimized.demo.scope_integration import OptimizedScopePipeline, ScopeOptimizationConfig
from longlive_optimized.demo.scope_integration import create_latency_overlay, create_optimized_scope_pipeline

engine = LongLiveEngine("tiny", OptimizationConfig(height=64, seed=3, denoising_steps=(1000, 500)))
frames: torch.Tensor = engine.generate_block(BlockRequest([("a", 1.0)], denoising_steps=[1000], blend="slerp"))
BlockRequest("a", video=[np.zeros((16, 16, 3), np.uint8)])
pipeline = OptimizedScopePipeline("tiny", ScopeOptimizationConfig.preset_ultra(height=64, target_fps=20))
pipeline.generate_frame("a", blend="linear", denoising_steps=[500])
pipeline.configure(denoising_steps=[500], target_fps=20)
pipeline.set_optimization_preset("ultra")
create_optimized_scope_pipeline("tiny", "quality", height=64)
create_latency_overlay(position="top-left", opacity=0.5)

LongLiveEngine("tiny", {"height": 64})  # wrong
OptimizationConfig(hieght=64)  # wrong
OptimizationConfig(precision="int4")  # wrong
OptimizationConfig.preset("fast")  # wrong
OptimizationConfig.preset("ultra", hieght=64)  # wrong
BlockRequest("a", blend="mean")  # wrong
BlockRequest(None)  # wrong
engine.generate_block("a")  # wrong
engine.open_stream(hieght=64)  # wrong
engine.configure(denoising_step=[500])  # wrong
pipeline.generate_frame("a", blned="linear")  # wrong
pipeline.generate_frame("a", blend="mean")  # wrong
pipeline.switch_prompt("a", denoising_steps=[500])  # wrong
pipeline.configure(overlay_position="top")  # wrong
pipeline.set_optimization_preset("fast")  # wrong
create_optimized_scope_pipeline("tiny", hieght=64)  # wrong
create_latency_overlay(opacty=0.5)  # wrong
"""
WRONG = {number for number, line in enumerate(USE.splitlines()) if line.endswith("# wrong")}


def test_the_public_names_are_listed():
    assert {*longlive_optimized.__all__} <= {*dir(longlive_optimized)}
    code = "import sys, longlive_optimized as l; dir(l); print('torch' in sys.modules, l.OptimizationConfig.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "OptimizationConfig"]


def test_keywords_are_those_that_are_taken():
    def fields(cls: type) -> set[str]:
        return {field.name for field in dataclasses.fields(cls)}

    assert {*keywords.ConfigFields.__annotations__} == fields(ScopeOptimizationConfig)
    assert {*keywords.StreamFields.__annotations__} == fields(StreamSettings) - {"height", "width", "seed"}
    assert {*keywords.OverlayFields.__annotations__} == fields(OverlayConfig) - {"position"}
    assert {*keywords.FrameFields.__annotations__} <= fields(BlockRequest)
    assert [*keywords.PresetName.__args__] == [*PRESETS, *ALIASES]


def test_a_type_checker_sees_keywords_and_literals(tmp_path):
    pytest.importorskip("basedpyright")
    (tmp_path / "use.py").write_text(USE)
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard"}')
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable, "."]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    found = [fault for fault in json.loads(done.stdout)["generalDiagnostics"] if fault["severity"] == "error"]
    assert {fault["range"]["start"]["line"] for fault in found} == WRONG, found
    assert {Path(fault["file"]).name for fault in found} == {"use.py"}
