"""The printed vectors of docs/model.md 10.3: base width 8, float32."""

import pytest
import torch

from longlive_optimized.vae.modules import ModulesCodec
from longlive_optimized.vae.packed.codec import PackedCodec
from longlive_optimized.vae.stream import DecoderStream, EncoderStream
from support.vectors import check, h

FRAME_MEANS = (
    -0.03155, 0.01114, 0.06525, -0.06407, -0.11749, 0.02019, 0.07154, 0.06556, 0.01938,
    0.02407, -0.00811, 0.01798, 0.04843, 0.08045, 0.07025, 0.09167, 0.11575, 0.16938, 0.10904, 0.06252, 0.07479,
)  # fmt: skip


@pytest.mark.parametrize("codec", [ModulesCodec, PackedCodec])
def test_decoder(vae, codec):
    latents = h(7000, 1, 16, 6, 4, 6)[0].transpose(0, 1)
    stream = DecoderStream(codec(vae))
    first, later = stream.decode(latents[:3]), stream.decode(latents[3:])
    assert first.shape == (9, 3, 32, 48) and later.shape == (12, 3, 32, 48)
    # The vectors are printed in [C, T, H, W] order.
    check(first.transpose(0, 1), 0.004439, 0.434593, [-0.33124, -0.12767, -0.02063, 0.14343], 0.19066)
    check(later.transpose(0, 1), 0.071351, 0.516544, [-0.07819, 0.10240, 0.10997, -0.70212], 0.28125)
    means = torch.cat((first, later)).double().mean(dim=(1, 2, 3))
    torch.testing.assert_close(means, torch.tensor(FRAME_MEANS, dtype=torch.float64), rtol=0, atol=5e-5)


@pytest.mark.parametrize("codec", [ModulesCodec, PackedCodec])
def test_encoder(vae, codec):
    latents = EncoderStream(codec(vae)).encode(h(7001, 1, 3, 13, 16, 16)[0].transpose(0, 1))
    assert latents.shape == (4, 16, 2, 2)
    check(latents.transpose(0, 1), 0.032390, 0.364428, [0.26689, 0.31713, 0.30502, 0.29878], -0.33852)
