"""Call for call, the plugin makes the passes that scope's own pipeline was recorded making (``record_scope.py``).

Two differences are the design's, and are applied to the recording before it is compared: a block's clean pass is put
off until the next block needs it, and dropped where a recache or a restart makes it superfluous; a recache beyond the
first window leaves out its three oldest frames, which nobody attends to.
"""

import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from longlive_optimized.model.transformer import CrossCache, Modulation
from longlive_optimized.vae.config import VaeConfig
from longlive_optimized.vae.modules import ModulesCodec
from longlive_optimized.vae.wan.model import WanVae
from support.scope_double import scope_installed

RECORDED = json.loads((Path(__file__).parent / "sequences.json").read_text())
HEIGHT, WIDTH = RECORDED["pixels"]
WINDOW = 12


class RecordingNetwork:
    """The transformer's interface; what it is asked for ends up in ``events``."""

    def __init__(self, real):
        self.config, self.device, self.blocks = real.config, real.device, ()
        self.compute_dtype, self.kv_dtype, self.latent_dtype = real.compute_dtype, real.kv_dtype, real.latent_dtype
        self.events: list[dict] = []

    def modulation(self, timesteps):
        return Modulation(timesteps.view(-1, 1, 1, 1).clone(), *(timesteps.view(-1, 1, 1).clone() for _ in range(2)))

    def cross_cache(self, embedding, into=None):
        return CrossCache(embedding.clone(), embedding.clone())

    def __call__(self, x, modulation, ring, cross, policy=(), *, hints=None, store_only=False):
        event = {
            "event": "clean" if store_only else "denoise",
            "t": [modulation.head.item()],
            "start": ring._start.item(),
            "latents": len(x),
            "condition": cross.k.tolist(),
        }
        last = self.events[-1] if self.events else {}
        if event["event"] == "denoise" and {**last, "t": 0} == {**event, "t": 0}:
            last["t"] += event["t"]
        else:
            self.events.append(event)
        return x.new_empty(0) if store_only else torch.zeros_like(x)


def keywords(call: dict) -> dict:
    frames = [torch.full((1, HEIGHT, WIDTH, 3), level, dtype=torch.uint8) for level in call.get("video", ())]
    return call | ({"video": frames} if frames else {})


def as_designed(calls: list[dict]) -> list[list[dict]]:
    """The recorded passes of each call, with the two differences."""
    out, pending = [], []
    for call in calls:
        passes = [dict(event) for event in call.get("events", ()) if event["event"] in ("denoise", "clean", "recache")]
        if any(event["event"] == "recache" or (event["event"] == "denoise" and not event["start"]) for event in passes):
            pending = []
        for event in passes:
            if event["event"] == "recache":
                event["event"] = "clean"
                if event["start"] > 0:
                    event |= {"start": event["start"] + 3, "latents": WINDOW - 3}
        out.append(pending + passes[:-1] if passes else [])
        pending = passes[-1:]  # none after calls that were skipped
    return out


# Where ours is meant to differ: (scenario, number of the call) and what it does instead, as (kind, first t, start).
CLEAN, DENOISE = "clean", "denoise"
DIFFERENT = {
    # A prompt said in another form, or with weights in the same proportion, is the same prompt: no recache.
    ("one prompt in other forms", 4): [(CLEAN, 0, 9), (DENOISE, 1000, 12)],
    ("weights change", 3): [(CLEAN, 0, 6), (DENOISE, 1000, 9)],
    # A negative weight is refused, and the prompt stays.
    ("weights change", 6): [(CLEAN, 0, 15), (DENOISE, 1000, 18)],
    ("weights change", 7): [(CLEAN, 0, 18), (DENOISE, 1000, 21)],
    # The name that scope's page sends means what it says.
    ("two weighted prompts", 3): [(CLEAN, 0, 0), (DENOISE, 1000, 9)],
    ("two weighted prompts", 4): [(CLEAN, 0, 0), (DENOISE, 1000, 12)],
    # A prompt without text is none: the last one stays, and before the first one nothing is made.
    ("empty prompts", 1): [],
    ("empty prompts", 2): [],
    ("empty prompts", 3): [(DENOISE, 1000, 0)],
    ("empty prompts", 4): [(CLEAN, 0, 0), (DENOISE, 1000, 3)],
    ("empty prompts", 5): [(CLEAN, 0, 3), (DENOISE, 1000, 6)],
    ("empty prompts", 6): [(CLEAN, 0, 6), (DENOISE, 1000, 9)],
    ("empty prompts", 7): [(CLEAN, 0, 9), (DENOISE, 1000, 12)],
    ("empty prompts", 8): [(CLEAN, 0, 12), (DENOISE, 1000, 15)],
    # manage_cache counts in the call that brings it.
    ("lora_scales", 6): [(CLEAN, 0, 3), (DENOISE, 1000, 6)],
    ("lora_scales", 7): [(CLEAN, 0, 6), (DENOISE, 1000, 9)],
    ("lora_scales", 8): [(CLEAN, 0, 9), (DENOISE, 1000, 12)],
    # Modulation that has ended is over: other steps by hand begin anew.
    ("modulated steps, then a change by hand", 5): [(DENOISE, 1000, 0)],
    ("modulated steps, then a change by hand", 6): [(CLEAN, 0, 0), (DENOISE, 1000, 3)],
    ("modulated steps, then a change by hand", 7): [(DENOISE, 1000, 0)],
    ("modulated steps, then a change by hand", 8): [(CLEAN, 0, 0), (DENOISE, 1000, 3)],
    # Other steps do not make the input video a new one: its motion is measured on.
    ("video with controller, in and out", 6): [(DENOISE, 589, 0)],
    # A prompt that is almost the present one is gone over to all the same; scope stays, even when asked again.
    ("transition to almost the present prompt", 2): [(CLEAN, 0, 0), (DENOISE, 1000, 6)],
    ("transition to almost the present prompt", 3): [(CLEAN, 0, 0), (DENOISE, 1000, 9)],
    ("transition to almost the present prompt", 4): [(CLEAN, 0, 0), (DENOISE, 1000, 12)],
    ("transition to almost the present prompt", 5): [(CLEAN, 0, 6), (DENOISE, 1000, 15)],
    # No timestep is negative.
    ("video noise scale changes", 5): [(CLEAN, 0, 13), (DENOISE, 0, 16)],
    ("video noise scale changes", 6): [(CLEAN, 0, 16), (DENOISE, 0, 19)],
}
# Ours shows the transition's target from this call on, where scope shows what it came from.
ARRIVES = {
    "transition of 1, then the old prompts are still sent": 2,  # a transition of one step arrives
    "video transition of 1": 2,
    "transition, then a reset": 5,  # the last wish holds over a reset
}


