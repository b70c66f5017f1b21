"""The checkpoint's names and sizes, and the blocks against their formulas."""

import pytest
import torch
import torch.nn.functional as F

from longlive_optimized.vae.config import VaeConfig
from longlive_optimized.vae.wan.layers import AttentionBlock, RMSNorm
from longlive_optimized.vae.wan.model import WanVae
from support.vectors import h


def conv(key, out, *rest):
    return {f"{key}.weight": (out, *rest), f"{key}.bias": (out,)}


def residual(key, cin, cout):
    shapes = {f"{key}.residual.0.gamma": (cin, 1, 1, 1), f"{key}.residual.3.gamma": (cout, 1, 1, 1)}
    shapes |= conv(f"{key}.residual.2", cout, cin, 3, 3, 3) | conv(f"{key}.residual.6", cout, cout, 3, 3, 3)
    return shapes | (conv(f"{key}.shortcut", cout, cin, 1, 1, 1) if cin != cout else {})


def middle_and_head(half, width, head_in, head_out):
    key = f"{half}.middle.1"
    shapes = residual(f"{half}.middle.0", width, width) | residual(f"{half}.middle.2", width, width)
    shapes |= {f"{key}.norm.gamma": (width, 1, 1), f"{half}.head.0.gamma": (head_in, 1, 1, 1)}
    shapes |= conv(f"{key}.to_qkv", 3 * width, width, 1, 1) | conv(f"{key}.proj", width, width, 1, 1)
    return shapes | conv(f"{half}.head.2", head_out, head_in, 3, 3, 3)


def checkpoint_shapes(a, b, c):
    """Names and shapes as docs/model.md 7.3, 7.5 and 7.7 list them; a, b, c are 96, 192, 384 for Wan."""
    shapes = conv("conv1", 32, 32, 1, 1, 1) | conv("conv2", 16, 16, 1, 1, 1)
    shapes |= conv("decoder.conv1", c, 16, 3, 3, 3) | conv("encoder.conv1", a, 3, 3, 3, 3)
    shapes |= middle_and_head("decoder", c, a, 3) | middle_and_head("encoder", c, c, 32)
    for i, sizes in {0: (c, c), 1: (c, c), 2: (c, c), 4: (b, c), 5: (c, c), 6: (c, c), 8: (b, b), 9: (b, b),
                     10: (b, b), 12: (a, a), 13: (a, a), 14: (a, a)}.items():  # fmt: skip
        shapes |= residual(f"decoder.upsamples.{i}", *sizes)
    for i in (3, 7):
        shapes |= conv(f"decoder.upsamples.{i}.time_conv", 2 * c, c, 3, 1, 1)
        shapes |= conv(f"decoder.upsamples.{i}.resample.1", b, c, 3, 3)
    shapes |= conv("decoder.upsamples.11.resample.1", a, b, 3, 3)
    for i, sizes in {0: (a, a), 1: (a, a), 3: (a, b), 4: (b, b), 6: (b, c), 7: (c, c), 9: (c, c), 10: (c, c)}.items():
        shapes |= residual(f"encoder.downsamples.{i}", *sizes)
    for i, width in {2: a, 5: b, 8: c}.items():
        shapes |= conv(f"encoder.downsamples.{i}.resample.1", width, width, 3, 3)
    for i, width in {5: b, 8: c}.items():
        shapes |= conv(f"encoder.downsamples.{i}.time_conv", width, width, 3, 1, 1)
    return shapes


def shapes_of(vae):
    return {key: tuple(p.shape) for key, p in vae.state_dict().items()}


def parameters_of(module):
    return sum(p.numel() for p in module.parameters())


def test_wan_checkpoint():
    vae = WanVae(device="meta")
    assert shapes_of(vae) == checkpoint_shapes(96, 192, 384)
    assert len(vae.state_dict()) == 194
    assert all(p.is_meta and not p.requires_grad for p in vae.parameters())
    assert parameters_of(vae) == 126_892_531
    assert parameters_of(vae.encoder) == 53_595_872 and parameters_of(vae.decoder) == 73_295_331


def test_light_checkpoint():
    vae = WanVae(VaeConfig(base=24), device="meta")
    assert shapes_of(vae) == checkpoint_shapes(24, 48, 96)
    assert parameters_of(vae) == 8_035_003 and parameters_of(vae.decoder) == 4_617_339


def test_decoder_half():
    vae = WanVae(encoder=False, device="meta")
    whole = checkpoint_shapes(96, 192, 384)
    assert shapes_of(vae) == {k: s for k, s in whole.items() if k.startswith(("decoder.", "conv2."))}


