"""What docs/scope.md says."""

from __future__ import annotations

import json

from longlive_optimized.demo.scope_plugin import backoff, session
from longlive_optimized.demo.scope_plugin.load_params import ROTARY_END, LoadParams, read_load

from .claims import lists, says
from .markdown import Unit
from .place import ROOT, Place
from .tables import body, names

SCOPE = "docs/scope.md"


@says(SCOPE, "holds what scope's pipeline was recorded doing in 60 situations")
def recordings():
    sequences = json.loads((ROOT / "tests/parity/sequences.json").read_text())
    assert len(sequences["scenarios"]) == 60


@lists(SCOPE, "Parameters")
def parameters(units: list[Unit]):
    load = LoadParams()
    said = {name: cells[1] for cells in body(units, "name") for name in names(cells[0])}
    expected = {
        "optimization_preset": f"`{load.optimization_preset}`",
        "step_schedule": f"`{load.step_schedule}`",
        "positions": f"`{load.positions}`",
        "restart_at": str(load.restart_at),
        "max_sessions": str(load.max_sessions),
    }
    assert {name: said[name] for name in expected} == expected
    assert load.model_path is None and load.show_latency_overlay is False and load.overlay_position == "top-right"
    assert ROTARY_END == 1021 and LoadParams(restart_at=0).restart_at is None  # "0 is never"


@says(SCOPE, "At load, beside those of scope's LongLive")
def load_parameters(units: list[Unit]):
    assert {*names(units[0].text)} <= LoadParams.model_fields.keys()
    read_load({"nobody_knows_this": 1})  # "unknown ones are ignored"


@says(SCOPE, "`vace_enabled` without the module's file")
def vace_where_it_is(place: Place):
    place.passes("tests/demo/test_scope_vace.py")


@says(SCOPE, "tried again after 0.25 to 8 seconds")
def trying_again():
    assert (backoff.FIRST, backoff.LONGEST) == (0.25, 8.0)


@says(SCOPE, "`noise_scale` below 0.1 counts as 0.1")
def least_noise():
    assert session.SMALLEST_NOISE == 0.1


@says(SCOPE, "`pytest tests/demo/test_scope_plugin*.py tests/parity` runs the plugin under a double of scope")
@says(SCOPE, "Over the data channel, as messages. scope repeats what it was sent with every call")
@lists(SCOPE, "Where it differs on purpose", "item")
def under_the_double(place: Place):
    place.passes("tests/demo/test_scope_plugin*.py tests/parity")


@lists(SCOPE, "Parameters", "item")
def while_streaming(units: list[Unit]):
    from longlive_optimized.demo.scope_plugin.call_params import CallParams

    known = {field.alias or name for name, field in CallParams.model_fields.items()} | CallParams.model_fields.keys()
    for unit in units:
        for name in names(unit.text)[:1]:
            assert name in known, name