@pytest.fixture(scope="module")
def ours():
    """A pipeline whose network records and whose prompts are the recording's; with the network."""
    with scope_installed() as scope:
        pipeline_class = scope.discover("longlive-optimized")["longlive-optimized"]
        with pytest.MonkeyPatch.context() as patch:  # the recording is a CPU's
            patch.setattr(torch.cuda, "is_available", lambda: False)
            pipeline = pipeline_class(model_path="tiny", height=HEIGHT, width=WIDTH)
        engine = pipeline._engine
        engine.model = network = RecordingNetwork(engine.model)
        engine.prompts.get = lambda text: torch.tensor(RECORDED["embeddings"][text])
        engine.set_loras = lambda loras: None
        pipeline._loras["style.safetensors"] = SimpleNamespace(scale=1.0)
        engine.codec = ModulesCodec(WanVae(VaeConfig(base=2)))  # narrow, at random: nobody looks at the pictures
        pipeline._warm.clear()  # its stream is the real network's
        yield pipeline, network
    for module in [name for name in sys.modules if name.startswith("longlive_optimized.demo.scope_plugin")]:
        del sys.modules[module]  # they hold the double's classes


@pytest.mark.parametrize("name", RECORDED["scenarios"])
def test_the_passes_are_scopes(ours, name, monkeypatch):
    monkeypatch.setattr("longlive_optimized.demo.scope_plugin.pipeline.UserLora", lambda path, scale: path)
    failure = []

    def work():  # a session is a thread
        try:
            replay(name, *ours)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work)
    thread.start(), thread.join()
    if failure:
        raise failure[0]


def replay(name: str, pipeline, network: RecordingNetwork) -> None:
    calls = RECORDED["scenarios"][name]
    for number, (call, passes) in enumerate(zip(calls, as_designed(calls), strict=True)):
        where = f"{name}, call {number}"
        if "times" in call:
            stream = pipeline._sessions.current()._stream
            stream.position, stream.context_due = stream.position + 3 * call["times"], False
            continue
        network.events.clear()
        result = pipeline(**keywords(call["call"]))
        if (name, number) in DIFFERENT:
            seen = [(event["event"], round(event["t"][0]), event["start"]) for event in network.events]
            assert seen == DIFFERENT[name, number], where
        else:
            assert_same_passes(network.events, passes, where, number >= ARRIVES.get(name, len(calls)))
            assert_same_result(pipeline, result, call["result"], where)


def assert_same_passes(mine: list[dict], scopes: list[dict], where: str, arrives: bool) -> None:
    assert [event["event"] for event in mine] == [event["event"] for event in scopes], where
    for event, recorded in zip(mine, scopes, strict=True):
        assert {**event, "condition": 0} == {**recorded, "condition": 0}, where
        condition = "boat" if arrives else recorded["condition"]
        rows = RECORDED["embeddings"][condition] if isinstance(condition, str) else condition
        torch.testing.assert_close(torch.tensor(event["condition"]), torch.tensor(rows), msg=where, atol=1e-5, rtol=0)


def assert_same_result(pipeline, result: dict, recorded: dict, where: str) -> None:
    if "error" in recorded:  # ours waits
        assert result == {}, where
        return
    stream = pipeline._sessions.current()._stream
    assert (len(result["video"]), stream.position) == (recorded["frames"], recorded["next_start"]), where
    assert recorded["seed"] == stream.settings.seed + max(0, stream.position - 3 - (stream.position == 4)), where
    assert pipeline.state.get("_transition_active") == recorded["transition_active"], where
