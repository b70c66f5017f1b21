"""Scales of a LoRA that adapts VACE's module too, from what is kept of both."""

import torch
from safetensors.torch import save_file

from longlive_optimized import LongLiveEngine, OptimizationConfig
from longlive_optimized.weights import load
from longlive_optimized.weights.random_checkpoint import make_checkpoint
from longlive_optimized.weights.user_lora import UserLora


def test_what_is_kept_of_vaces_module_gives_the_weights_of_a_load(tmp_path, monkeypatch):
    folder, path = make_checkpoint(tmp_path / "model", "tiny", control=True), tmp_path / "style.safetensors"
    modules = "blocks.0.self_attn.q", "vace_blocks.0.self_attn.q", "vace_blocks.0.after_proj"
    shapes = {"A": (2, 256), "B": (256, 2)}
    save_file({f"{m}.lora_{half}.weight": torch.randn(s) / 8 for m in modules for half, s in shapes.items()}, path)
    config = OptimizationConfig(height=32, width=48, control=True)
    kept, loaded = (LongLiveEngine(folder, config, "cpu", loras=[UserLora(path, scale)]) for scale in (1.0, 0.3))
    kept.keep_loras([UserLora(path)])
    opened, tensors_in = [], load.tensors_in
    monkeypatch.setattr(load, "tensors_in", lambda *args: opened.append(args) or tensors_in(*args))

    def weights(engine):
        return [*engine.model.state_dict().values(), *engine.control.state_dict().values()]

    assert not all(map(torch.equal, weights(kept), weights(loaded)))
    kept.set_loras([UserLora(path, 0.3)])
    assert all(map(torch.equal, weights(kept), weights(loaded))) and not opened
