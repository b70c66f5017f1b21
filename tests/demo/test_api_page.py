"""docs/api.md names what there is."""

import dataclasses
import re
from pathlib import Path
from typing import get_args

import pytest

from longlive_optimized import BlockRequest, OptimizationConfig
from longlive_optimized.config import CHANGEABLE, StreamSettings
from longlive_optimized.demo import scope_integration
from longlive_optimized.demo.scope_integration import LatencyStats, OverlayConfig, ScopeOptimizationConfig
from longlive_optimized.demo.server import messages
from longlive_optimized.engine.engine import LongLiveEngine

PAGE = (Path(__file__).parents[2] / "docs/api.md").read_text()
NAMES = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", PAGE))))


@pytest.mark.parametrize(
    "what", [BlockRequest, OptimizationConfig, ScopeOptimizationConfig, LatencyStats, OverlayConfig]
)
def test_every_field_is_named(what):
    assert what.__name__ in NAMES and {field.name for field in dataclasses.fields(what)} <= NAMES


@pytest.mark.parametrize("what", [LongLiveEngine, scope_integration.OptimizedScopePipeline])
def test_every_method_is_named(what):
    own = {name for name in vars(what) if not name.startswith("_")}
    assert own - {"synchronize"} <= NAMES


def test_every_message_is_named():
    commands = [command.model_fields for command in get_args(messages.Command)]
    assert {get_args(fields["type"].annotation)[0] for fields in commands} <= NAMES
    assert {name for fields in commands for name in fields} <= NAMES


def test_what_may_change_is_marked():
    marked = {name for line in PAGE.splitlines() if "•" in line for name in re.findall(r"`(\w+)` •", line)}
    assert marked == set(CHANGEABLE)


def test_defaults_are_the_configs():
    config, seen = dataclasses.asdict(OptimizationConfig()), []
    table = PAGE.split("`OptimizationConfig`;")[1].split("## ")[0]
    for names, defaults in re.findall(r"^\| (`[^|]+`)[ •]* \| ([^|]+) \|", table, re.MULTILINE):
        fields = re.findall(r"`(\w+)`", names)
        values = [v for name in fields for v in (config[name] if isinstance(config[name], tuple) else [config[name]])]
        said = [text.strip("` ") for text in defaults.split(",")]
        assert said == ["none" if value is None else str(value).lower() for value in values], names
        seen += fields
    assert {*seen} == {*config}
    own = {field.name for field in dataclasses.fields(StreamSettings)}
    assert {*seen[: len(own)]} == own and seen[len(own) - 1] == "use_cuda_graphs"
