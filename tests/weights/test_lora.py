"""The LoRA's names and its merge, against peft itself and against float64."""

import pytest
import torch

from longlive_optimized.weights import CheckpointError
from longlive_optimized.weights.lora import adapter_shapes, open_adapter, targets
from longlive_optimized.weights.terms import LowRank, merge

GENERATOR = {"blocks.0.self_attn.q.weight": (24, 16), "blocks.0.self_attn.q.bias": (24,), "head.head.weight": (8, 16)}


def test_merge_is_float32_whatever_goes_in():
    generator = torch.Generator().manual_seed(0)
    w, a, b = (torch.randn(shape, generator=generator) for shape in [(24, 16), (8, 16), (24, 8)])
    for dtype in (torch.float32, torch.bfloat16):
        w, a, b = w.to(dtype), a.to(dtype), b.to(dtype)
        merged = merge(w, [LowRank(a, b)])
        assert merged.dtype == torch.float32
        torch.testing.assert_close(merged.double(), w.double() + b.double() @ a.double(), rtol=1e-6, atol=1e-5)


def test_merge_adds_scaled_terms_in_turn():
    generator = torch.Generator().manual_seed(0)
    w, a, b, c, d = (torch.randn(s, generator=generator) for s in [(24, 16), (8, 16), (24, 8), (2, 16), (24, 2)])
    merged = merge(w, [LowRank(a, b, -0.5), LowRank(c, d, 3)])
    wanted = w.double() - 0.5 * (b.double() @ a.double()) + 3 * (d.double() @ c.double())
    torch.testing.assert_close(merged.double(), wanted, rtol=1e-6, atol=1e-5)
    assert torch.equal(merged, merge(merge(w, [LowRank(a, b, -0.5)]), [LowRank(c, d, 3)]))


def test_merge_leaves_its_operands_and_scale_0_leaves_every_bit():
    w = torch.tensor([[-0.0, 1.0]])
    a, b = torch.full((1, 2), 2.0), torch.ones(1, 1)
    assert merge(w, [LowRank(a, b), LowRank(a, b)]).tolist() == [[4, 5]]
    assert w.tolist() == [[0, 1]] and a.tolist() == [[2, 2]]
    unread = LowRank(torch.empty(1, 2, device="meta"), torch.empty(1, 1, device="meta"), 0.0)
    assert merge(w, [unread]).view(torch.int32).equal(w.view(torch.int32))


def test_targets_are_every_linear_of_every_layer():
    suffixes = [f"{kind}_attn.{name}" for kind in ("self", "cross") for name in "qkvo"] + ["ffn.0", "ffn.2"]
    others = ["modulation", "norm3.weight", "self_attn.norm_q.weight", "ffn.0.bias"]
    keys = [f"blocks.{i}.{s}.weight" for i in (0, 29) for s in suffixes] + [f"blocks.3.{o}" for o in others]
    keys += ["head.head.weight", "text_embedding.0.weight", "time_projection.1.weight", "patch_embedding.weight"]
    assert targets(keys) == [f"blocks.{i}.{s}" for i in (0, 29) for s in suffixes]


def test_names_and_merge_of_peft(tmp_path):
    """What peft writes is what is read, and its own merge gives the same matrix (alpha = rank)."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList([torch.nn.Module()])
    model.blocks[0].self_attn = torch.nn.ModuleDict({"q": torch.nn.Linear(16, 24)})
    base = model.blocks[0].self_attn["q"].weight.detach().clone()
    config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["q"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, config)
    torch.save({"generator_lora": peft.get_peft_model_state_dict(wrapped)}, tmp_path / "lora.pt")
    adapter = open_adapter(tmp_path / "lora.pt", GENERATOR)
    assert list(adapter) == ["blocks.0.self_attn.q.weight"]
    merged = wrapped.merge_and_unload().blocks[0].self_attn["q"].weight
    assert (merged - base).norm() > 0.1 * base.norm()
    found = merge(base, adapter["blocks.0.self_attn.q.weight"])
    torch.testing.assert_close(found, merged.detach(), rtol=1e-6, atol=1e-6)


def save(path, **shapes):
    shapes = adapter_shapes(GENERATOR, 4) | {f"base_model.model.{key}": shape for key, shape in shapes.items()}
    torch.save({key: torch.zeros(shape) for key, shape in shapes.items()}, path)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"blocks.0.self_attn.q.lora_B.weight": (24, 5)}, r"lora_B\.weight is \[24, 5\], expected \[24, 4\]"),
        ({"blocks.0.self_attn.q.lora_A.weight": (4, 17)}, r"lora_A\.weight is \[4, 17\], expected \[4, 16\]"),
        ({"blocks.0.self_attn.q.lora_magnitude_vector": (24,)}, "1 unexpected .*magnitude"),
        ({"head.head.lora_A.weight": (4, 16)}, "1 unexpected .*head"),
        ({"blocks.1.self_attn.q.lora_A.weight": (4, 16)}, r"1 unexpected .*blocks\.1"),
    ],
)
def test_adapters_that_do_not_fit(tmp_path, shapes, message):
    path = tmp_path / "lora.pt"
    save(path)
    assert open_adapter(path, GENERATOR)
    save(path, **shapes)
    with pytest.raises(CheckpointError, match=message):
        open_adapter(path, GENERATOR)


def test_no_adapter(tmp_path):
    torch.save({"blocks.0.self_attn.q.weight": torch.zeros(24, 16)}, tmp_path / "lora.pt")
    with pytest.raises(CheckpointError, match=r"is no LoRA: it has no tensor named base_model\.model\."):
        open_adapter(tmp_path / "lora.pt", GENERATOR)
