"""rotate_sinks against complex multiplication in float64."""

import pytest
import torch

from longlive_optimized.kernels.rotate_sinks import rotate_sinks as OP
from support.keys import turns

HEAD_DIM, TIME_PAIRS = 128, 22


def case(dtype, device, layers=2, sinks=3, tokens=5, heads=3, slots=8):
    torch.manual_seed(0)
    k_sink = torch.randn(layers, sinks, tokens, heads, HEAD_DIM).to(device, dtype)
    k_ring = torch.full((layers, slots, tokens, heads, HEAD_DIM), float("nan"), dtype=dtype, device=device)
    where = {"dtype": dtype, "device": device}
    return k_sink, turns(sinks, TIME_PAIRS, **where), turns(tokens, HEAD_DIM // 2 - TIME_PAIRS, **where), k_ring


def truth(k_sink, rope_time, rope_space):
    frames, tokens = len(rope_time), len(rope_space)
    tables = (rope_time[:, None].expand(-1, tokens, -1, -1), rope_space[None].expand(frames, -1, -1, -1))
    turn = torch.view_as_complex(torch.cat(tables, 2).double())[:, :, None]
    z = torch.view_as_complex(k_sink.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(z * turn).flatten(-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [{}, {"sinks": 1, "tokens": 1}, {"heads": 12, "tokens": 7}, {"layers": 1}], ids=str)
def test_rotates_the_sinks_and_touches_nothing_else(run, close, device, dtype, shape):
    k_sink, rope_time, rope_space, k_ring = case(dtype, device, **shape)
    run(k_sink, rope_time, rope_space, k_ring)
    sinks = k_sink.shape[1]
    close(k_ring[:, :sinks], truth(k_sink, rope_time, rope_space))
    assert k_ring[:, sinks:].isnan().all()


def test_no_sinks_write_nothing(run, device):
    k_sink, _, rope_space, k_ring = case(torch.float32, device)
    run(k_sink[:, :0].contiguous(), torch.zeros(0, TIME_PAIRS, 2, device=device), rope_space, k_ring)
    assert k_ring.isnan().all()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("k_sink", lambda t: t.half(), "k_sink must be bfloat16, float32 or float64"),
        ("k_sink", lambda t: t[0], r"k_sink must be \[any, any, any, any, any\]"),
        ("k_ring", lambda t: t[:, :2].contiguous(), "k_ring must have at least k_sink's 3 slots"),
        ("k_ring", lambda t: t.bfloat16(), r"k_ring must be (torch\.float32|Float)"),
        ("rope_time", lambda t: t[:2], "rope_time must be"),
        ("rope_space", lambda t: t[:, 1:].contiguous(), "rope_space must be"),
    ],
)
def test_bad_arguments(run, device, name, change, message):
    names = ("k_sink", "rope_time", "rope_space", "k_ring")
    args = dict(zip(names, case(torch.float32, device), strict=True))
    args[name] = change(args[name])
    with pytest.raises((ValueError, RuntimeError), match=message):
        run(*args.values())


def test_registered_properly(device):
    torch.library.opcheck(OP.torch_op, case(torch.float32, device))
