"""norm_silu against norm and SiLU in float64 on plain [T, C, H, W]."""

import pytest
import torch
import torch.nn.functional as F

from longlive_optimized.kernels.bench import norm_silu as bench
from longlive_optimized.kernels.causal_conv import from_groups, to_groups
from longlive_optimized.kernels.norm_silu import norm_silu

OP = norm_silu
REAL = pytest.param(384, (60, 104), 3, marks=pytest.mark.gpu)
SIZES = [(96, (5, 7), 2), (16, (1, 1), 1), (48, (3, 11), 3), (192, (9, 17), 1), REAL]


def inputs(channels, size, frames, dtype, device, in_int8=False, act_scale=1 / 32):
    """Arguments; frames of poison lie between those that are written."""
    g = torch.Generator().manual_seed(channels)
    x = torch.randn(frames, channels, *size, generator=g, dtype=torch.float64) * 3
    gain = 1 + 0.3 * torch.randn(channels, generator=g, dtype=torch.float64)
    at = torch.randperm(frames + 2, generator=g)[:frames].int()
    grouped = to_groups(x.movedim(1, -1)).contiguous().to(dtype)
    group = 16 if in_int8 else 8
    shape = frames + 2, channels // group, *size, group
    act = torch.full(shape, -128 if in_int8 else torch.nan, dtype=torch.int8 if in_int8 else dtype)
    rest = (act_scale, torch.tensor([3])) if in_int8 else ()
    args = grouped, gain.to(torch.promote_types(dtype, torch.float32)), act, at, *rest
    return [t.to(device) if isinstance(t, torch.Tensor) else t for t in args]


def truth(x, gain):
    y = from_groups(x).double().cpu()
    normed = y / y.norm(dim=-1, keepdim=True).clamp(min=1e-12) * len(gain) ** 0.5
    return F.silu(normed * gain.double().cpu())


def written(args):
    """[T, H, W, C]; asserts that no other frame was touched."""
    act, at = args[2], args[3].long()
    others = act[torch.ones(len(act), dtype=torch.bool, device=act.device).index_fill_(0, at, False)]
    assert (others == -128).all() if act.dtype == torch.int8 else others.isnan().all()
    return from_groups(act[at])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("channels", "size", "frames"), SIZES)
def test_matches_float64(run, close, device, channels, size, frames, dtype):
    args = inputs(channels, size, frames, dtype, device)
    run(*args)
    close(written(args).cpu(), truth(*args[:2]))


def test_reference_in_float64(close):
    args = inputs(48, (4, 5), 2, torch.float64, "cpu")
    OP.reference(*args)
    close(written(args), truth(*args[:2]))


@pytest.mark.parametrize("act_scale", [1 / 32, 1 / 60])
@pytest.mark.parametrize(("channels", "size", "frames"), SIZES)
def test_int8(run, device, channels, size, frames, act_scale):
    args = inputs(channels, size, frames, torch.bfloat16, device, True, act_scale)
    run(*args)
    steps = truth(*args[:2]) / act_scale
    assert ((written(args).double().cpu() - steps.clamp(max=127)).abs() <= 0.5 + 1e-4).all()
    assert abs(args[5].item() - 3 - (steps >= 127.5).sum().item()) <= 1


def test_zeros_stay_zeros(run, device):
    args = inputs(32, (3, 4), 1, torch.float32, device)
    args[0].zero_()
    run(*args)
    assert not written(args).any()


def test_what_is_not_finite_counts_as_saturated(run, device):
    args = inputs(32, (3, 4), 1, torch.bfloat16, device, True, 1 / 8)
    args[0][0, 1, 2, 3, 4] = torch.nan
    run(*args)
    assert args[5].item() == 3 + 32


BAD = {
    "x": {"x": torch.zeros(2, 12, 4, 5, 4)},
    "x dtype": {"x": torch.zeros(2, 12, 4, 5, 8, dtype=torch.float16)},
    "gain": {"gain": torch.zeros(95)},
    "act": {"act": torch.zeros(4, 12, 4, 6, 8)},
    "act_frames": {"act_frames": torch.zeros(2, dtype=torch.int64)},
}
BAD8 = {
    "act": {"act": torch.zeros(4, 12, 4, 5, 8, dtype=torch.int8)},
    "act_scale": {"act_scale": 0.001},
    "saturated": {"saturated": None},
}
NAMES = "x gain act act_frames act_scale saturated".split()


@pytest.mark.parametrize(("in_int8", "name"), [*((False, name) for name in BAD), *((True, name) for name in BAD8)])
def test_bad_input_is_named(backend, device, in_int8, name):
    args = dict(zip(NAMES, inputs(96, (4, 5), 2, torch.float32, device, in_int8), strict=False))
    changes = (BAD8 if in_int8 else BAD)[name]
    changes = {key: t.to(device) if isinstance(t, torch.Tensor) else t for key, t in changes.items()}
    with pytest.raises(ValueError, match=rf"\b{name.split()[0]} must\b"):
        OP.impls[backend][0](**(args | changes))


def test_counted_bytes_are_those_of_the_tensors():
    for in_int8 in (False, True):
        case = bench.case(2, 96, (4, 5), torch.bfloat16, in_int8)
        x, _, act, *_ = case.make("cpu")
        assert case.bytes == x.nbytes + act.nbytes


def test_the_baseline_computes_the_operator():
    args = inputs(96, (4, 5), 2, torch.float32, "cpu")
    OP(*args)
    torch.testing.assert_close(from_groups(bench.published(*args)), written(args), rtol=1e-4, atol=1e-5)
