import pytest
import torch

from longlive_optimized.kernels.qk_norm_rope_store import qk_norm_rope_store
from support.keys import SLOTS, turns
from support.spoiled import other_device, other_order

OP = qk_norm_rope_store
EPS = 1e-6
NAMES = ("qkv", "q_gain", "k_gain", "rope_time", "rope_space", "k_ring", "v_ring", "k_sink", "slots")


def inputs(dtype, device, tokens=7, heads=2, head_dim=128, ring=12, sinks=3, slots=(3, 4, 5)) -> dict:
    """Random tokens; the rings are slices of larger buffers, all of it NaN, so that any stray read or write shows."""
    torch.manual_seed(tokens * 100 + heads)
    size, frames, pairs = heads * head_dim, len(slots), head_dim // 2
    time_pairs = pairs - 2 * (pairs // 3)

    def poison(n):
        return torch.full((n + 2, tokens, heads, head_dim), torch.nan, dtype=dtype, device=device)[1:-1]

    return {
        "qkv": (3 * torch.randn(frames * tokens, 3 * size, dtype=torch.float64)).to(device, dtype),
        "q_gain": torch.randn(size, dtype=torch.float64).to(device, dtype),
        "k_gain": torch.randn(size, dtype=torch.float64).to(device, dtype),
        "rope_time": turns(frames, time_pairs, dtype=dtype, device=device),
        "rope_space": turns(tokens, pairs - time_pairs, dtype=dtype, device=device),
        "k_ring": poison(ring),
        "v_ring": poison(ring),
        "k_sink": poison(sinks),
        "slots": torch.tensor(slots, device=device),
    }


def truth(args: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, rotated k, plain k and v as [F, S, H, hd], in float64."""
    _, tokens, heads, head_dim = args["k_ring"].shape
    q, k, v = args["qkv"].double().view(-1, tokens, 3, heads * head_dim).unbind(2)

    def norm(z, gain):
        return (z / (z.square().mean(-1, keepdim=True) + EPS).sqrt() * gain.double()).unflatten(-1, (heads, head_dim))

    time, space = args["rope_time"].double(), args["rope_space"].double()
    turn = torch.cat((time[:, None].expand(-1, tokens, -1, -1), space.expand(len(time), -1, -1, -1)), 2)
    cos, sin = turn[:, :, None, :, 0], turn[:, :, None, :, 1]

    def rotate(z):
        even, odd, out = z[..., ::2], z[..., 1::2], torch.empty_like(z)
        out[..., ::2], out[..., 1::2] = even * cos - odd * sin, even * sin + odd * cos
        return out

    k = norm(k, args["k_gain"])
    return rotate(norm(q, args["q_gain"])), rotate(k), k, v.unflatten(-1, (heads, head_dim))


def whole(view: torch.Tensor) -> torch.Tensor:
    """The buffer that a ring is a slice of."""
    return view._base


def check_all(args: dict, q: torch.Tensor, close) -> None:
    """Values in the named slots, and NaN as before in every other element of the buffers."""
    want_q, rotated, plain, v = truth(args)
    assert q.dtype == args["qkv"].dtype
    close(q, want_q.flatten(0, 1))
    slots = args["slots"].tolist()
    for name, want in {"k_ring": rotated, "v_ring": v, "k_sink": plain}.items():
        written = {slot: want[f] for f, slot in enumerate(slots) if slot < len(args[name])}
        for slot, value in written.items():
            close(args[name][slot], value)
        untouched = [i for i in range(len(whole(args[name]))) if i - 1 not in written]
        assert whole(args[name])[untouched].isnan().all(), name


CASES = SLOTS | {
    "one-token": {"tokens": 1, "heads": 1},
    "prime": {"tokens": 13},
    "twelve-heads": {"tokens": 3, "heads": 12},
    "small-heads": {"head_dim": 24, "heads": 3},
}
REAL = {"tokens": 1560, "heads": 12, "slots": (11, 3, 4)}
SHAPES = [*(pytest.param(c, id=n) for n, c in CASES.items()), pytest.param(REAL, id="real", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_float64(run, close, device, shape, dtype):
    args = inputs(dtype, device, **shape)
    check_all(args, run(*args.values(), EPS), close)


def test_reference_in_float64(close):
    args = inputs(torch.float64, "cpu", head_dim=24, slots=(1, 9))
    check_all(args, OP.reference(*args.values(), EPS), close)


def test_values_are_copied_bit_by_bit(run, device):
    args = inputs(torch.bfloat16, device, slots=(5, 0))
    run(*args.values(), EPS)
    values = args["qkv"].view(2, 7, 3, 2, 128)[:, :, 2]
    assert torch.equal(args["v_ring"][[5, 0]], values)


def test_norm_is_over_all_channels_not_per_head(run, device):
    args = inputs(torch.float32, device)
    small = run(*args.values(), EPS)[:, 1].clone()
    args["qkv"].unflatten(1, (3, 2, 128))[:, 0, 0] *= 100
    assert (run(*args.values(), EPS)[:, 1].norm() < small.norm() / 10).item()


def test_scores_depend_on_relative_position(run, device):
    """The rotation keeps lengths, and turning q and k together leaves their products alone."""
    args = inputs(torch.float32, device, tokens=5)
    q = run(*args.values(), EPS).clone()
    k = args["k_ring"][args["slots"]].flatten(0, 1)
    turn = torch.polar(torch.ones(64), torch.linspace(0, 6, 64)).to(device)
    n = args["rope_time"].shape[1]
    for name, part in {"rope_time": turn[:n], "rope_space": turn[n:]}.items():
        args[name] = torch.view_as_real(torch.view_as_complex(args[name]) * part)
    moved_q = run(*args.values(), EPS)
    moved_k = args["k_ring"][args["slots"]].flatten(0, 1)
    before, after = torch.einsum("nhd,mhd->hnm", q, k), torch.einsum("nhd,mhd->hnm", moved_q, moved_k)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=2e-3)
    assert not torch.allclose(q, moved_q, atol=0.1)


def test_a_token_depends_on_itself_alone(run, device):
    args = inputs(torch.bfloat16, device)
    clean = run(*args.values(), EPS)
    args["qkv"][10] = torch.nan
    spoiled = run(*args.values(), EPS)
    others = [i for i in range(21) if i != 10]
    assert torch.equal(spoiled[others], clean[others]) and spoiled[10].isnan().all()
    assert args["k_ring"][4, 3].isnan().all() and not args["k_ring"][4, [0, 1, 2, 4, 5, 6]].isnan().any()


def test_closer_to_the_truth_than_the_published_roundings(device):
    args = inputs(torch.bfloat16, device, tokens=40)
    want_q, _, _, _ = truth(args)
    z = args["qkv"].view(3, 40, 3, 256)[:, :, 0]
    z = (z.float() * (z.float().square().mean(-1, keepdim=True) + EPS).rsqrt()).bfloat16() * args["q_gain"]
    z = torch.view_as_complex(z.double().view(3, 40, 2, 64, 2))
    time, space = (torch.view_as_complex(args[name].double()) for name in ("rope_time", "rope_space"))
    turn = torch.cat((time[:, None].expand(-1, 40, -1), space.expand(3, -1, -1)), -1)[:, :, None]
    published = torch.view_as_real(z * turn).flatten(-2).bfloat16()
    ours = OP(*args.values(), EPS).view(want_q.shape)
    assert (ours - want_q).norm() < (published - want_q).norm()


BAD = {
    "qkv": [lambda t: t[:, :-6].contiguous(), lambda t: t[:-1], lambda t: t[None], lambda t: t.half(), other_order],
    "q_gain": [lambda t: t[:-1], lambda t: t[None], lambda t: t.double(), lambda t: t.repeat_interleave(2)[::2]],
    "k_gain": [lambda t: t[:-1], lambda t: t[None], lambda t: t.double(), other_device],
    "rope_time": [lambda t: t[:-1], lambda t: t[..., 0], lambda t: t.double(), other_order],
    "rope_space": [lambda t: t[:, :-1].contiguous(), lambda t: t[:-1], lambda t: t.half(), other_order],
    "k_ring": [lambda t: t[..., :-1].contiguous(), lambda t: t[0], lambda t: t.double(), other_order],
    "v_ring": [lambda t: t[:-1], lambda t: t[0], lambda t: t.double(), other_order],
    "k_sink": [lambda t: t[:, :-1].contiguous(), lambda t: t[0], lambda t: t.double(), other_order, other_device],
    "slots": [
        lambda t: t.int(),
        lambda t: t[None],
        lambda t: t[:0],
        lambda t: t.repeat_interleave(2)[::2],
        lambda t: torch.arange(13, device=t.device),
        other_device,
    ],
}


@pytest.mark.parametrize(
    ("name", "spoil"), [pytest.param(n, f, id=f"{n}{i}") for n, all_of in BAD.items() for i, f in enumerate(all_of)]
)
def test_bad_input_is_named_and_nothing_written(backend, device, name, spoil):
    args = inputs(torch.float32, device)
    args[name] = spoil(args[name])
    with pytest.raises((ValueError, RuntimeError), match=rf"\b{name} must\b"):
        OP.impls[backend][0](*args.values(), EPS)
    assert all(whole(args[n]).isnan().all() for n in ("k_ring", "v_ring", "k_sink") if n != name)


def test_registered_properly(device):
    args = inputs(torch.float32, device, tokens=2, slots=(0, 5))
    for name in ("k_ring", "v_ring", "k_sink"):  # opcheck compares them, and NaN is not equal to itself
        args[name] = torch.zeros_like(args[name])
    torch.library.opcheck(OP.torch_op, (*args.values(), EPS))


def test_compiles_to_one_graph(device, close):
    args = inputs(torch.float32, device, slots=(2, 7))
    qkv = args.pop("qkv")
    compiled = torch.compile(lambda x: OP(2 * x, *args.values(), EPS) * 1, fullgraph=True, backend="aot_eager")
    q = compiled(qkv)
    check_all({"qkv": 2 * qkv, **args}, q, close)


@pytest.mark.gpu
def test_replays_in_a_cuda_graph_with_slots_advanced_in_place(run, close, device):
    args = inputs(torch.bfloat16, device, tokens=60, heads=12, slots=(11, 3, 4))
    run(*args.values(), EPS)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        q = run(*args.values(), EPS)
    for slots in ((5, 6, 7), (11, 3, 4), (1, 2, 3)):
        for name in ("k_ring", "v_ring", "k_sink"):
            whole(args[name]).fill_(torch.nan)
        args["slots"].copy_(torch.tensor(slots))
        args["qkv"].normal_()
        graph.replay()
        check_all(args, q, close)


@pytest.mark.gpu
def test_small_heads_go_to_triton(device):
    assert OP.choose(*inputs(torch.bfloat16, device).values(), EPS) == "cuda"
    assert OP.choose(*inputs(torch.bfloat16, device, head_dim=24).values(), EPS) == "triton"
