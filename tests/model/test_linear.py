"""Linear, and the slots that a checkpoint is written through."""

import pytest
import torch
import torch.nn.functional as F

from longlive_optimized.model.linear import Linear
from longlive_optimized.model.slot import Slot


def test_rows_of_one_weight_are_slots_of_their_own():
    linear = Linear(4, 9)
    linear.weight.fill_(float("nan")), linear.bias.fill_(float("nan"))
    slots = linear.slots("q", "k", "v")
    assert list(slots) == ["q.weight", "q.bias", "k.weight", "k.bias", "v.weight", "v.bias"]
    written = {key: torch.randn(slot.shape) for key, slot in slots.items()}
    slots["k.weight"].write(written["k.weight"])
    assert torch.equal(linear.weight.isnan().any(1), torch.tensor([True] * 3 + [False] * 3 + [True] * 3))
    for key, tensor in written.items():
        slots[key].write(tensor)
    assert torch.equal(linear.weight, torch.cat([written[f"{key}.weight"] for key in "qkv"]))
    assert torch.equal(linear.bias, torch.cat([written[f"{key}.bias"] for key in "qkv"]))
    assert all(torch.equal(slot.read(), written[key]) for key, slot in slots.items())


def test_a_slot_has_the_checkpoints_shape_and_rounds_once():
    linear = Linear(8, 3, dtype=torch.bfloat16)
    place, slot = linear.weight.data_ptr(), linear.slots("patch", shape=(3, 2, 1, 2, 2))["patch.weight"]
    assert slot.shape == (3, 2, 1, 2, 2) and slot.device == linear.weight.device and slot.nbytes == 48
    wanted = torch.randn(3, 2, 1, 2, 2)
    slot.write(wanted)
    assert torch.equal(linear.weight, wanted.flatten(1).bfloat16()) and linear.weight.data_ptr() == place
    assert slot.sum().dtype == torch.float32 and slot.sum() == linear.weight.sum(dtype=torch.float32)


@pytest.mark.parametrize("shape", [(3,), (1, 4), (3, 1), (4, 3)])
def test_a_slot_takes_no_other_shape(shape):
    slot = Slot(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"tensor must be \[3, 4\], got"):
        slot.write(torch.ones(shape))
    assert not slot.read().any()


def test_what_is_read_is_a_copy():
    stored = torch.zeros(3)
    Slot(stored).read().fill_(1)
    assert not stored.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e6])
def test_the_sum_tells_what_was_stored(bad):
    """Infinity too where the dtype made it one."""
    slot = Slot(torch.zeros(2, 3, dtype=torch.float16))
    slot.write(torch.full((2, 3), 6e4))
    assert slot.sum().isfinite()
    slot.write(torch.tensor([[0, 0, 0], [0, 0, bad]]))
    assert not slot.sum().isfinite()


def test_a_slot_of_a_trained_layer_is_written_like_any_other():
    linear = Linear(2, 4).requires_grad_(True)
    linear.slots("a", "b")["b.weight"].write(torch.ones(2, 2))
    assert torch.equal(linear.weight[2:], torch.ones(2, 2)) and linear.weight.requires_grad


def test_products():
    torch.manual_seed(0)
    linear = Linear(8, 6, dtype=torch.float64)
    linear.weight.normal_(), linear.bias.normal_()
    x = torch.randn(5, 8, dtype=torch.float64)
    wanted = x @ linear.weight.T + linear.bias
    torch.testing.assert_close(linear(x), wanted)
    torch.testing.assert_close(linear.gelu(x), F.gelu(wanted, approximate="tanh"))
