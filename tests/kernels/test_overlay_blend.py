"""overlay_blend against a blend in exact rational arithmetic (uint8) and in float64."""

import os

import pytest
import torch

from longlive_optimized.kernels.overlay_blend import overlay_blend as OP

FLOATS = [torch.float16, torch.bfloat16, torch.float32]
DTYPES = [torch.uint8, *FLOATS]


def inputs(dtype, device, frames=2, height=21, width=34, panel=(9, 13)):
    torch.manual_seed(frames * height + width)
    picture = torch.randint(0, 256, (frames, height, width, 3))
    over = torch.randint(0, 256, (*panel, 4), dtype=torch.uint8)
    picture = picture.to(dtype) if dtype == torch.uint8 else (picture / 255).to(dtype)
    return picture.to(device), over.to(device)


def truth(frames, panel, y, x):
    out = frames.double().cpu()
    full = 255.0 if frames.dtype == torch.uint8 else 1.0
    over = panel.double().cpu()
    under = out[:, y : y + panel.shape[0], x : x + panel.shape[1]]
    under += (over[..., :3] / 255 * full - under) * over[..., 3:] / 255
    return out


def check(got, frames, panel, y, x):
    """Within half a level (uint8) or one of 255 (floating point); outside of the panel, not a bit has changed."""
    want = truth(frames, panel, y, x)
    unit, bound = (1.0, 0.5 + 1e-9) if frames.dtype == torch.uint8 else (255.0, 1.0)
    assert ((got.double().cpu() - want).abs() * unit <= bound).all()
    outside = torch.ones(frames.shape[1:3], dtype=torch.bool)
    outside[y : y + panel.shape[0], x : x + panel.shape[1]] = False
    assert torch.equal(got.cpu()[:, outside], frames.cpu()[:, outside])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("y", "x"), [(0, 0), (0, 21), (12, 0), (12, 21), (5, 7)])
def test_matches_float64_and_touches_nothing_else(run, device, dtype, y, x):
    frames, panel = inputs(dtype, device)
    got = frames.clone()
    assert run(got, panel, y, x) is None
    check(got, frames, panel, y, x)


def test_every_pair_of_bytes_is_rounded_to_nearest(run, device):
    under = torch.arange(256, dtype=torch.uint8, device=device)
    alpha = torch.arange(256, dtype=torch.uint8, device=device)
    for colour in (0, 127, 255):
        frames = under[None, None, :, None].repeat(1, 256, 1, 3)
        panel = torch.full((256, 256, 4), colour, dtype=torch.uint8, device=device)
        panel[..., 3] = alpha[:, None]
        sums = under * (255 - alpha.long()[:, None]) + colour * alpha.long()[:, None]
        want = (2 * sums + 255) // 510
        run(frames, panel, 0, 0)
        assert torch.equal(frames[0, ..., 1].long(), want)


VIEWS = {
    "planes": lambda f: f.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    "transposed": lambda f: f.transpose(1, 2).contiguous().transpose(1, 2),
    "time last": lambda f: f.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "every other frame": lambda f: f.repeat_interleave(2, dim=0)[::2],
    "every other column": lambda f: f.repeat_interleave(2, dim=2)[:, :, ::2],
    "three of four channels": lambda f: torch.cat((f, f[..., :1]), dim=-1)[..., :3],
    "a window": lambda f: torch.nn.functional.pad(f, (0, 0, 3, 2, 1, 4))[:, 1:-4, 3:-2],
    "off by one element": lambda f: torch.cat((f.flatten()[:1], f.flatten()))[1:].view(f.shape),
}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16], ids=str)
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_any_strides(run, device, dtype, view):
    frames, panel = inputs(dtype, device)
    got, want = view(frames.clone()), frames.clone()
    run(got, panel, 3, 4)
    run(want, panel, 3, 4)
    assert torch.equal(got, want)
    check(got, frames, panel, 3, 4)


def test_a_strided_view_leaves_what_lies_between(run, device):
    frames, panel = inputs(torch.uint8, device)
    store = frames.repeat_interleave(2, dim=2)
    run(store[:, :, ::2], panel, 3, 4)
    assert torch.equal(store[:, :, 1::2], frames)


