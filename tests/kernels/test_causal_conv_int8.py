"""causal_conv_int8, and int8 results of causal_conv, against float64 on plain [T, C, H, W]."""

import pytest
import torch
import torch.nn.functional as F

from longlive_optimized.kernels.bench import causal_conv_int8 as bench
from longlive_optimized.kernels.causal_conv import LEAST_SCALE, Kind, causal_conv, from_groups, pack, to_groups
from longlive_optimized.kernels.causal_conv_int8 import causal_conv_int8, pack_int8
from longlive_optimized.kernels.registry import backend
from support.graphs import captured

OP = causal_conv_int8
NAMES = (
    "x frames weight scale bias residual residual_frames raw raw_frames act act_frames gain act_scale saturated".split()
)


class Layer:
    """A convolution of what a norm and SiLU leave, before anything is rounded; frames [T, C, H, W] in float64."""

    def __init__(self, ci, co, size, frames, residual=False, seed=0, zeros=0):
        g = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        self.co, self.size, self.frames, self.zeros = co, size, frames, zeros
        self.weight, self.bias = normal(co, ci, 3, 3, 3) * (27 * ci) ** -0.5, normal(co) * 0.3
        self.gain = 1 + 0.3 * normal(co)
        self.x = F.silu(normal(2 + frames, ci, *size))
        self.x[:zeros] = 0
        self.extra = normal(frames, co, *size).bfloat16().double() if residual else None
        self.scale = self.x.max() / 127
        self.values = (self.x / self.scale).round().clamp(max=127).to(torch.int8)
        self.packed, self.weight_scale = pack_int8(self.weight.float())

    def y(self, x, weight):
        y = F.conv3d(x.transpose(0, 1)[None], weight, self.bias, padding=(0, 1, 1))[0].transpose(0, 1)
        return y if self.extra is None else y + self.extra

    def truth(self):
        """y of what was not rounded."""
        return self.y(self.x, self.weight)

    def rounded(self):
        """y of what the operator sees."""
        weight, step = self.weight.float(), self.weight_scale.double().view(-1, 1, 1, 1, 1)
        steps = (weight * (torch.tensor(127.0) / weight.abs().amax((1, 2, 3, 4), keepdim=True))).round()
        return self.y(self.values.double() * self.scale, steps.double() * step)

    def act(self, y):
        """SiLU(norm(y))."""
        norm = y / y.norm(dim=1, keepdim=True).clamp(min=1e-12) * self.co**0.5
        return F.silu(norm * self.gain.view(-1, 1, 1))


