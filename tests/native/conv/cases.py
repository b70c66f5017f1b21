"""Random calls of causal_conv, causal_conv_int8 and conv_pixels, their outputs poisoned, and what they should give."""

from collections.abc import Callable

import torch
from torch import Tensor

from longlive_optimized.kernels.causal_conv import GROUP, GROUP_INT8, Kind, causal_conv, pack
from longlive_optimized.kernels.causal_conv_int8 import pack_int8
from longlive_optimized.kernels.conv_pixels import conv_pixels, pack_pixels

TAPS = {Kind.CAUSAL: (3, 3, 3), Kind.POINT: (1, 1, 1), Kind.TIME: (3, 1, 1), Kind.UP: (3, 3)}

# Arguments of ``make``; of CAUSAL in 192 channels, the subtiles of a warpgroup; under how many schedules, if not one.
CASES = {
    "one tap, one chunk": {"kind": Kind.POINT, "size": (16, 16), "ci": 32, "co": 192, "frames": 1},
    "one tap, ragged": {"kind": Kind.POINT, "size": (20, 27), "ci": 96, "co": 384, "frames": 2},
    "one tap and a residual": {"kind": Kind.POINT, "size": (8, 24), "ci": 32, "co": 192, "frames": 2, "residual": 192},
    "96": {"kind": Kind.CAUSAL, "size": (20, 27), "ci": 32, "co": 96, "frames": 2},
    "192": {"kind": Kind.CAUSAL, "size": (20, 27), "ci": 32, "co": 192, "frames": 2, "subtiles": 2},
    "16 to 384": {"kind": Kind.CAUSAL, "size": (8, 24), "ci": 16, "co": 384, "frames": 3, "zeros": 2, "subtiles": 1},
    "many tiles": {"kind": Kind.CAUSAL, "size": (33, 40), "ci": 32, "co": 96, "frames": 2, "zeros": 1},
    "96, act": {"kind": Kind.CAUSAL, "size": (20, 27), "ci": 96, "co": 96, "frames": 2, "raw": False, "act": True},
    "192, act": {"kind": Kind.CAUSAL, "size": (20, 27), "ci": 64, "co": 192, "frames": 1, "act": True, "subtiles": 1},
    "384, act": {"kind": Kind.CAUSAL, "size": (20, 27), "ci": 32, "co": 384, "frames": 2, "act": True, "subtiles": 2},
    "384, act, low": {
        "kind": Kind.CAUSAL, "size": (8, 32), "ci": 16, "co": 384, "frames": 3, "act": True, "subtiles": 1,
        "schedules": 16,
    },
    "residual in place": {
        "kind": Kind.CAUSAL, "size": (20, 27), "ci": 96, "co": 96, "frames": 2, "act": True, "residual": 96,
        "in_place": True,
    },
    "shortcut": {
        "kind": Kind.CAUSAL, "size": (8, 24), "ci": 64, "co": 384, "frames": 2, "act": True, "residual": 200,
        "subtiles": 1,
    },
    "time": {"kind": Kind.TIME, "size": (20, 27), "ci": 64, "co": 384, "frames": 2, "zeros": 2},
    "up, 96": {"kind": Kind.UP, "size": (20, 27), "ci": 64, "co": 96, "frames": 2, "act": True},
    "up, 192": {"kind": Kind.UP, "size": (20, 27), "ci": 64, "co": 192, "frames": 1, "act": True},
    "up, 96, act in int8": {"kind": Kind.UP, "size": (20, 27), "ci": 32, "co": 96, "frames": 1, "act_scale": 0.02},
    "16 to 384, act in int8": {
        "kind": Kind.CAUSAL, "size": (8, 24), "ci": 16, "co": 384, "frames": 2, "act_scale": 1 / 32, "subtiles": 1,
    },
}  # fmt: skip

