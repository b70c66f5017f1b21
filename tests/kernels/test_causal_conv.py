"""causal_conv and conv_pixels against torch's convolutions, norm and SiLU in float64 on plain [T, C, H, W]."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from longlive_optimized.kernels.bench import causal_conv as bench
from longlive_optimized.kernels.causal_conv import Kind, causal_conv, from_groups, pack, to_groups
from longlive_optimized.kernels.conv_pixels import conv_pixels, pack_pixels
from longlive_optimized.kernels.registry import backend
from support.graphs import captured

OP = causal_conv
WEIGHT = {Kind.CAUSAL: (3, 3, 3), Kind.POINT: (1, 1, 1), Kind.TIME: (3, 1, 1), Kind.UP: (3, 3)}
NAMES = "x frames weight bias kind residual residual_frames raw raw_frames act act_frames gain".split()


def truncated(backend: str, device: str) -> bool:
    """Whether results in bfloat16 are cut off, as by Triton's interpreter, where a GPU rounds them."""
    return (backend, device) == ("triton", "cpu")


def history(kind: Kind) -> int:
    return 2 if kind in (Kind.CAUSAL, Kind.TIME) else 0


class Network:
    """Weights of one convolution and what stands beside it, and frames [T, C, H, W] to put through it."""

    def __init__(self, kind, ci, co, size, frames, residual=None, seed=0):
        torch.manual_seed(seed)
        self.kind, self.co, self.size, self.frames = kind, co, size, frames
        rows = co * (2 if kind == Kind.TIME else 1)
        self.weight, self.bias = torch.randn(rows, ci, *WEIGHT[kind]) / ci**0.5 / 3, torch.randn(rows)
        self.gain = 1 + 0.3 * torch.randn(co)
        self.x = torch.randn(history(kind) + frames, ci, *size)
        identity = residual == "identity"
        self.point = (
            torch.eye(co) if identity else None if residual is None else torch.randn(co, residual) / residual**0.5
        )
        self.extra = None if residual is None else torch.randn(frames, self.point.shape[1], *size)

    def rounded(self, dtype):
        """All that the operator sees, as it sees it: bias and gain stay float32."""
        for name in ("weight", "x", "point", "extra"):
            t = getattr(self, name)
            setattr(self, name, None if t is None else t.to(dtype))
        wide = torch.promote_types(dtype, torch.float32)
        self.bias, self.gain = self.bias.to(wide), self.gain.to(wide)
        return self

    def truth(self, round_to=None):
        """y and SiLU(norm(y)), [T', Co, H', W'] in float64; the norm reads y as rounded."""
        w, x, bias = self.weight.double(), self.x.double(), self.bias.double()
        if self.kind == Kind.UP:
            if round_to is not None:
                w = folded_and_back(w, round_to)
            y = up(x, w) if w.dim() == 6 else F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), w, padding=1)
            y = y + bias.view(-1, 1, 1)
        else:
            side = w.shape[-1] // 2
            y = F.conv3d(x.transpose(0, 1)[None], w, bias, padding=(0, side, side))[0].transpose(0, 1)
        if self.kind == Kind.TIME:
            y = torch.stack((y[:, : self.co], y[:, self.co :]), 1).flatten(0, 1)
        if self.extra is not None:
            y = y + torch.einsum("oc,tchw->tohw", self.point.double(), self.extra.double())
        return y, self.act(y if round_to is None else y.to(round_to).double())

    def act(self, y):
        """SiLU(norm(y))."""
        norm = y / y.norm(dim=1, keepdim=True).clamp(min=1e-12) * self.co**0.5
        return F.silu(norm * self.gain.double().view(-1, 1, 1))


def folded_and_back(w, dtype):
    """[2, 2, Co, Ci, 2, 2]: the kernels of the four pixels, their sums rounded."""
    w = w.float()
    rows = torch.stack(
        (torch.stack((w[:, :, 0], w[:, :, 1] + w[:, :, 2]), 2), torch.stack((w[:, :, 0] + w[:, :, 1], w[:, :, 2]), 2))
    )
    both = (
        [torch.stack((r[..., 0], r[..., 1] + r[..., 2]), -1) for r in rows],
        [torch.stack((r[..., 0] + r[..., 1], r[..., 2]), -1) for r in rows],
    )
    return torch.stack([torch.stack((both[0][i], both[1][i])) for i in range(2)]).to(dtype).double()