@pytest.mark.parametrize("encoder", [True, False])
@pytest.mark.parametrize(
    "config", [VaeConfig(), VaeConfig(base=24), VaeConfig(base=8), VaeConfig(base=3, multipliers=(1, 2, 2, 6))]
)
def test_config_from_shapes(config, encoder):
    assert VaeConfig.from_shapes(shapes_of(WanVae(config, encoder=encoder, device="meta"))) == config


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("decoder.upsamples.4.residual.6.weight", None, "is missing"),
        ("conv2.weight", None, "is missing"),
        ("conv2.weight", (), "is missing"),
        ("decoder.head.2.weight", None, "must have shape"),
        ("decoder.head.2.weight", (3, 24, 3, 3, 3), "must have shape"),
        ("decoder.conv1.weight", (384, 4, 3, 3, 3), "must have shape"),
        ("decoder.upsamples.8.residual.6.weight", (192, 192, 3, 3), "must have shape"),
        ("decoder.upsamples.8.residual.6.weight", (200, 200, 3, 3, 3), "multiple of the finest level's 96"),
    ],
)
def test_config_from_wrong_shapes(key, shape, message):
    shapes = checkpoint_shapes(96, 192, 384)
    shapes.pop(key)
    if shape is not None:
        shapes[key] = shape
    with pytest.raises(ValueError, match=message) as error:
        VaeConfig.from_shapes(shapes)
    assert key in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("base", 0),
        ("base", 96.0),
        ("base", "96"),
        ("z_dim", -1),
        ("multipliers", (1, 2, 4)),
        ("multipliers", (1, 2, 0, 4)),
        ("latent_mean", (0.0,) * 15),
        ("latent_std", (1.0,) * 17),
    ],
)
def test_bad_config(field, value):
    with pytest.raises(ValueError, match=field):
        VaeConfig(**{field: value})


def test_odd_width_cannot_be_halved():
    with pytest.raises(ValueError, match="even widths"):
        VaeConfig(base=5, multipliers=(1, 3, 4, 4))


def test_loading_lays_kernels_out_channels_last():
    config = VaeConfig(base=8)
    weights = WanVae(config).state_dict()
    vae = WanVae(config, device="meta")
    vae.load_state_dict(weights, assign=True)
    for key, weight in vae.state_dict().items():
        assert torch.equal(weight, weights[key])
        if weight.ndim > 3:
            assert weight.movedim(1, -1).is_contiguous(), key


def test_loading_refuses_another_width():
    with pytest.raises(RuntimeError, match=r"size mismatch for decoder\.conv1\.weight"):
        WanVae(VaeConfig(base=8)).load_state_dict(WanVae(VaeConfig(base=4)).state_dict())


@pytest.mark.parametrize("channels", [1, 7, 96])
@pytest.mark.parametrize("size", [1.0, 1e-4, 1e8])
def test_rms_norm(channels, size):
    x = size * h(1, 5, 3, channels, dtype=torch.float64)
    x[0, 0] = 0
    norm = RMSNorm(channels, axes=3).double()
    norm.gamma.data = 1 + h(2, channels, 1, 1, 1, dtype=torch.float64)
    expected = x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12) * channels**0.5 * norm.gamma.flatten()
    torch.testing.assert_close(norm(x), expected, rtol=1e-7, atol=0)
    out = torch.full((2, *x.shape), float("nan"), dtype=torch.float64)[1]
    assert norm(x, out=out).data_ptr() == out.data_ptr()
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=0)
    rounded = norm.bfloat16()(x.bfloat16()).double()  # statistics in float32: one rounding of inputs, one of outputs
    torch.testing.assert_close(rounded, expected, rtol=4 / 256, atol=0)


def test_attention_stays_within_a_frame():
    block = AttentionBlock(6).double().requires_grad_(False)
    x = h(3, 3, 2, 5, 6, dtype=torch.float64)
    q, k, v = (
        F.conv2d(block.norm(x).permute(0, 3, 1, 2), block.to_qkv.weight, block.to_qkv.bias).flatten(2).chunk(3, dim=1)
    )
    scores = torch.einsum("tci,tcj->tij", q, k) / 6**0.5
    mixed = torch.einsum("tij,tcj->tci", scores.softmax(-1), v).unflatten(2, (2, 5))
    expected = x + F.conv2d(mixed, block.proj.weight, block.proj.bias).permute(0, 2, 3, 1)
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-12)
