"""Random calls of causal_conv and conv_pixels, the simplest first, with outputs poisoned; and what they should give."""

import torch

from longlive_optimized.kernels.causal_conv import Kind, causal_conv, pack
from longlive_optimized.kernels.conv_pixels import conv_pixels, pack_pixels

NAMES = "x frames weight bias kind residual residual_frames raw raw_frames act act_frames gain".split()


def make(kind, size, ci, co, frames, residual=None, raw=True, act=False, shuffle=False, zeros=0, seed=0, device="cpu",
         in_place=False):  # fmt: skip
    """residual: None, "identity" or a number of channels; zeros: how many frames of history are of zeros."""
    g = torch.Generator().manual_seed(seed)
    height, width = size

    def normal(*shape):
        return torch.randn(*shape, generator=g).bfloat16().to(device)

    def places(count, spare):
        order = torch.randperm(count + spare, generator=g) if shuffle else torch.arange(count + spare)
        return order[:count].int().to(device), count + spare

    history = 2 if kind in (Kind.CAUSAL, Kind.TIME) else 0
    inputs, slots = places(frames + history, 1)
    inputs[:zeros] = -1 - inputs[:zeros]
    x = normal(slots, ci // 8, height, width, 8)
    shape = {0: (3, 3, 3), 1: (1, 1, 1), 2: (3, 1, 1), 3: (3, 3)}[kind]
    rows = co * (2 if kind == Kind.TIME else 1)
    fan = ci * torch.tensor(shape).prod()
    w = normal(rows, ci, *shape) * (fan**-0.5).item()
    a = {"x": x, "frames": inputs, "kind": int(kind), "bias": normal(rows).float()}
    extra = None
    outputs = frames * (2 if kind == Kind.TIME else 1)
    scale = 2 if kind == Kind.UP else 1
    shape = co // 8, scale * height, scale * width, 8
    if residual:
        cr = co if residual == "identity" else residual
        extra = torch.eye(co) if residual == "identity" else normal(co, cr).cpu() * cr**-0.5
        a["residual_frames"], slots = places(frames, 1)
        a["residual"] = normal(slots, cr // 8, height, width, 8)
        extra = extra.bfloat16().to(device)
    a["weight"] = pack(kind, w, extra)
    if raw:
        if in_place:
            a["raw"], a["raw_frames"] = a["residual"], a["residual_frames"]
        else:
            a["raw_frames"], slots = places(outputs, 2)
            a["raw"] = torch.full((slots, *shape), torch.nan, dtype=torch.bfloat16, device=device)
    if act:
        a["act_frames"], slots = places(outputs, 2)
        a["act"] = torch.full((slots, *shape), torch.nan, dtype=torch.bfloat16, device=device)
        a["gain"] = 1 + 0.2 * normal(co).float()
    return {name: a.get(name) for name in NAMES}


def double(args):
    """The same call in float64, its outputs apart."""
    return {k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in args.items()}


def check(run, args):
    """Largest error of raw and of act, as parts of what one rounding allows; what is not an output stays NaN."""
    truth = double(args)
    if args["raw"] is not None and args["raw"] is args["residual"]:
        truth["raw"] = truth["residual"].clone()
    causal_conv.reference(**truth)
    outputs = {n: args[n] for n in ("raw", "act") if args[n] is not None}
    before = {n: t.clone() for n, t in outputs.items()}
    run(**args)
    worst = {}
    for name, t in outputs.items():
        rest = torch.ones(len(t), dtype=torch.bool)
        rest[args[f"{name}_frames"].long().cpu()] = False
        assert torch.equal(t[rest.to(t.device)].view(torch.int16), before[name][rest.to(t.device)].view(torch.int16)), (
            f"{name}: written beside the frames"
        )
        got, want = t[~rest.to(t.device)].double(), truth[name][~rest.to(t.device)]
        # One rounding of the value; the rounding of y that the norm reads, and float32 sums that cancel.
        allowed = 2**-8 * want.abs() * (1 if name == "raw" else 2) + (1e-4 if name == "raw" else 8e-3)
        error = (got - want).abs() / allowed
        worst[name] = error.nan_to_num(torch.inf).max().item()
    return worst


def make_pixels(size, ci, frames, as_bytes, seed=0, device="cpu"):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(frames + 3, ci // 8, *size, 8, generator=g).bfloat16().to(device)
    w = (torch.randn(3, ci, 3, 3, 3, generator=g) * (27 * ci) ** -0.5 * 0.7).bfloat16().to(device)
    weight, bias = pack_pixels(w, torch.randn(3, generator=g).bfloat16().mul(0.1).to(device))
    places = torch.randperm(frames + 3, generator=g)[: frames + 2].int().to(device)
    dtype = torch.uint8 if as_bytes else torch.bfloat16
    return x, places, weight, bias, torch.full((frames, *size, 3), 77, dtype=dtype, device=device)


def check_pixels(run, args):
    *rest, out = args
    truth = torch.empty(out.shape, dtype=out.dtype if out.dtype == torch.uint8 else torch.float64, device=out.device)
    conv_pixels.reference(*(t.double() if t.is_floating_point() else t for t in rest), truth)
    run(*args)
    limit = 1.01 if out.dtype == torch.uint8 else 2**-8 * truth.abs() + 1e-4
    return {"pixels": ((out.double() - truth.double()).abs() / limit).max().item()}


def staged(sizes=((16, 16), (8, 24), (20, 27), (33, 40))):
    """(stage, name, arguments) from one tap and one frame to everything."""
    a, b, d, e = sizes
    yield 1, "one tap, one chunk", {"kind": Kind.POINT, "size": a, "ci": 32, "co": 192, "frames": 1}
    yield 1, "one tap, ragged", {"kind": Kind.POINT, "size": d, "ci": 96, "co": 384, "frames": 2}
    yield (
        2,
        "residual of one tap",
        {"kind": Kind.POINT, "size": b, "ci": 32, "co": 192, "frames": 2, "residual": "identity"},
    )
    yield 3, "3x3x3, 96", {"kind": Kind.CAUSAL, "size": d, "ci": 32, "co": 96, "frames": 2}
    yield 3, "3x3x3, 192", {"kind": Kind.CAUSAL, "size": d, "ci": 32, "co": 192, "frames": 2}
    yield 3, "3x3x3, 16 in, 384 out", {"kind": Kind.CAUSAL, "size": b, "ci": 16, "co": 384, "frames": 3, "zeros": 2}
    yield (
        4,
        "places, history",
        {"kind": Kind.CAUSAL, "size": e, "ci": 96, "co": 96, "frames": 3, "shuffle": True, "zeros": 1},
    )
    yield 5, "act, 96", {"kind": Kind.CAUSAL, "size": d, "ci": 96, "co": 96, "frames": 2, "act": True, "raw": False}
    yield (
        5,
        "act, 192",
        {"kind": Kind.CAUSAL, "size": d, "ci": 64, "co": 192, "frames": 1, "act": True, "shuffle": True},
    )
    yield (
        6,
        "act, 384 in two CTAs",
        {"kind": Kind.CAUSAL, "size": d, "ci": 32, "co": 384, "frames": 3, "act": True, "shuffle": True},
    )
    yield 7, "residual, in place", {"kind": Kind.CAUSAL, "size": d, "ci": 96, "co": 96, "frames": 2, "act": True, "residual": "identity", "in_place": True, "shuffle": True}  # fmt: skip
    yield 7, "shortcut", {"kind": Kind.CAUSAL, "size": b, "ci": 64, "co": 384, "frames": 2, "act": True, "residual": 192, "shuffle": True}  # fmt: skip
    yield 8, "time", {"kind": Kind.TIME, "size": d, "ci": 64, "co": 384, "frames": 2, "shuffle": True, "zeros": 2}
    yield 8, "up, 96", {"kind": Kind.UP, "size": d, "ci": 64, "co": 96, "frames": 2, "act": True, "shuffle": True}
    yield 8, "up, 192", {"kind": Kind.UP, "size": d, "ci": 64, "co": 192, "frames": 1, "act": True}