def up(x, kernels):
    t, _, h, w = x.shape
    y = x.new_zeros(t, kernels.shape[2], 2 * h, 2 * w)
    for i in range(2):
        for j in range(2):
            y[:, :, i::2, j::2] = F.conv2d(F.pad(x, (1 - j, j, 1 - i, i)), kernels[i, j])
    return y


def scattered(x, indices, slots):
    """Frames [T, C, H, W] in groups, at these indices among NaN."""
    t = torch.full((slots, x.shape[1] // 8, *x.shape[2:], 8), torch.nan, dtype=x.dtype)
    t[indices.long()] = to_groups(x.permute(0, 2, 3, 1))
    return t


def arguments(net, device, raw=True, act=True, shuffled=True, zeros=0):
    """Of the operator; every tensor has frames of NaN that are not meant, `zeros` frames of history are none."""
    g = torch.Generator().manual_seed(1)

    def indices(count):
        order = torch.randperm(count + 2, generator=g) if shuffled else torch.arange(count + 2)
        return order[:count].int()

    frames, dtype = indices(len(net.x)), net.x.dtype
    outputs = net.frames * (2 if net.kind == Kind.TIME else 1)
    scale = 2 if net.kind == Kind.UP else 1
    empty = torch.full((outputs + 2, net.co // 8, *(scale * s for s in net.size), 8), torch.nan, dtype=dtype)
    x = scattered(net.x, frames, len(frames) + 2)
    if zeros:
        net.x[:zeros] = 0
        frames[:zeros] = -1 - frames[:zeros]
    a = {
        "x": x,
        "frames": frames,
        "weight": pack(net.kind, net.weight, net.point),
        "bias": net.bias,
        "kind": int(net.kind),
    }
    if net.extra is not None:
        a["residual_frames"] = indices(net.frames)
        a["residual"] = scattered(net.extra, a["residual_frames"], net.frames + 2)
    for name in ["raw"] * raw + ["act"] * act:
        a[name], a[f"{name}_frames"] = empty.clone(), indices(outputs)
    if act:
        a["gain"] = net.gain
    on = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in a.items()}
    return {name: on.get(name) for name in NAMES}


def results(args):
    """The frames that were written, as [T', Co, H', W']; asserts that no other frame was touched."""
    found = {}
    for name in ("raw", "act"):
        if args[name] is not None:
            t, indices = args[name], args[f"{name}_frames"].long()
            others = torch.ones(len(t), dtype=torch.bool, device=t.device).index_fill_(0, indices, False)
            assert t[others].isnan().all()
            found[name] = from_groups(t[indices]).permute(0, 3, 1, 2).double().cpu()
    return found


def compare(got, net, dtype, cut=False):
    """``cut``: results are truncated."""
    y, act = net.truth(None if dtype == torch.float64 else dtype)
    # Precision: y is rounded once, act once more. Sums in float32 of 10,000 products are off by up to 3e-5.
    tight = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 2**-7 if cut else 2**-8}[dtype]
    least = max(tight / 10, 1e-11, 3.5e-9 * net.weight[0].numel() if dtype == torch.float32 else 0)
    if "raw" in got:
        torch.testing.assert_close(got["raw"], y, rtol=tight, atol=least)
        act = net.act(got["raw"])  # of what was stored: y may have been rounded the other way, just at its middle
    if "act" in got:
        torch.testing.assert_close(got["act"], act, rtol=2 * tight, atol=2 * tight)


CASES = {
    "causal-96": ((Kind.CAUSAL, 40, 96, (5, 7), 2), {}),
    "causal-192-in-3-tiles": ((Kind.CAUSAL, 16, 192, (17, 33), 1), {}),
    "causal-384": ((Kind.CAUSAL, 16, 384, (3, 4), 3), {}),
    "causal-40": ((Kind.CAUSAL, 24, 40, (4, 5), 2, "identity"), {}),
    "one-pixel": ((Kind.CAUSAL, 8, 96, (1, 1), 1), {}),
    "identity": ((Kind.CAUSAL, 96, 96, (6, 9), 2, "identity"), {}),
    "shortcut": ((Kind.CAUSAL, 32, 384, (4, 5), 2, 200), {}),
    "no-act": ((Kind.CAUSAL, 32, 96, (4, 5), 2), {"act": False}),
    "no-raw": ((Kind.CAUSAL, 32, 96, (4, 5), 2), {"raw": False}),
    "no-history": ((Kind.CAUSAL, 32, 96, (4, 5), 3), {"zeros": 2}),
    "half-a-history": ((Kind.CAUSAL, 32, 192, (4, 5), 1), {"zeros": 1}),
    "point": ((Kind.POINT, 24, 192, (5, 6), 2), {"act": False}),
    "point-residual": ((Kind.POINT, 24, 384, (5, 6), 2, 40), {"act": False}),
    "time": ((Kind.TIME, 32, 192, (5, 6), 3), {"act": False}),
    "time-384-no-history": ((Kind.TIME, 24, 384, (5, 6), 1), {"act": False, "zeros": 2}),
    "up-96": ((Kind.UP, 32, 96, (5, 7), 2), {}),
    "up-192": ((Kind.UP, 40, 192, (3, 17), 1), {}),
}
# What the CUDA kernel does not take: parts whose norm spans several programs, and channels that fill no block.
ODD = {
    "causal-8": ((Kind.CAUSAL, 8, 8, (3, 5), 2, "identity"), {}),
    "point-320-act": ((Kind.POINT, 16, 320, (5, 6), 2), {"raw": False}),
    "point-200": ((Kind.POINT, 72, 200, (5, 6), 1, 8), {}),
    "time-40-act": ((Kind.TIME, 16, 40, (4, 5), 2), {}),
    "time-384-act": ((Kind.TIME, 8, 384, (3, 4), 2), {"raw": False, "zeros": 1}),
    "up-384-act": ((Kind.UP, 8, 384, (3, 4), 2), {}),
    "up-24-of-one-pixel": ((Kind.UP, 24, 24, (1, 1), 2), {"raw": False}),
    "tall": ((Kind.CAUSAL, 8, 16, (150, 1), 1), {}),
    "wide": ((Kind.CAUSAL, 8, 16, (1, 150), 1), {}),
    "up-tall": ((Kind.UP, 8, 16, (131, 1), 1), {}),
}
REAL = {
    "level-0": ((Kind.CAUSAL, 384, 384, (60, 104), 3, "identity"), {}),
    "level-1": ((Kind.CAUSAL, 192, 384, (40, 72), 2), {}),
    "odd": ((Kind.CAUSAL, 192, 192, (67, 93), 2, "identity"), {}),
    "level-3": ((Kind.CAUSAL, 96, 96, (120, 104), 4, "identity"), {}),
    "up": ((Kind.UP, 192, 96, (60, 52), 3), {}),
}
# In float32 Triton's tiles are small, and its interpreter takes seconds. What differs in these cases, outputs, history
# and more channels or pixels, is of no dtype: bfloat16 finds it.
SLOW = ("causal-192-in-3-tiles", "causal-384", "identity", "shortcut", "no-act", "no-raw", "no-history")
ALL = [pytest.param(c, id=n) for n, c in (CASES | ODD).items()]
ALL += [pytest.param(c, id=n, marks=pytest.mark.gpu) for n, c in REAL.items()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ALL)
def test_matches_float64(run, backend, device, case, dtype):
    if truncated(backend, device) and dtype == torch.float32 and case in map(CASES.get, SLOW):
        pytest.skip("an interpreter is slow")
    shape, options = case
    net = Network(*shape).rounded(dtype)
    args = arguments(net, device, **options)
    run(*args.values())
    compare(results(args), net, dtype, truncated(backend, device))


@pytest.mark.parametrize("case", [pytest.param(c, id=n) for n, c in (CASES | ODD).items()])
def test_reference_in_float64(case):
    shape, options = case
    net = Network(*shape).rounded(torch.float64)
    args = arguments(net, "cpu", **options)
    causal_conv.reference(*args.values())
    compare(results(args), net, torch.float64)


@pytest.mark.parametrize("shared", [99, 163, 227])
@pytest.mark.parametrize("channels", [(64, 96, 32), (128, 192, 64), (32, 192, 128), (64, 24, None)], ids=str)
def test_tiles_of_every_chip(monkeypatch, backend, device, channels, shared):
    """Triton's steps of 32 and of 64 channels, in the products and in the residual's."""
    if backend != "triton":
        pytest.skip("has tiles of its own")
    monkeypatch.setattr("longlive_optimized.kernels.causal_conv_triton.shared_memory", lambda device: shared * 1024)
    if device == "cuda" and shared > torch.cuda.get_device_properties(0).shared_memory_per_block_optin // 1024:
        pytest.skip("more than this GPU has")
    ci, co, residual = channels
    net = Network(Kind.POINT, ci, co, (5, 27), 1, residual).rounded(torch.bfloat16)
    args = arguments(net, device)
    causal_conv.impls["triton"][0](*args.values())
    compare(results(args), net, torch.bfloat16, truncated(backend, device))


def test_folding_an_enlarged_frame_changes_roundings_only():
    """Against the convolution of the enlarged frame, whose taps are not rounded again."""
    net = Network(Kind.UP, 64, 96, (6, 8), 2).rounded(torch.bfloat16)
    args = arguments(net, "cpu", act=False)
    causal_conv.reference(*args.values())
    y, _ = net.truth()
    error = (results(args)["raw"] - y).norm() / y.norm()
    assert 1e-4 < error < 2**-8  # there, and no more than one rounding of the weights and one of the result


@pytest.mark.parametrize(("channels", "act"), [(96, True), (384, True), (384, False)])
def test_adds_in_place(run, backend, device, channels, act):
    """The residual stream is advanced where it lies, also where 384 channels are computed in two parts."""
    # An interpreter is slow: there a point of 136 pixels, which are two tiles of it.
    kind, size = (Kind.POINT, (8, 17)) if truncated(backend, device) else (Kind.CAUSAL, (9, 18))
    net = Network(kind, channels, channels, size, 2, "identity").rounded(torch.bfloat16)
    apart, args = arguments(net, device, act=act), arguments(net, device, act=act)
    run(*apart.values())
    args["raw"], args["raw_frames"] = args["residual"], args["residual_frames"]
    run(*args.values())
    for name in ("raw", "act")[: 1 + act]:
        indices = (t[f"{name}_frames"].long() for t in (args, apart))
        got, want = (t[name][at] for t, at in zip((args, apart), indices, strict=True))
        assert torch.equal(got, want), name


def test_history_at_any_index_is_the_whole_sequence(run, device):
    """Calls of two frames, whose history stays where the call before put it, against one call."""
    net = Network(Kind.CAUSAL, 32, 96, (5, 6), 6).rounded(torch.bfloat16)
    net.x[:2] = 0
    whole = arguments(net, device, act=False, shuffled=False)
    whole["frames"][:2] = -1
    run(*whole.values())
    x, slots = whole["x"], torch.full_like(whole["x"][:4], torch.nan)
    history, work = [-1, -2], [2, 3]  # slots 0 and 1, of no frame yet
    for start in range(0, 6, 2):
        slots[work] = x[2 + start : 4 + start]
        indices = torch.tensor(history + work, dtype=torch.int32, device=device)
        part = whole | {"x": slots, "frames": indices, "raw": torch.full_like(whole["raw"][:2], torch.nan)}
        part["raw_frames"] = torch.arange(2, dtype=torch.int32, device=device)
        run(*part.values())
        assert torch.equal(part["raw"], whole["raw"][start : start + 2])
        history, work = work, [p if p >= 0 else -1 - p for p in history]


class TestPixels:
    OP = conv_pixels
    CASES = (
        pytest.param((40, (6, 9)), id="40"),
        pytest.param((8, (1, 1)), id="one-pixel"),
        pytest.param((96, (3, 50)), id="tiles"),
        pytest.param((96, (120, 104)), id="level-3", marks=pytest.mark.gpu),
    )

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("picture", [True, False])
    @pytest.mark.parametrize("case", CASES)
    def test_matches_float64(self, run, backend, device, dtype, picture, case):
        if backend == "triton" and dtype == torch.float64:
            pytest.skip("computes in float32")
        torch.manual_seed(3)
        ci, size = case
        w, b, x = torch.randn(3, ci, 3, 3, 3) / 30, torch.randn(3) / 3, torch.randn(4, ci, *size)
        w, b, x = (t.to(dtype) for t in (w, b, x))
        indices = torch.tensor([3, 0, 5, 1], dtype=torch.int32)
        want = F.conv3d(x.double().transpose(0, 1)[None], w.double(), b.double(), padding=(0, 1, 1))[0]
        want = want.permute(1, 2, 3, 0)
        args = [scattered(x, indices, 6), indices, *pack_pixels(w, b)]
        out = torch.full((2, *size, 3), 99, dtype=torch.uint8 if picture else dtype, device=device)
        run(*(t.to(device) for t in args), out)
        got = out.double().cpu()
        if picture:
            # Precision: a shade is 255 times half of y, which was rounded.
            most = 0 if dtype == torch.float64 else 2 if truncated(backend, device) else 1
            assert (got - (255 * (want / 2 + 0.5).clamp(0, 1)).floor()).abs().max() <= most
        else:
            tight = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-8}[dtype]
            tight *= 1 + truncated(backend, device)
            torch.testing.assert_close(got, want, rtol=tight, atol=tight)

    def test_pictures_are_black_and_white_at_their_ends(self, run, backend, device):
        w, x = torch.zeros(3, 8, 3, 3, 3), torch.zeros(3, 1, 4, 5, 8)
        indices = torch.arange(3, dtype=torch.int32)
        for value, shade in ((-7.0, 0), (-1.0, 0), (0.0, 127), (0.999, 254), (1.0, 255), (9.0, 255)):
            args = x, indices, *pack_pixels(w, torch.full((3,), value))
            out = torch.full((1, 4, 5, 3), 99, dtype=torch.uint8, device=device)
            run(*(t.to(device) for t in args), out)
            assert (out == shade).all(), value

    def test_history_that_is_missing_is_zeros(self, run, backend, device):
        torch.manual_seed(4)
        w, b, x = torch.randn(3, 16, 3, 3, 3) / 30, torch.randn(3) / 3, torch.randn(4, 16, 5, 7)
        x[:2] = 0
        w, b, x = (t.bfloat16() for t in (w, b, x))
        indices, missing = (torch.tensor(i, dtype=torch.int32) for i in ([3, 0, 2, 1], [-4, -1, 2, 1]))
        pool = scattered(x, indices, 4)
        outs = [torch.full((2, 5, 7, 3), torch.nan, device=device).bfloat16() for _ in range(2)]
        for listed, frames, out in ((indices, pool, outs[0]), (missing, pool.clone(), outs[1])):
            if listed is missing:
                frames[[3, 0]] = torch.nan
            args = frames, listed, *pack_pixels(w, b)
            run(*(t.to(device) for t in args), out)
        assert torch.equal(*outs) and outs[0].isfinite().all()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("x", torch.zeros(4, 5, 6, 9, 4)),
            ("frames", torch.zeros(2, dtype=torch.int32)),
            ("weight", torch.zeros(1, 5)),
            ("bias", torch.zeros(3)),
            ("out", torch.zeros(2, 6, 9, 4)),
        ],
    )
    def test_bad_input_is_named(self, run, backend, device, name, value):
        if backend == "cuda":
            pytest.skip("takes no float32")
        weight, bias = pack_pixels(torch.zeros(3, 40, 3, 3, 3), torch.zeros(3))
        args = {"x": torch.zeros(4, 5, 6, 9, 8), "frames": torch.arange(4, dtype=torch.int32), "weight": weight}
        args |= {"bias": bias, "out": torch.zeros(2, 6, 9, 3)}
        args = {n: t.to(device) for n, t in (args | {name: value}).items()}
        with pytest.raises(ValueError, match=f"{name} must"):
            run(*args.values())


