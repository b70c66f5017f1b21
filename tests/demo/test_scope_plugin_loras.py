"""The plugin's LoRAs under a double of scope."""

import pytest
import torch
from safetensors.torch import save_file

from longlive_optimized.engine.engine import LongLiveEngine
from longlive_optimized.engine.request import BlockRequest
from longlive_optimized.weights.random_checkpoint import TINY
from longlive_optimized.weights.user_lora import UserLora
from support.scope_double.streams import FOX, LOAD, engine_of, run


@pytest.fixture
def lora_file(tmp_path):
    """A LoRA for one linear, strong enough to be seen."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for shape in ((2, TINY.dim), (TINY.dim, 2)))
    name = "diffusion_model.blocks.0.self_attn.o"
    save_file({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, tmp_path / "style.safetensors")
    return str(tmp_path / "style.safetensors")


def test_loras_are_merged_at_load_and_rescaled_while_streaming(installed, pipeline_class, lora_file):
    load = LOAD | {"loras": [{"path": lora_file, "scale": 0.5, "merge_mode": "permanent_merge"}]}
    assert installed.manager.load(pipeline_class, load), installed.manager.error
    session, bystander = (installed.manager.open({"prompts": FOX}) for _ in range(2))
    half = run(session, 1)
    run(bystander, 2)
    config = installed.manager.pipeline._engine.config
    full = [LongLiveEngine("tiny", config, loras=[UserLora(lora_file, scale)]) for scale in (0.5, 2.0)]
    assert torch.equal(half[0], full[0].generate_block(BlockRequest("a fox")))
    after = run(session, 1, lora_scales=[{"path": lora_file, "scale": 2.0}])
    assert torch.equal(after[0], full[1].generate_block(BlockRequest("a fox"))) and not torch.equal(after[0], half[0])
    assert installed.manager.pipeline.loaded_lora_adapters == [
        {"path": lora_file, "scale": 2.0, "merge_mode": "permanent_merge"}
    ]
    assert len(run(session, 1, manage_cache=False, lora_scales=[{"path": lora_file, "scale": 1.0}])[0]) == 12
    assert len(run(bystander, 1)[0]) == 12
    session.stop(), bystander.stop()


def test_a_slider_of_a_lora_loses_no_value_and_reads_no_file(installed, pipeline_class, lora_file, monkeypatch):
    """40 values, three of them while a block is made: blocks take the newest, the last one is exact."""
    assert installed.manager.load(pipeline_class, LOAD | {"loras": [{"path": lora_file}]}), installed.manager.error
    session, engine = installed.manager.open({"prompts": FOX, "manage_cache": False}), engine_of(installed)
    for module in ("load", "user_lora"):
        monkeypatch.setattr(
            f"longlive_optimized.weights.{module}.tensors_in", lambda *_: pytest.fail("a file was read")
        )
    merged, set_loras = [], engine.set_loras

    def noted(loras):
        merged.append([lora.scale for lora in loras])
        set_loras(loras)

    monkeypatch.setattr(engine, "set_loras", noted)
    blocks = len(run(session, 1)[0]) == 9
    for value in range(40):
        session.send({"lora_scales": [{"path": lora_file, "scale": value / 16}]})
        if value % 3 == 2:
            while not session.step().result:
                pass
            blocks += 1
    while session.processor.updates.qsize():
        blocks += bool(session.step().result)
    run(session, 1)
    assert session.processor.dropped_updates == 0
    assert len(merged) <= blocks < 20 and merged[-1] == [39 / 16]
    monkeypatch.undo()
    fresh = LongLiveEngine("tiny", engine.config, loras=[UserLora(lora_file, 39 / 16)]).model
    assert all(map(torch.equal, engine.model.state_dict().values(), fresh.state_dict().values()))
    assert installed.manager.pipeline.loaded_lora_adapters[0]["scale"] == 39 / 16
    session.stop()


def test_a_slider_of_a_lora_does_not_hold_up_a_video(installed, pipeline_class, lora_file):
    assert installed.manager.load(pipeline_class, LOAD | {"loras": [{"path": lora_file}]}), installed.manager.error
    session = installed.manager.open({"prompts": FOX, "input_mode": "video", "manage_cache": False})
    for value in range(3):
        for _ in range(12):
            session.put_frame(torch.full((8, 8, 3), 50 * value, dtype=torch.uint8))
        assert len(run(session, 1, lora_scales=[{"path": lora_file, "scale": value / 3}])[0]) == (12 if value else 13)
    session.stop()


@pytest.mark.parametrize("mode", ["permanent_merge", "runtime_peft", "module_targeted", None])
def test_a_lora_is_merged_whatever_its_mode(installed, pipeline_class, lora_file, mode):
    load = LOAD | {"loras": [{"path": lora_file, "scale": 0.5, "merge_mode": mode}], "lora_merge_mode": mode}
    assert installed.manager.load(pipeline_class, load), installed.manager.error
    merged = LongLiveEngine("tiny", engine_of(installed).config, loras=[UserLora(lora_file, 0.5)]).model
    assert all(map(torch.equal, engine_of(installed).model.state_dict().values(), merged.state_dict().values()))
    [adapter] = installed.manager.pipeline.loaded_lora_adapters
    assert adapter["merge_mode"] == (mode or "permanent_merge")
