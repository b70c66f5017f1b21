"""The tiny autoencoder against docs/model.md 8: names and sizes, and the whole sequence at once in plain NCHW torch."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from longlive_optimized.vae.autoencoder import to_uint8
from longlive_optimized.vae.config import LATENT_MEAN, LATENT_STD, TaeConfig
from longlive_optimized.vae.modules import ModulesCodec
from longlive_optimized.vae.stream import DecoderStream, EncoderStream
from longlive_optimized.vae.tae import Tae, last_rows
from support.vectors import h

SETTINGS = settings(max_examples=25, deadline=None, derandomize=True)
KINDS = ["tae", "lighttae"]

MEM = ["mem"] * 3
DECODER = ["clamp", "conv", "relu", *MEM, "up", "grow 1", "conv", *MEM, "up", "grow 2", "conv", *MEM]
DECODER += ["up", "grow 2", "conv", "relu", "conv"]
ENCODER = ["conv", "relu", "pool 2", "down", *MEM, "pool 2", "down", *MEM, "pool 1", "down", *MEM, "conv"]


class WholeSequence:
    """Every layer over all frames; x [T, C, H, W]."""

    def __init__(self, vae, light):
        self.w = {key: value.contiguous() for key, value in vae.state_dict().items()}
        self.mean, self.std = (torch.tensor(v, dtype=vae.dtype).view(16, 1, 1) for v in (LATENT_MEAN, LATENT_STD))
        self.light = light

    def conv(self, key, x, **kwargs):
        return F.conv2d(x, self.w[f"{key}.weight"], self.w.get(f"{key}.bias"), **kwargs)

    def mem(self, key, x):
        past = torch.cat((torch.zeros_like(x[:1]), x[:-1]))
        y = torch.cat((x, past), dim=1)
        for i in (0, 2, 4):
            y = self.conv(f"{key}.conv.{i}", F.relu(y) if i else y, padding=1)
        return F.relu(y + x)

    def layer(self, key, name, x):
        name, times = name.split() if " " in name else (name, 1)
        if name == "clamp":
            return 3 * torch.tanh(x / 3)
        if name == "relu":
            return F.relu(x)
        if name == "mem":
            return self.mem(key, x)
        if name == "up":
            return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        if name == "grow":
            grown = self.conv(f"{key}.conv", x)
            return torch.cat([part for frame in grown.split(1) for part in frame.chunk(int(times), dim=1)])
        if name == "pool":
            stacked = torch.stack([torch.cat(group.unbind(0)) for group in x.split(int(times))])
            return self.conv(f"{key}.conv", stacked)
        return self.conv(key, x, padding=1, stride=2 if name == "down" else 1)

    def run(self, half, layers, x):
        for i, name in enumerate(layers):
            x = self.layer(f"{half}.{i}", name, x)
        return x

    def raw_pixels(self, latents):
        return self.run("decoder", DECODER, latents * self.std + self.mean if self.light else latents)[3:]

    def decode(self, latents):
        return self.raw_pixels(latents).clamp(0, 1) * 2 - 1

    def encode(self, first, *later):
        frames = torch.cat((first, first[-1:], first[-1:], first[-1:], *later))
        latents = self.run("encoder", ENCODER, (frames + 1) / 2)
        return (latents - self.mean) / self.std if self.light else latents


def conv(key, out, *rest):
    return {f"{key}.weight": (out, *rest), f"{key}.bias": (out,)}


def checkpoint_shapes(e=64, a=256, b=128, c=64, d=64):
    """Names and shapes as docs/model.md 8 lists them."""
    shapes = conv("encoder.0", e, 3, 3, 3) | conv("encoder.17", 16, e, 3, 3)
    shapes |= conv("decoder.1", a, 16, 3, 3) | conv("decoder.22", 3, d, 3, 3)
    for i, frames in {2: 2, 7: 2, 12: 1}.items():
        shapes |= {f"encoder.{i}.conv.weight": (e, frames * e, 1, 1), f"encoder.{i + 1}.weight": (e, e, 3, 3)}
    for i, (width, frames, after) in {7: (a, 1, b), 13: (b, 2, c), 19: (c, 2, d)}.items():
        shapes |= {f"decoder.{i}.conv.weight": (frames * width, width, 1, 1)}
        shapes |= {f"decoder.{i + 1}.weight": (after, width, 3, 3)}
    blocks = {f"encoder.{i}": e for i in (4, 5, 6, 9, 10, 11, 14, 15, 16)}
    blocks |= {f"decoder.{i}": width for first, width in ((3, a), (9, b), (15, c)) for i in range(first, first + 3)}
    for key, width in blocks.items():
        shapes |= conv(f"{key}.conv.0", width, 2 * width, 3, 3)
        shapes |= conv(f"{key}.conv.2", width, width, 3, 3) | conv(f"{key}.conv.4", width, width, 3, 3)
    return shapes


def shapes_of(vae):
    return {key: tuple(p.shape) for key, p in vae.state_dict().items()}


def test_checkpoint():
    vae = Tae(device="meta")
    assert shapes_of(vae) == checkpoint_shapes()
    assert len(vae.state_dict()) == 128 and sum(p.numel() for p in vae.parameters()) == 11_315_539
    assert all(p.is_meta and not p.requires_grad for p in vae.parameters())
    half = Tae(encoder=False, device="meta")
    assert shapes_of(half) == {k: s for k, s in checkpoint_shapes().items() if k.startswith("decoder.")}


@pytest.mark.parametrize("widths", [(64, 256, 128, 64, 64), (10, 14, 9, 8, 6), (1, 1, 1, 1, 1)])
def test_config_from_shapes(widths):
    config = TaeConfig(widths[0], widths[1:])
    assert TaeConfig.from_shapes(checkpoint_shapes(*widths)) == config
    light = TaeConfig.from_shapes(checkpoint_shapes(*widths), light=True)
    assert light == dataclasses.replace(config, latent_mean=LATENT_MEAN, latent_std=LATENT_STD)
    assert shapes_of(Tae(light, device="meta")) == checkpoint_shapes(*widths)


def test_config_of_other_latents():
    shapes = checkpoint_shapes() | {"decoder.1.weight": (256, 4, 3, 3), "encoder.17.weight": (4, 64, 3, 3)}
    assert TaeConfig.from_shapes(shapes).z_dim == 4
    with pytest.raises(ValueError, match=r"decoder\.1\.weight must have shape \[256, 16, 3, 3\], got \[256, 4, 3, 3\]"):
        TaeConfig.from_shapes(shapes, light=True)


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("encoder.0.weight", None, "is missing: these are not the tensors of a TAE"),
        ("encoder.17.weight", None, "is missing: these are not the tensors of a TAE"),
        *((f"decoder.{i}.weight", None, "is missing: these are not the tensors of a TAE") for i in (1, 8, 14, 20)),
        ("decoder.1.weight", (), "is missing"),
        ("decoder.22.weight", None, r"must have shape \[3, 64, 3, 3\], got \[\]"),
        ("decoder.22.weight", (12, 64, 3, 3), r"must have shape \[3, 64"),
        ("decoder.8.weight", (128, 255, 3, 3), r"must have shape \[128, 256"),
        ("decoder.1.weight", (256, 4, 3, 3), r"must have shape \[256, 16"),
        ("encoder.0.weight", (64, 12, 3, 3), r"must have shape \[64, 3"),
        ("encoder.17.weight", (16, 32, 3, 3), r"must have shape \[16, 64"),
        ("decoder.20.weight", (64,), r"must have shape \[64, 64"),
    ],
)
def test_config_from_wrong_shapes(key, shape, message):
    shapes = checkpoint_shapes()
    shapes.pop(key)
    if shape is not None:
        shapes[key] = shape
    with pytest.raises(ValueError, match=f"^{key} {message}"):
        TaeConfig.from_shapes(shapes)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("encoder_width", 0),
        ("encoder_width", 64.0),
        ("decoder_widths", (256, 128, 64)),
        ("decoder_widths", (256, 128, 64, -64)),
        ("z_dim", 0),
        ("latent_mean", (0.0,) * 15),
        ("latent_std", (1.0,) * 17),
    ],
)
def test_bad_config(field, value):
    with pytest.raises(ValueError, match=f"^{field} must"):
        TaeConfig(**{field: value})


def test_last_rows():
    """A checkpoint whose growing layers make more frames: those of the last rows are used."""
    shapes = checkpoint_shapes(2, 3, 4, 5, 6)
    exact = {key: h(i, *shape) for i, (key, shape) in enumerate(shapes.items())}
    wide = dict(exact)
    for i, rows in {7: 3, 13: 8, 19: 1}.items():
        key = f"decoder.{i}.conv.weight"
        wide[key] = torch.cat((h(99, rows, *shapes[key][1:]), exact[key]))
    found = last_rows(wide, shapes)
    assert found.keys() == exact.keys() and all(torch.equal(found[key], exact[key]) for key in exact)
    assert len(wide["decoder.7.conv.weight"]) == 6  # the argument is left alone
    same = last_rows(exact, shapes)
    assert all(torch.equal(same[key], exact[key]) for key in exact)


def test_last_rows_leaves_what_does_not_fit():
    """Too few rows, other columns, scalars, gaps and other layers are for whoever checks the shapes."""
    shapes = checkpoint_shapes(2, 3, 4, 5, 6)
    odd = {"decoder.7.conv.weight": (2, 3, 1, 1), "decoder.8.weight": (9, 3, 3, 3), "decoder.13.conv.weight": ()}
    found = last_rows({key: torch.zeros(shape) for key, shape in odd.items()}, shapes)
    assert {key: tuple(tensor.shape) for key, tensor in found.items()} == odd
    other = {"decoder.13.conv.weight": torch.zeros(99, 5, 1, 1)}
    assert last_rows(other, shapes) == other


def in_groups(fn, x, sizes):
    return torch.cat([fn(part) for part in x.split(sizes)])


def clamped(pixels):
    return ((pixels <= 0) | (pixels >= 1)).double().mean().item()


groupings = st.lists(st.integers(1, 4), min_size=1, max_size=4).filter(lambda sizes: sum(sizes) <= 7)
grids = st.sampled_from([(3, 5), (1, 1), (2, 3)])


@SETTINGS
@given(sizes=groupings, grid=grids, kind=st.sampled_from(KINDS))
def test_decoding_in_any_groups(make_vae, sizes, grid, kind):
    vae = make_vae(torch.float64, kind=kind)
    latents, oracle = h(sum(sizes), sum(sizes), 16, *grid, dtype=torch.float64), WholeSequence(vae, kind == "lighttae")
    pixels = in_groups(DecoderStream(ModulesCodec(vae)).decode, latents, sizes)
    assert pixels.shape == (4 * sum(sizes) - 3, 3, 8 * grid[0], 8 * grid[1])
    torch.testing.assert_close(pixels, oracle.decode(latents), rtol=0, atol=1e-10)
    assert clamped(oracle.raw_pixels(latents)) < 0.3  # else the comparison would say little


@SETTINGS
@given(sizes=groupings, grid=grids, kind=st.sampled_from(KINDS))
def test_encoding_in_any_groups(make_vae, sizes, grid, kind):
    """The first call is filled up with its last frame; from there on only the order of the frames counts."""
    vae = make_vae(torch.float64, kind=kind)
    counts = [4 * sizes[0] - 3, *(4 * size for size in sizes[1:])]
    frames = h(sum(sizes), sum(counts), 3, 8 * grid[0], 8 * grid[1], dtype=torch.float64)
    latents = in_groups(EncoderStream(ModulesCodec(vae)).encode, frames, counts)
    assert latents.shape == (sum(sizes), 16, *grid)
    expected = WholeSequence(vae, kind == "lighttae").encode(frames[: counts[0]], frames[counts[0] :])
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-10)


def test_every_latent_and_frame_counts(make_vae):
    """The oracle's inputs all reach its output, so that agreeing with it means something."""
    vae = make_vae(torch.float64, kind="tae")
    latents, frames = h(1, 3, 16, 2, 2, dtype=torch.float64), h(2, 13, 3, 16, 16, dtype=torch.float64)
    pixels, encoded = DecoderStream(ModulesCodec(vae)).decode(latents), EncoderStream(ModulesCodec(vae)).encode(frames)
    for t in range(3):
        other = latents.clone()
        other[t] += 0.1
        changed = (DecoderStream(ModulesCodec(vae)).decode(other) - pixels).abs().amax((1, 2, 3)) > 1e-6
        assert changed.tolist() == [frame >= 4 * t - 3 for frame in range(9)]
    for t in range(13):
        other = frames.clone()
        other[t] += 0.1
        changed = (EncoderStream(ModulesCodec(vae)).encode(other) - encoded).abs().amax((1, 2, 3)) > 1e-8
        assert changed.tolist() == [latent >= t // 4 for latent in range(4)]


def relative_l2(x, truth):
    return ((x.double() - truth.double()).norm() / truth.double().norm()).item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("stream", "direction", "shape"),
    [(DecoderStream, "decode", (3, 16, 3, 4)), (EncoderStream, "encode", (9, 3, 24, 32))],
)
def test_bfloat16_rounds_no_more_than_the_eager_network(make_vae, kind, stream, direction, shape):
    vae, x, light = make_vae(torch.bfloat16, kind=kind), h(0, *shape).bfloat16(), kind == "lighttae"
    truth = getattr(WholeSequence(copy.deepcopy(vae).double(), light), direction)(x.double())
    ours, eager = getattr(stream(ModulesCodec(vae)), direction)(x), getattr(WholeSequence(vae, light), direction)(x)
    assert ours.dtype == torch.bfloat16
    assert relative_l2(ours, truth) <= 1.1 * relative_l2(eager, truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latents_out_of_range(make_vae, dtype):
    """They saturate, softly: whatever is far outside gives the same picture, and every picture is a picture."""
    vae = make_vae(dtype, kind="tae")
    latents = h(3, 3, 16, 2, 3).to(dtype)
    far, infinite = (1e6 * latents), latents.sign() * float("inf")
    pictures = [DecoderStream(ModulesCodec(vae)).decode(x) for x in (far, infinite)]
    assert torch.equal(*pictures)
    assert pictures[0].isfinite().all() and pictures[0].abs().max() <= 1
    assert to_uint8(pictures[0]).unique().numel() > 50
    assert torch.equal(DecoderStream(ModulesCodec(vae)).decode_uint8(far).permute(0, 3, 1, 2), to_uint8(pictures[0]))


def test_pixels_are_clamped(make_vae):
    weights = {key: value.clone() for key, value in make_vae(kind="tae").state_dict().items()}
    weights["decoder.22.weight"] *= 20
    vae = Tae(make_vae(kind="tae").config, device="meta")
    vae.load_state_dict(weights, assign=True)
    pixels = DecoderStream(ModulesCodec(vae)).decode(h(4, 3, 16, 2, 3))
    assert pixels.min() == -1 and pixels.max() == 1
    assert 0.3 < (pixels.abs() == 1).double().mean() < 0.99


# mean and std of the first channels in bfloat16, from docs/model.md 7.1's values.
MEAN_BF16, STD_BF16 = (-0.7578125, -0.70703125, -0.91015625), (2.8125, 1.453125, 2.328125)


@pytest.mark.parametrize("kind", KINDS)
def test_latent_scale(make_vae, monkeypatch, kind):
    """TAE's latents pass as they are; LightTAE's are multiplied and added to in their own dtype."""
    vae, seen = make_vae(torch.bfloat16, kind=kind), []
    mu, latents = h(6, 2, 2, 3, 16).bfloat16(), 3 * h(7, 3, 16, 10, 12).bfloat16()
    monkeypatch.setattr(Tae, "decode", lambda self, z, state: seen.append(z) or z)
    monkeypatch.setattr(Tae, "encode", lambda self, frames, state: mu)
    DecoderStream(ModulesCodec(vae)).decode(latents)
    encoded = EncoderStream(ModulesCodec(vae)).encode(h(8, 5, 3, 16, 24).bfloat16())
    if kind == "tae":
        assert torch.equal(seen[0], latents.permute(0, 2, 3, 1)) and torch.equal(encoded, mu.permute(0, 3, 1, 2))
        return
    mean, std = torch.tensor(MEAN_BF16), torch.tensor(STD_BF16)
    z = latents.permute(0, 2, 3, 1)[..., :3].float()
    assert torch.equal(seen[0][..., :3], ((z * std).bfloat16().float() + mean).bfloat16())
    normalised = ((mu[..., :3].float() - mean).bfloat16().float() / std).bfloat16()
    assert torch.equal(encoded[:, :3], normalised.permute(0, 3, 1, 2))