@pytest.mark.parametrize(("kind", "co"), [(Kind.CAUSAL, 384), (Kind.POINT, 192), (Kind.TIME, 192), (Kind.UP, 96)])
def test_packing_keeps_every_tap_once(kind, co):
    """Whole numbers in, their counts out; the channels that fill a chunk are zeros."""
    rows = co * (2 if kind == Kind.TIME else 1)
    weight = torch.arange(1, 1 + rows * 40 * torch.tensor(WEIGHT[kind]).prod(), dtype=torch.float64).view(
        rows, 40, *WEIGHT[kind]
    )
    packed = pack(kind, weight)
    assert packed.is_contiguous() and packed.shape[0] == rows * (4 if kind == Kind.UP else 1) // min(co, 192)
    if kind != Kind.UP:
        assert torch.equal(packed[packed != 0].sort().values, weight.flatten())
    assert (packed == 0).sum() == packed.numel() * 24 // 64
    assert packed.sum() == weight.sum() * (4 if kind == Kind.UP else 1)


BAD = {
    "kind": ({"kind": 7}, "kind must be a Kind"),
    "x": ({"x": torch.zeros(4, 4, 5, 5, 4)}, "x must be"),
    "x dtype": ({"x": torch.zeros(6, 4, 4, 5, 8, dtype=torch.float16)}, "x must be bfloat16"),
    "frames": ({"frames": torch.zeros(2, dtype=torch.int32)}, "frames must have at least 3"),
    "frames dtype": ({"frames": torch.zeros(4, dtype=torch.int64)}, "frames must be torch.int32"),
    "weight": ({"weight": torch.zeros(1, 100)}, "weight must be"),
    "bias": ({"bias": torch.zeros(100)}, "weight must give"),
    "raw": ({"raw": torch.zeros(4, 12, 4, 6, 8)}, "raw must be"),
    "raw indices": ({"raw_frames": torch.zeros(1, dtype=torch.int32)}, "raw_frames must be"),
    "no raw indices": ({"raw_frames": None}, "raw_frames must not be None"),
    "gain": ({"gain": None}, "gain must not be None"),
    "nothing to do": ({"raw": None, "act": None}, "raw and act"),
    "residual": (
        {"residual": torch.zeros(1, 12, 4, 6, 8), "residual_frames": torch.zeros(2, dtype=torch.int32)},
        "residual must be",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_and_nothing_is_written(run, backend, device, name):
    if backend == "cuda":
        pytest.skip("takes no float32")
    net = Network(Kind.CAUSAL, 32, 96, (4, 5), 2)
    args = arguments(net, device)
    changes, message = BAD[name]
    before = {n: args[n].clone() for n in ("raw", "act")}
    with pytest.raises(ValueError, match=message):
        run(*(args | {n: t.to(device) if isinstance(t, torch.Tensor) else t for n, t in changes.items()}).values())
    assert all(torch.equal(t.view(torch.int32), args[n].view(torch.int32)) for n, t in before.items())


def test_pack_refuses():
    with pytest.raises(ValueError, match="multiple of 8 channels"):
        pack(Kind.CAUSAL, torch.zeros(100, 32, 3, 3, 3))
    with pytest.raises(ValueError, match="weight must be"):
        pack(Kind.UP, torch.zeros(96, 32, 3, 3, 3))
    with pytest.raises(ValueError, match="residual must be None"):
        pack(Kind.UP, torch.zeros(96, 32, 3, 3), torch.zeros(96, 96))
    with pytest.raises(ValueError, match="residual must be"):
        pack(Kind.CAUSAL, torch.zeros(96, 32, 3, 3, 3), torch.zeros(90, 96))


def test_on_a_cpu():
    """The CUDA kernel's source, its threads and engines in random order: each kind of work once."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    emulate = Path(__file__).parents[1] / "native/conv/emulate.py"
    done = subprocess.run([sys.executable, emulate], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["second of a block, shortcut", "time, 384", "up, 192 to 96", "second of a block, 96"])
def test_the_baseline_gives_as_much(name):
    layer = next(layer for layer in bench.decoder(1, 2) if layer.name == name)
    args = dict(zip(NAMES, bench.arguments(layer, "cpu"), strict=True))
    y, *act = bench.published(**args)
    assert len(act) == layer.act
    for got, want in zip((y, *act), filter(lambda t: t is not None, (args["raw"], args["act"])), strict=False):
        assert got.movedim(1, -1)[0].shape == from_groups(want).shape and got.isfinite().all()
    used = ("x", "weight", "residual", "raw", "act")
    assert layer.bytes == sum(2 * args[name].numel() for name in used if args[name] is not None)


@pytest.mark.gpu
@pytest.mark.parametrize("forced", [None, "triton"])
def test_replays_with_other_indices(forced):
    """A captured graph reads the indices when it is replayed."""
    net = Network(Kind.CAUSAL, 96, 96, (24, 40), 2).rounded(torch.bfloat16)
    args = arguments(net, "cuda", act=False, shuffled=False)
    with backend(forced):
        graph, _ = captured(causal_conv, *args.values())
    want = args["raw"].clone()
    args["x"].copy_(args["x"].roll(1, 0))
    args["frames"].copy_((args["frames"] + 1) % len(args["x"]))
    args["raw"].fill_(torch.nan)
    graph.replay()
    assert torch.equal(args["raw"][:2], want[:2])