@pytest.mark.parametrize("backend_name", [name for name in OP.impls if name != "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backends_agree(request, device, backend_name, dtype):
    if device == "cpu" and (backend_name != "triton" or os.environ.get("TRITON_INTERPRET") != "1"):
        pytest.skip("needs a GPU, or Triton's interpreter")
    if device == "cuda" and not OP.impls[backend_name][1](*inputs(dtype, device), 0, 0):
        pytest.skip("left to another backend")
    frames, panel = inputs(dtype, device, frames=3, height=40, width=60, panel=(31, 47))
    got, want = frames.clone(), frames.clone()
    OP.impls[backend_name][0](got, panel, 4, 5)
    OP.reference(want, panel, 4, 5)
    if dtype == torch.uint8:
        assert torch.equal(got, want)
    else:
        torch.testing.assert_close(got, want, rtol=0, atol=1 / 255)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_alpha_zero_keeps_and_alpha_full_replaces(run, device, dtype):
    frames, panel = inputs(dtype, device)
    panel[..., 3] = 0
    got = frames.clone()
    run(got, panel, 0, 0)
    assert torch.equal(got, frames)
    panel[..., 3] = 255
    run(got, panel, 0, 0)
    want = panel[..., :3].expand(2, -1, -1, -1).double() / (1 if dtype == torch.uint8 else 255)
    torch.testing.assert_close(got[:, :9, :13].double(), want, rtol=0, atol=1 / 255 if dtype in FLOATS else 0)


def test_a_spoiled_pixel_spoils_itself_alone(run, device):
    frames, panel = inputs(torch.float32, device)
    clean = frames.clone()
    run(clean, panel, 0, 0)
    frames[1, 4, 5, 2] = torch.nan
    run(frames, panel, 0, 0)
    assert frames[1, 4, 5, 2].isnan() and frames.isnan().sum() == 1
    assert torch.equal(frames.nan_to_num(0), torch.where(frames.isnan(), 0, clean))


SIZES = [{"panel": (21, 34)}, {"panel": (1, 1)}, {"frames": 13}, {"frames": 0}, {"panel": (0, 5)}, {"panel": (5, 0)}]


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_sizes(run, device, shape):
    frames, panel = inputs(torch.uint8, device, **shape)
    got = frames.clone()
    run(got, panel, 0, 0)
    check(got, frames, panel, 0, 0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_block_at_full_size(run, device, dtype):
    frames, panel = inputs(dtype, device, frames=12, height=480, width=832, panel=(264, 175))
    got = frames.clone()
    run(got, panel, 12, 645)
    check(got, frames, panel, 12, 645)


BAD = {
    "frames": [
        lambda f, p: (f[0], p, 0, 0),
        lambda f, p: (f.permute(0, 3, 1, 2), p, 0, 0),
        lambda f, p: (f.int(), p, 0, 0),
        lambda f, p: (f.double(), p, 0, 0),
        lambda f, p: (f[:1].expand(4, -1, -1, -1), p, 0, 0),
    ],
    "panel": [
        lambda f, p: (f, p[..., :3], 0, 0),
        lambda f, p: (f, p[0], 0, 0),
        lambda f, p: (f, p.float(), 0, 0),
        lambda f, p: (f, p.transpose(0, 1), 0, 0),
        lambda f, p: (f, p.to("cpu" if p.is_cuda else "meta"), 0, 0),
    ],
    "y": [lambda f, p: (f, p, -1, 0), lambda f, p: (f, p, 13, 0), lambda f, p: (f[:, :8], p, 0, 0)],
    "x": [lambda f, p: (f, p, 0, -1), lambda f, p: (f, p, 0, 22), lambda f, p: (f[:, :, :12], p, 0, 0)],
}


@pytest.mark.parametrize(("name", "spoil"), [(name, f) for name, all_of in BAD.items() for f in all_of])
def test_bad_input_is_named(backend, device, name, spoil):
    frames, panel = inputs(torch.uint8, device)
    before = frames.clone()
    with pytest.raises((ValueError, RuntimeError), match=rf"\b{name} must\b"):
        OP.impls[backend][0](*spoil(frames, panel))
    assert torch.equal(frames, before)


def test_registered_properly(device):
    torch.library.opcheck(OP.torch_op, (*inputs(torch.float32, device), 1, 2))


def test_compiles_to_one_graph(device):
    frames, panel = inputs(torch.uint8, device)
    want = frames.clone()
    OP(want, panel, 1, 2)

    def step(f):
        OP(f, panel, 1, 2)
        return f + 0

    assert torch.equal(torch.compile(step, fullgraph=True, backend="aot_eager")(frames), want)
    assert torch.equal(frames, want)


@pytest.mark.gpu
def test_half_goes_to_triton():
    for dtype in DTYPES:
        assert OP.choose(*inputs(dtype, "cuda"), 0, 0) == ("triton" if dtype == torch.float16 else "cuda")


@pytest.mark.gpu
def test_replays_in_a_cuda_graph(run, device):
    frames, panel = inputs(torch.uint8, device)
    run(frames.clone(), panel, 3, 4)
    static = frames.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(static, panel, 3, 4)
    for change in (0, 77):
        static.copy_(frames)
        panel.add_(change)
        graph.replay()
        check(static, frames, panel, 3, 4)