# Of ``make_int8``.
INT8_CASES = {
    "96": {"size": (20, 27), "ci": 32, "co": 96, "frames": 2},
    "16 to 192": {"size": (20, 27), "ci": 16, "co": 192, "frames": 2, "zeros": 1, "subtiles": 2},
    "384, low": {"size": (8, 24), "ci": 32, "co": 384, "frames": 3, "zeros": 2, "subtiles": 1},
    "many tiles": {"size": (33, 40), "ci": 32, "co": 96, "frames": 2, "zeros": 1, "act_scale": 1 / 32, "raw": False},
    "96, act": {"size": (20, 27), "ci": 96, "co": 96, "frames": 2, "raw": False, "act": True},
    "96, residual in place": {
        "size": (20, 27), "ci": 96, "co": 96, "frames": 2, "act_scale": 1 / 32, "residual": True, "in_place": True,
    },
    "192, act in int8": {"size": (20, 27), "ci": 64, "co": 192, "frames": 1, "act_scale": 1 / 64, "subtiles": 1},
    "384, act": {"size": (20, 27), "ci": 32, "co": 384, "frames": 2, "act": True, "residual": True, "subtiles": 2},
    "384, act in int8, low": {
        "size": (8, 32), "ci": 64, "co": 384, "frames": 2, "act_scale": 1 / 32, "residual": True, "subtiles": 1,
        "schedules": 8,
    },
    "saturated": {"size": (9, 17), "ci": 32, "co": 96, "frames": 1, "raw": False, "act_scale": 1 / 127},
}  # fmt: skip