def scattered(x, indices, slots, group, fill):
    """Frames [T, C, H, W] in groups, at these indices among frames of ``fill``."""
    t = torch.full((slots, x.shape[1] // group, *x.shape[2:], group), fill, dtype=x.dtype)
    t[indices.long()] = to_groups(x.movedim(1, -1), group)
    return t


def arguments(layer, device, dtype=torch.bfloat16, raw=True, act="int8", act_scale=1 / 32):
    """Of the operator; every tensor has frames of poison that are not meant."""
    g = torch.Generator().manual_seed(1)
    wide = torch.promote_types(dtype, torch.float32)

    def indices(count):
        return torch.randperm(count + 2, generator=g)[:count].int()

    frames, count = indices(len(layer.x)), layer.frames
    a = dict.fromkeys(NAMES)
    a["x"] = scattered(layer.values, frames, len(frames) + 2, 16, -128)
    frames[: layer.zeros] = -1 - frames[: layer.zeros]
    a |= {"frames": frames, "weight": layer.packed, "bias": layer.bias.to(wide), "act_scale": 0.0}
    a["scale"] = (layer.weight_scale.double() * layer.scale).to(wide)
    if layer.extra is not None:
        a["residual_frames"] = indices(count)
        a["residual"] = scattered(layer.extra.to(dtype), a["residual_frames"], count + 2, 8, torch.nan)
    if raw:
        a["raw_frames"] = indices(count)
        a["raw"] = torch.full((count + 2, layer.co // 8, *layer.size, 8), torch.nan, dtype=dtype)
    if act:
        a["act_frames"], a["gain"] = indices(count), layer.gain.to(wide)
    if act == "int8":
        a["act"] = torch.full((count + 2, layer.co // 16, *layer.size, 16), -128, dtype=torch.int8)
        a |= {"act_scale": act_scale, "saturated": torch.tensor([7])}
    elif act:
        a["act"] = torch.full((count + 2, layer.co // 8, *layer.size, 8), torch.nan, dtype=dtype)
    return {name: t.to(device) if isinstance(t, torch.Tensor) else t for name, t in a.items()}


def results(args):
    """The frames that were written, as [T, C, H, W] in float64; asserts that no other frame was touched."""
    found = {}
    for name in ("raw", "act"):
        t = args[name]
        if t is not None:
            indices = args[f"{name}_frames"].long()
            others = t[torch.ones(len(t), dtype=torch.bool, device=t.device).index_fill_(0, indices, False)]
            assert (others == -128).all() if t.dtype == torch.int8 else others.isnan().all()
            found[name] = from_groups(t[indices]).movedim(-1, 1).double().cpu()
    return found


def compare(args, layer, dtype, truncated=False):
    """To a rounding, with the truth of what the operator sees; ``truncated``: where the interpreter has cut off."""
    got, y = results(args), layer.rounded()
    # Precision: the integer sums are exact; y is rounded once, act once more.
    tight = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 2**-7 if truncated else 2**-8}[
        dtype
    ]  # the weight's scale is float32
    if "raw" in got:
        torch.testing.assert_close(got["raw"], y, rtol=tight, atol=1e-5)
    act = layer.act(got["raw"] if "raw" in got else y.to(dtype).double())
    if "act" in got and args["act"].dtype == torch.int8:
        steps = act / args["act_scale"]
        over, found = steps >= 127.5, args["saturated"].item() - 7
        # A step is half a unit; SiLU in half precision, and a y that was rounded the other way, are a few hundredths.
        assert ((got["act"] - steps.clamp(max=127)).abs() <= 0.53 + steps.abs() / 128).all()
        assert (got["act"] != steps.round().clamp(max=127)).double().mean() < 0.1
        assert abs(found - over.sum().item()) <= 1 + 0.05 * over.sum()
    elif "act" in got:
        torch.testing.assert_close(got["act"], act, rtol=2 * tight, atol=2 * tight)


CASES = {
    "16 to 96": ((16, 96, (5, 7), 2), {}),
    "48 to 192, in tiles": ((48, 192, (17, 33), 1), {}),
    "384": ((32, 384, (3, 4), 3), {}),
    "48 wide": ((32, 48, (4, 5), 2), {}),
    "one pixel": ((16, 96, (1, 1), 1), {}),
    "residual": ((96, 96, (6, 9), 2, True), {}),
    "384, residual": ((32, 384, (9, 17), 2, True), {}),
    "raw alone": ((32, 192, (4, 5), 2, True), {"act": None}),
    "no raw": ((32, 96, (4, 5), 2), {"raw": False}),
    "act not in int8": ((96, 96, (9, 17), 2, True), {"act": "plain", "raw": False}),
    "saturated": ((32, 96, (9, 8), 2), {"act_scale": 1 / 100}),
    "576 channels": ((32, 576, (3, 4), 1), {"act": None}),
    "16 to 16": ((16, 16, (3, 5), 2, True), {}),
    "576 channels, act": ((16, 576, (3, 4), 1), {"raw": False}),  # whose norm spans three parts
    "wide": ((16, 48, (1, 150), 1), {"act": "plain"}),
    "tall": ((48, 16, (150, 1), 1, True), {"raw": False}),
}
REAL = {
    "level 0": ((384, 384, (60, 104), 3, True), {}),
    "level 1": ((192, 384, (40, 72), 2), {}),
    "odd": ((192, 192, (67, 93), 2, True), {}),
    "level 3": ((96, 96, (120, 104), 4, True), {}),
}
ALL = [pytest.param(c, id=n) for n, c in CASES.items()]
ALL += [pytest.param(c, id=n, marks=pytest.mark.gpu) for n, c in REAL.items()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ALL)
def test_matches_float64(run, backend, device, case, dtype):
    if backend == "triton" and dtype == torch.float64:
        pytest.skip("computes in float32")
    shape, options = case
    layer = Layer(*shape)
    args = arguments(layer, device, dtype, **options)
    run(*args.values())
    compare(args, layer, dtype, truncated=(backend, device) == ("triton", "cpu"))


@pytest.mark.parametrize("shared", [99, 163, 227])
@pytest.mark.parametrize("channels", [(96, 96), (192, 192), (48, 32)], ids=str)
def test_tiles_of_every_chip(monkeypatch, backend, device, channels, shared):
    """Triton's steps of 32, 64 and 128 channels; of 96 and of 48 the last step has fewer."""
    if backend != "triton":
        pytest.skip("has tiles of its own")
    monkeypatch.setattr("longlive_optimized.kernels.causal_conv_triton.shared_memory", lambda device: shared * 1024)
    if device == "cuda" and shared > torch.cuda.get_device_properties(0).shared_memory_per_block_optin // 1024:
        pytest.skip("more than this GPU has")
    layer = Layer(*channels, (2, 3), 1, True)
    args = arguments(layer, device)
    causal_conv_int8.impls["triton"][0](*args.values())
    compare(args, layer, torch.bfloat16, truncated=device == "cpu")


@pytest.mark.parametrize("zeros", [1, 2])
@pytest.mark.parametrize("co", [96, 384])
def test_missing_history_is_zeros(run, backend, device, zeros, co):
    layer = Layer(32, co, (9, 10), 2, zeros=zeros)
    args = arguments(layer, device)
    run(*args.values())
    compare(args, layer, torch.bfloat16, truncated=(backend, device) == ("triton", "cpu"))


@pytest.mark.parametrize(("ci", "bound"), [(96, 0.013), (384, 0.013)])
def test_error_against_what_was_not_rounded(run, device, ci, bound):
    """Relative L2 of y; most of it is the activations', whose scale their largest value makes."""
    layer = Layer(ci, 96, (12, 20), 2)
    args = arguments(layer, device, act=None)
    run(*args.values())
    truth = layer.truth()
    error = (results(args)["raw"] - truth).norm() / truth.norm()
    assert 0.005 < error < 2 * bound


@pytest.mark.parametrize("co", [96, 192, 384])
def test_sums_are_exact(run, backend, device, co):
    """Of the largest values that there are: the sums need more bits than float32 has."""
    dtype = torch.float32 if (backend, device) == ("triton", "cpu") else torch.bfloat16  # which an interpreter cuts off
    layer = Layer(64, co, (4, 5), 1)
    g = torch.Generator().manual_seed(2)
    weight = torch.where(torch.rand(co, 64, 3, 3, 3, generator=g) < 0.5, -127.0, 127.0)
    layer.packed, scale = pack_int8(weight)
    assert (scale == 1).all()
    layer.values = torch.where(torch.rand(layer.x.shape, generator=g) < 0.5, -127, 127).to(torch.int8)
    args = arguments(layer, device, dtype, act=None)
    args["scale"], args["bias"] = torch.full_like(args["scale"], 2.0**-12), torch.zeros_like(args["bias"])
    run(*args.values())
    x = layer.values.double().transpose(0, 1)[None]
    sums = F.conv3d(x, weight.double(), padding=(0, 1, 1))[0].transpose(0, 1)
    assert torch.equal(results(args)["raw"], (sums.float() * 2.0**-12).to(dtype).double())


@pytest.mark.parametrize("co", [96, 384])
def test_adds_in_place(run, device, co):
    """The residual stream is advanced where it lies."""
    layer = Layer(32, co, (9, 18), 2, True)
    apart, args = arguments(layer, device), arguments(layer, device)
    run(*apart.values())
    args["raw"], args["raw_frames"] = args["residual"], args["residual_frames"]
    run(*args.values())
    for name in ("raw", "act"):
        got, want = (t[name][t[f"{name}_frames"].long()] for t in (args, apart))
        assert torch.equal(got, want), name


def test_history_at_any_index_is_the_whole_sequence(run, device):
    """Calls of two frames, whose history stays where the call before put it, against one call."""
    layer = Layer(32, 96, (5, 6), 6, zeros=2)
    whole = arguments(layer, device, act=None)
    run(*whole.values())
    order = whole["frames"].cpu().tolist()
    for start in range(0, 6, 2):
        part = whole | {"raw": torch.full_like(whole["raw"], torch.nan)}
        part["frames"] = torch.tensor(order[start : start + 4], dtype=torch.int32, device=device)
        part["raw_frames"] = whole["raw_frames"][start : start + 2].contiguous()
        run(*part.values())
        at = part["raw_frames"].long()
        assert torch.equal(part["raw"][at], whole["raw"][at])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_counts_as_saturated(run, device, value):
    layer = Layer(32, 96, (9, 8), 2, True)
    layer.extra[1, 40, 3, 5] = value
    args = arguments(layer, device, act_scale=1 / 8)
    run(*args.values())
    assert 1 <= args["saturated"].item() - 7 <= 96
    assert not results(args)["raw"][1, 40, 3, 5].isfinite()


@pytest.mark.parametrize(
    ("kind", "ci", "co", "shape"),
    [(Kind.UP, 32, 96, (3, 3)), (Kind.UP, 40, 192, (3, 3)), (Kind.CAUSAL, 16, 384, (3, 3, 3))],
    ids=["up, 96", "up, 192", "conv1"],
)
def test_the_other_convolutions_give_int8(device, kind, ci, co, shape):
    """Rounded as their own results are, in steps of the scale."""
    g = torch.Generator().manual_seed(3)
    frames = 4 if kind == Kind.CAUSAL else 2
    x = torch.randn(frames, ci // 8, 9, 17, 8, generator=g).bfloat16()
    weight = (torch.randn(co, ci, *shape, generator=g) / ci**0.5 / 3).bfloat16()
    scale = 2 if kind == Kind.UP else 1
    size, indices = (9 * scale, 17 * scale), torch.arange(frames, dtype=torch.int32)
    act, want = torch.zeros(2, co // 16, *size, 16, dtype=torch.int8), torch.zeros(2, co // 8, *size, 8).bfloat16()
    bias, gain, at = torch.randn(co, generator=g), 1 + 0.3 * torch.randn(co, generator=g), indices[:2]
    start = [t.to(device) for t in (x, indices, pack(kind, weight), bias)]
    at, gain, act, want = (t.to(device) for t in (at, gain, act, want))
    saturated = torch.zeros(1, dtype=torch.int64, device=device)
    causal_conv(*start, int(kind), None, None, None, None, want, at, gain)
    causal_conv(*start, int(kind), None, None, None, None, act, at, gain, 1 / 32, saturated)
    steps = from_groups(want).double() * 32
    assert ((from_groups(act).double() - steps.clamp(max=127)).abs() <= 0.55 + steps.abs() / 100).all()
    assert abs(saturated.item() - (steps >= 127.5).sum().item()) <= 3


BAD = {
    "x": ({"x": torch.zeros(6, 4, 4, 5, 8, dtype=torch.int8)}, "x must be"),
    "x dtype": ({"x": torch.zeros(6, 2, 4, 5, 16, dtype=torch.uint8)}, "x must be torch.int8"),
    "deep x": ({"x": torch.zeros(1, 304, 1, 1, 16, dtype=torch.int8)}, "x must have at most"),
    "frames": ({"frames": torch.zeros(2, dtype=torch.int32)}, "frames must have at least 3"),
    "frames dtype": ({"frames": torch.zeros(4, dtype=torch.int64)}, "frames must be torch.int32"),
    "weight": ({"weight": torch.zeros(1, 100, dtype=torch.int8)}, "weight must be"),
    "weight dtype": ({"weight": torch.zeros(1, 27 * 32 * 96)}, "weight must be torch.int8"),
    "scale": ({"scale": torch.zeros(95)}, "scale must be"),
    "bias": ({"bias": torch.zeros(100)}, "bias must have a multiple of 16"),
    "bias dtype": ({"bias": torch.zeros(96, dtype=torch.bfloat16)}, "bias must be torch.float32"),
    "residual": ({"residual": torch.zeros(4, 12, 4, 6, 8).bfloat16()}, "residual must be"),
    "residual dtype": ({"residual": torch.zeros(4, 12, 4, 5, 8)}, "residual must be torch.bfloat16"),
    "no residual indices": ({"residual_frames": None}, "residual_frames must not be None"),
    "raw": ({"raw": torch.zeros(4, 12, 4, 6, 8).bfloat16()}, "raw must be"),
    "raw indices": ({"raw_frames": torch.zeros(1, dtype=torch.int32)}, "raw_frames must be"),
    "act": ({"act": torch.zeros(4, 12, 4, 5, 8, dtype=torch.int8)}, "act must be"),
    "no act indices": ({"act_frames": None}, "act_frames must not be None"),
    "gain": ({"gain": None}, "gain must not be None"),
    "act_scale": ({"act_scale": LEAST_SCALE / 1.001}, "act_scale must be at least"),
    "infinite act_scale": ({"act_scale": float("inf")}, "act_scale must be at least"),
    "saturated": ({"saturated": None}, "saturated must not be None"),
    "saturated dtype": ({"saturated": torch.zeros(1, dtype=torch.int32)}, "saturated must be torch.int64"),
    "nothing to do": ({"raw": None, "act": None}, "raw and act"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_and_nothing_is_written(name):
    args = arguments(Layer(32, 96, (4, 5), 2, True), "cpu")
    changes, message = BAD[name]
    before = {n: args[n].clone() for n in ("raw", "act", "saturated")}
    with pytest.raises(ValueError, match=message):
        causal_conv_int8(*(args | changes).values())
    assert all(torch.equal(t.view(torch.uint8), args[n].view(torch.uint8)) for n, t in before.items())


def test_pack_refuses():
    for shape in ((96, 24, 3, 3, 3), (40, 32, 3, 3, 3)):
        with pytest.raises(ValueError, match="weight must have multiples of 16"):
            pack_int8(torch.zeros(shape))
    with pytest.raises(ValueError, match="weight must be"):
        pack_int8(torch.zeros(96, 32, 3, 3))
    with pytest.raises(ValueError, match="weight must be bfloat16"):
        pack_int8(torch.zeros(96, 32, 3, 3, 3, dtype=torch.int8))


def test_a_row_of_zeros_gives_bias_and_residual():
    layer = Layer(32, 96, (4, 5), 2, True)
    layer.weight[7] = 0
    layer.packed, layer.weight_scale = pack_int8(layer.weight.float())
    args = arguments(layer, "cpu", torch.float32, act=None)
    causal_conv_int8(*args.values())
    want = layer.bias[7] + layer.extra[:, 7]
    torch.testing.assert_close(results(args)["raw"][:, 7], want, rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("forced", [None, "triton"])
def test_replays_with_other_indices(forced):
    """A captured graph reads the indices when it is replayed, and goes on counting."""
    layer = Layer(96, 96, (24, 40), 2)
    args = arguments(layer, "cuda", act_scale=1 / 100)
    with backend(forced):
        graph, _ = captured(causal_conv_int8, *args.values())
    at, once = args["raw_frames"].long(), args["saturated"].item() - 7
    want = args["raw"][at].clone()
    args["x"].copy_(args["x"].roll(1, 0))
    args["frames"].copy_((args["frames"] + 1) % len(args["x"]))
    args["raw"].fill_(torch.nan)
    graph.replay()
    assert torch.equal(args["raw"][at], want)
    assert once > 0 and args["saturated"].item() - 7 == 2 * once


def test_counted_bytes_are_those_of_the_tensors():
    for layer in bench.decoder(1, 2):
        args = dict(zip(NAMES, bench.arguments(layer, "cpu"), strict=True))
        used = ("x", "weight", "residual", "raw", "act")
        moved = sum(args[name].nbytes for name in used if args[name] is not None)
        assert bench.case(layer, torch.bfloat16).bytes == moved, layer
