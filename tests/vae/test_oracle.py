"""Streams against the whole sequence at once, written from docs/model.md 7.2, 7.4 and 7.5 in plain NCTHW torch."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from longlive_optimized.vae.config import LATENT_MEAN, LATENT_STD
from longlive_optimized.vae.modules import ModulesCodec
from longlive_optimized.vae.packed.codec import PackedCodec
from longlive_optimized.vae.stream import DecoderStream, EncoderStream
from support.vectors import h

CODECS = [ModulesCodec, PackedCodec]
SETTINGS = settings(max_examples=25, deadline=None, derandomize=True)


class WholeSequence:
    """Ordinary causal convolutions with zero history; x [1, C, T, H, W]. Rounds where the eager network does."""

    def __init__(self, vae):
        self.w = {key: value.contiguous() for key, value in vae.state_dict().items()}
        self.mean, std = (torch.tensor(v, dtype=vae.dtype).view(1, 16, 1, 1, 1) for v in (LATENT_MEAN, LATENT_STD))
        self.inv = 1 / std

    def conv(self, key, x, stride=1):
        return F.conv3d(x, self.w[f"{key}.weight"], self.w[f"{key}.bias"], stride)

    def causal(self, key, x):
        time, height, width = (k - 1 for k in self.w[f"{key}.weight"].shape[2:])
        return self.conv(key, F.pad(x, (width // 2, width // 2, height // 2, height // 2, time, 0)))

    def frames(self, x, fn):
        return torch.stack([fn(frame) for frame in x.unbind(2)], dim=2)

    def conv2d(self, key, x, **kwargs):
        return self.frames(x, lambda f: F.conv2d(f, self.w[f"{key}.weight"], self.w[f"{key}.bias"], **kwargs))

    def norm(self, key, x):
        return F.normalize(x, dim=1) * x.shape[1] ** 0.5 * self.w[f"{key}.gamma"]

    def residual(self, key, x):
        y = self.causal(f"{key}.residual.2", F.silu(self.norm(f"{key}.residual.0", x)))
        y = self.causal(f"{key}.residual.6", F.silu(self.norm(f"{key}.residual.3", y)))
        return y + (self.conv(f"{key}.shortcut", x) if f"{key}.shortcut.weight" in self.w else x)

    def attention(self, key, x):
        def one(frame):
            y = F.conv2d(self.norm(f"{key}.norm", frame), self.w[f"{key}.to_qkv.weight"], self.w[f"{key}.to_qkv.bias"])
            q, k, v = (part.flatten(2).transpose(1, 2) for part in y.chunk(3, dim=1))
            y = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v
            y = y.transpose(1, 2).reshape(frame.shape)
            return frame + F.conv2d(y, self.w[f"{key}.proj.weight"], self.w[f"{key}.proj.bias"])

        return self.frames(x, one)

    def middle(self, half, x):
        x = self.attention(f"{half}.middle.1", self.residual(f"{half}.middle.0", x))
        return self.residual(f"{half}.middle.2", x)

    def head(self, half, x):
        return self.causal(f"{half}.head.2", F.silu(self.norm(f"{half}.head.0", x)))

    def double(self, key, x):
        y = self.causal(f"{key}.time_conv", x)
        return torch.stack((y[:, : x.shape[1]], y[:, x.shape[1] :]), dim=3).flatten(2, 3)

    def decode(self, latents):
        x = self.conv("conv2", latents.transpose(0, 1)[None] / self.inv + self.mean)
        x = self.middle("decoder", self.causal("decoder.conv1", x))
        for i in range(15):
            key = f"decoder.upsamples.{i}"
            if i not in (3, 7, 11):
                x = self.residual(key, x)
                continue
            if i != 11 and x.shape[2] > 1:
                x = torch.cat((x[:, :, :1], self.double(key, x[:, :, 1:])), dim=2)
            x = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
            x = self.conv2d(f"{key}.resample.1", x, padding=1)
        return self.head("decoder", x)[0].transpose(0, 1)

    def encode(self, frames):
        x = self.causal("encoder.conv1", frames.transpose(0, 1)[None])
        for i in range(11):
            key = f"encoder.downsamples.{i}"
            if i not in (2, 5, 8):
                x = self.residual(key, x)
                continue
            x = self.conv2d(f"{key}.resample.1", F.pad(x, (0, 1, 0, 1)), stride=2)
            if i != 2 and x.shape[2] > 1:
                x = torch.cat((x[:, :, :1], self.conv(f"{key}.time_conv", x, stride=(2, 1, 1))), dim=2)
        x = self.conv("conv1", self.head("encoder", self.middle("encoder", x)))[:, :16]
        return ((x - self.mean) * self.inv)[0].transpose(0, 1)


def in_groups(fn, x, sizes):
    return torch.cat([fn(part) for part in x.split(sizes)])


groupings = st.lists(st.integers(1, 4), min_size=1, max_size=4).filter(lambda sizes: sum(sizes) <= 7)


@pytest.mark.parametrize("codec", CODECS)
@SETTINGS
@given(sizes=groupings, grid=st.sampled_from([(1, 1), (2, 3)]))
def test_decoding_in_any_groups(make_vae, codec, sizes, grid):
    vae = make_vae(torch.float64)
    latents = h(sum(sizes), sum(sizes), 16, *grid, dtype=torch.float64)
    pixels = in_groups(DecoderStream(codec(vae)).decode, latents, sizes)
    assert pixels.shape == (4 * sum(sizes) - 3, 3, 8 * grid[0], 8 * grid[1])
    torch.testing.assert_close(pixels, WholeSequence(vae).decode(latents), rtol=0, atol=1e-10)


@pytest.mark.parametrize("codec", CODECS)
@SETTINGS
@given(sizes=groupings, grid=st.sampled_from([(1, 1), (2, 3)]))
def test_encoding_in_any_groups(make_vae, codec, sizes, grid):
    vae = make_vae(torch.float64)
    counts = [4 * sizes[0] - 3, *(4 * size for size in sizes[1:])]
    frames = h(sum(sizes), sum(counts), 3, 8 * grid[0], 8 * grid[1], dtype=torch.float64)
    latents = in_groups(EncoderStream(codec(vae)).encode, frames, counts)
    assert latents.shape == (sum(sizes), 16, *grid)
    torch.testing.assert_close(latents, WholeSequence(vae).encode(frames), rtol=0, atol=1e-10)


def relative_l2(x, truth):
    return ((x.double() - truth.double()).norm() / truth.double().norm()).item()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("stream", "direction", "shape"),
    [(DecoderStream, "decode", (3, 16, 3, 4)), (EncoderStream, "encode", (9, 3, 24, 32))],
)
def test_bfloat16_rounds_no_more_than_the_eager_network(make_vae, codec, stream, direction, shape, seed):
    vae, x = make_vae(torch.bfloat16), h(seed, *shape).bfloat16()
    truth = getattr(WholeSequence(copy.deepcopy(vae).double()), direction)(x.double())
    ours, eager = getattr(stream(codec(vae)), direction)(x), getattr(WholeSequence(vae), direction)(x)
    assert ours.dtype == torch.bfloat16
    assert relative_l2(ours, truth) <= 1.1 * relative_l2(eager, truth)