def make(
    kind, size, ci, co, frames, residual=0, raw=True, act=False, zeros=0, seed=0, in_place=False, act_scale=0.0
) -> dict:
    """Arguments of causal_conv, frames at random indices; the first ``zeros`` frames of history are none.

    ``residual`` counts channels: with as many as the result, it is added as it is. act is int8 with an ``act_scale``.
    """
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).bfloat16()

    def scattered(count: int, spare: int) -> Tensor:
        return torch.randperm(count + spare, generator=g)[:count].int()

    history, doubled = 2 * (kind in (Kind.CAUSAL, Kind.TIME)), 1 + (kind == Kind.TIME)
    inputs = scattered(frames + history, 1)
    x = normal(len(inputs) + 1, ci // GROUP, *size, GROUP)
    inputs[:zeros] = -1 - inputs[:zeros]
    fan = ci * torch.tensor(TAPS[kind]).prod().item()
    weight = normal(doubled * co, ci, *TAPS[kind]) * fan**-0.5
    args = {"x": x, "frames": inputs, "kind": int(kind), "bias": normal(doubled * co).float()}
    point = None
    if residual:
        point = torch.eye(co).bfloat16() if residual == co else normal(co, residual) * residual**-0.5
        args["residual_frames"] = scattered(frames, 1)
        args["residual"] = normal(frames + 1, residual // GROUP, *size, GROUP)
    args["weight"] = pack(kind, weight, point)
    if act or act_scale:
        args["gain"] = 1 + 0.2 * normal(co).float()
    scale = 2 if kind == Kind.UP else 1
    size = scale * size[0], scale * size[1]
    if raw:
        args["raw_frames"] = scattered(doubled * frames, 2)
        args["raw"] = torch.full((doubled * frames + 2, co // GROUP, *size, GROUP), torch.nan, dtype=torch.bfloat16)
    if act_scale:
        args |= {"act_scale": act_scale, "saturated": torch.tensor([5])}
        args["act_frames"] = scattered(doubled * frames, 2)
        args["act"] = torch.full((doubled * frames + 2, co // GROUP_INT8, *size, GROUP_INT8), -128, dtype=torch.int8)
    elif act:
        args["act_frames"] = scattered(doubled * frames, 2)
        args["act"] = torch.full((doubled * frames + 2, co // GROUP, *size, GROUP), torch.nan, dtype=torch.bfloat16)
    if in_place:
        args["raw"], args["raw_frames"] = args["residual"], args["residual_frames"]
    return args


def make_int8(size, ci, co, residual=False, seed=0, **rest) -> dict:
    """Arguments of causal_conv_int8, as ``make``'s."""
    args = make(Kind.CAUSAL, size, ci, co, residual=co if residual else 0, seed=seed, **rest)
    g = torch.Generator().manual_seed(seed)
    args["weight"], scale = pack_int8(torch.randn(co, ci, 3, 3, 3, generator=g) * (27 * ci) ** -0.5)
    shape = len(args["x"]), ci // GROUP_INT8, *size, GROUP_INT8
    args["x"] = torch.randint(-127, 128, shape, dtype=torch.int8, generator=g)
    args["scale"] = scale / 73
    del args["kind"]
    return args


def double(t):
    """In float64, a tensor of floats apart."""
    return t.double() if isinstance(t, Tensor) and t.is_floating_point() else t


def check(run: Callable, args: dict, operator=causal_conv) -> dict[str, float]:
    """Largest error of raw and of act, as parts of what one rounding allows; frames that are not outputs must stay.

    act in int8 may be one step off, near the middle between two; counts of what is too large likewise.
    """
    truth = {name: double(t) for name, t in args.items()}
    outputs = {name: args[name] for name in ("raw", "act") if name in args}
    before = {name: t.clone() for name, t in outputs.items()}
    in_int8 = "saturated" in args
    if in_int8:
        truth["act"] = torch.empty_like(args["act"])
        slots, groups, *size, _ = args["act"].shape
        exact = torch.empty(slots, 2 * groups, *size, GROUP, dtype=torch.float64)
        operator.reference(**{**truth, "act": exact, "saturated": None})
        truth["saturated"] = truth["saturated"].clone()
    operator.reference(**truth)
    run(**args)
    worst = {}
    for name, t in outputs.items():
        indices = args[f"{name}_frames"].long()
        others = torch.ones(len(t), dtype=torch.bool).index_fill_(0, indices, False)
        stayed = torch.equal(t[others].view(torch.uint8), before[name][others].view(torch.uint8))
        if name == "act" and in_int8:
            got, want = t[indices].movedim(1, 3), exact[indices].movedim(1, 3) / args["act_scale"]
            got, want = got.flatten(3).double(), want.flatten(3)
            error = (got - want.clamp(max=127)).abs() / (0.53 + want.abs() / 128)
            found, counted = (each["saturated"].item() for each in (args, truth))
            worst["counted"] = abs(found - counted) / (1 + 0.02 * counted)
        else:
            got, want = t[indices].double(), truth[name][indices]
            # One rounding of the value; the rounding of y that the norm reads, and float32 sums that cancel.
            allowed = 2**-8 * want.abs() * (1 if name == "raw" else 2) + (1e-4 if name == "raw" else 8e-3)
            error = (got - want).abs() / allowed
        worst[name] = error.nan_to_num(torch.inf).max().item() if stayed else torch.inf
    return worst


def make_pixels(as_bytes: bool, seed: int = 0) -> tuple:
    """Arguments of conv_pixels."""
    g = torch.Generator().manual_seed(seed)
    size, channels, frames = (20, 27), 96, 2
    x = torch.randn(frames + 3, channels // GROUP, *size, GROUP, generator=g).bfloat16()
    weight = torch.randn(3, channels, 3, 3, 3, generator=g) * 0.7 * (27 * channels) ** -0.5
    packed = pack_pixels(weight.bfloat16(), torch.randn(3, generator=g).mul(0.1).bfloat16())
    indices = torch.randperm(frames + 3, generator=g)[: frames + 2].int()
    return x, indices, *packed, torch.full((frames, *size, 3), 77, dtype=torch.uint8 if as_bytes else torch.bfloat16)


def check_pixels(run: Callable, args: tuple) -> dict[str, float]:
    """Largest error as a part of what one rounding allows."""
    *rest, out = args
    truth = torch.empty_like(double(out))
    conv_pixels.reference(*map(double, rest), truth)
    run(*args)
    allowed = 1.01 if out.dtype == torch.uint8 else 2**-8 * truth.abs() + 1e-4
    error = (out.double() - truth.double()).abs() / allowed
    return {"pixels": error.nan_to_num(torch.inf).max().item()}
