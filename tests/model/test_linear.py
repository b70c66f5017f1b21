"""Linear, and the slots that a checkpoint is written through."""

import pytest
import torch
import torch.nn.functional as F

from longlive_optimized.kernels.int8_linear import pack
from longlive_optimized.kernels.quantize import quantize
from longlive_optimized.model.linear import Linear, Quantized
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


def quantised(linear: Linear, *keys: str) -> Linear:
    for slot in linear.slots(*keys).values():
        slot.write(torch.randn(slot.shape))
    linear.quantize_weight()
    return linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_quantised_activation_takes_the_int8_product(dtype, groups):
    """Against the product of what the 8 bits stand for, in float64."""
    linear = quantised(Linear(64, 96, dtype=dtype), "a")
    x = torch.randn(7, 64, dtype=dtype)
    q = Quantized(*quantize(x, groups))
    weight = pack(linear.int8_weight).double() * linear.int8_scale[:, None]
    activation = q.values.double() * q.scale.T.repeat_interleave(64 // groups, 1)
    wanted = activation @ weight.T + linear.bias.double()
    got = linear(q)
    assert got.dtype == dtype and not torch.equal(got, linear(x))
    torch.testing.assert_close(got.double(), wanted, rtol=2**-8, atol=1e-5)
    assert relative(linear(q), linear(x)) < 0.03

    gelu = F.gelu(wanted, approximate="tanh")
    torch.testing.assert_close(linear.gelu(q).double(), gelu, rtol=2**-6, atol=1e-4)
    made = linear.gelu(q, 3)
    assert isinstance(made, Quantized) and made.values.dtype == torch.int8 and made.scale.shape == (3, 7)
    assert relative(made.values * made.scale.T.repeat_interleave(32, 1), gelu) < 0.02
    other = linear.gelu(x, 3)
    assert isinstance(other, Quantized) and relative(other.values * other.scale.T.repeat_interleave(32, 1), gelu) < 0.03


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((got.double() - wanted.double()).norm() / wanted.double().norm()).item()


def test_the_int8_copy_follows_the_weight_in_place():
    linear = quantised(Linear(16, 64), "a", "b")
    assert linear.int8_weight.dtype == torch.int8 and linear.int8_scale.shape == (64,)
    places = linear.int8_weight.data_ptr(), linear.int8_scale.data_ptr()
    assert torch.equal(linear.int8_scale, linear.weight.abs().amax(1) / 127)
    linear.slots("a", "b")["b.weight"].write(torch.randn(32, 16))
    linear.quantize_weight()
    fresh = Linear(16, 64)
    fresh.load_state_dict(linear.state_dict())  # which has no copies in it
    fresh.quantize_weight()
    assert torch.equal(linear.int8_weight, fresh.int8_weight) and torch.equal(linear.int8_scale, fresh.int8_scale)
    assert (linear.int8_weight.data_ptr(), linear.int8_scale.data_ptr()) == places
    linear.drop_int8()
    assert linear.int8_weight is None and linear.int8_scale is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_in_8_bits_alone_is_the_copy_of_one_that_is_held(dtype):
    beside, alone = Linear(48, 96, dtype=dtype), Linear(48, 96, int8_only=True, dtype=dtype)
    alone.int8_weight.fill_(99), alone.int8_scale.fill_(float("nan")), alone.bias.fill_(float("nan"))
    places = alone.int8_weight.data_ptr(), alone.int8_scale.data_ptr()
    slots = alone.slots("q", "k", "v")
    assert {key: slot.shape for key, slot in slots.items()} == {k: s.shape for k, s in beside.slots(*"qkv").items()}
    for key, slot in beside.slots(*"qkv").items():
        written = torch.randn(slot.shape) * 3
        slot.write(written), slots[key].write(written)
    beside.quantize_weight()
    alone.quantize_weight()
    assert alone.weight is None and [name for name, _ in alone.named_parameters()] == ["bias"]
    assert torch.equal(alone.int8_weight, beside.int8_weight) and torch.equal(alone.int8_scale, beside.int8_scale)
    assert places == (alone.int8_weight.data_ptr(), alone.int8_scale.data_ptr())
    assert sum(slot.nbytes for slot in slots.values()) == 48 * 96 + 4 * 96 + dtype.itemsize * 96
    plain = (pack(alone.int8_weight).float() * alone.int8_scale[:, None]).to(dtype)
    assert torch.equal(torch.cat([slots[f"{key}.weight"].read() for key in "qkv"]), plain)

    x = torch.randn(5, 48, dtype=dtype)
    q = Quantized(*quantize(x, 1))
    assert torch.equal(alone(q), beside(q)) and all(map(torch.equal, alone.gelu(q, 3), beside.gelu(q, 3)))
    assert torch.equal(alone(x), F.linear(x, plain, alone.bias)) and relative(alone(x), beside(x)) < 0.02
    assert torch.equal(alone.gelu(x), F.gelu(F.linear(x, plain, alone.bias), approximate="tanh"))


@pytest.mark.parametrize("shape", [(32,), (32, 5), (64, 4), (4, 32)])
def test_a_slot_of_8_bits_takes_no_other_shape(shape):
    slot = Linear(4, 64, int8_only=True).slots("a", "b")["b.weight"]
    slot.write(torch.zeros(32, 4))
    with pytest.raises(ValueError, match=r"tensor must be \[32, 4\], got"):
        slot.write(torch.ones(shape))
    assert not slot.read().any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e39])
def test_the_sum_of_a_slot_of_8_bits_tells_what_was_stored(bad):
    slot = Linear(4, 32, int8_only=True, dtype=torch.bfloat16).slots("a")["a.weight"]
    slot.write(torch.full((32, 4), 1e30))
    assert slot.sum().isfinite()
    weight = torch.zeros(32, 4, dtype=torch.float64)
    weight[31, 3] = bad
    slot.write(weight)
    assert not slot.sum().isfinite()
